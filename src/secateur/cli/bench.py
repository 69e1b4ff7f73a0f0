"""``secateur bench``: one network in several runtimes, a process each, in turns."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from secateur.cli.output import console, printable

__all__ = ["NOTHING_TIMED", "Data", "Shape", "bench", "example_inputs"]

NOTHING_TIMED = 3
"""The exit code where no runtime could be timed."""

_LARGEST_EXAMPLE = 1 << 30


Shape: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Shape of an input as 1,3,224,224, filled with noise; repeat for several inputs."),
]
Data: TypeAlias = Annotated[
    str | None, typer.Option(help="package.module:function that returns batches; instead of --shape.")
]
Batch: TypeAlias = Annotated[
    list[int] | None, typer.Option(min=1, help="Batch size; may be repeated.  [default: that of the input]")
]
Threads: TypeAlias = Annotated[
    list[int] | None, typer.Option(min=1, help="Threads of every runtime; may be repeated.  [default: 1]")
]
Runtimes: TypeAlias = Annotated[
    str | None, typer.Option(help="Names with commas between, such as eager,openvino.  [default: all there are]")
]
Rounds: TypeAlias = Annotated[int, typer.Option(min=5, help="Turns of each runtime.")]
Budget: TypeAlias = Annotated[
    float, typer.Option(min=1, help="Seconds that the rounds of one batch size and number of threads may take.")
]
Deadline: TypeAlias = Annotated[float, typer.Option(min=1, help="Seconds for one runtime to start and answer.")]


def bench(
    file: Annotated[Path, typer.Argument(help="Weights: of `secateur prune`, sc.save, or plain safetensors.")],
    model: Annotated[str, typer.Option("--model", help="package.module:function that makes the model.")],
    shape: Shape = None,
    data: Data = None,
    batch: Batch = None,
    threads: Threads = None,
    runtimes: Runtimes = None,
    rounds: Rounds = 20,
    budget: Budget = 120.0,
    deadline: Deadline = 600.0,
    json: Annotated[Path | None, typer.Option("--json", help="Write a list of the records too.")] = None,
) -> None:
    """Time a model in every runtime there is, each in a process of its own.

    torch, torch.compile, onnxruntime and OpenVINO on the same input, float32 and bfloat16 named apart, all outputs
    checked against torch. What is not installed, fails or is wrong is named, never timed. Exit code 3 where nothing
    could be timed.

    Example: secateur bench sparse.safetensors --model nets:make --shape 1,3,224,224 --batch 1 --batch 16
    """
    from secateur.cli.functions import make_model
    from secateur.cli.weights import check_folder, fill
    from secateur.measure.rivals import DEFAULT, Settings, compare_all

    if json is not None:
        check_folder(json)
    wanted = DEFAULT if runtimes is None else tuple(name.strip() for name in runtimes.split(",") if name.strip())
    net = make_model(model)
    fill(net, file)
    inputs = example_inputs(shape, data)
    with console(stderr=True).status("starting") as status:
        found = compare_all(
            net,
            inputs,
            tuple(batch or (None,)),
            tuple(threads or (1,)),
            runtimes=wanted,
            settings=Settings(rounds, budget_s=budget, deadline_s=deadline, say=status.update),
            title=str(file),
        )
    if json is not None:
        json.write_text(json_module.dumps([one.to_record() for one in found], indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(printable(str(one)) for one in found))
    if not any(row.status == "timed" for one in found for row in one.rows):
        raise typer.Exit(NOTHING_TIMED)


def example_inputs(shapes: list[str] | None, data: str | None) -> Any:
    """A tuple or mapping of arguments."""
    from secateur.cli.functions import first_inputs, make_data

    if (shapes is None) == (data is None):
        raise ValueError(
            "give either --shape with the shape of an input (1,3,224,224), or --data with a function that returns "
            "batches"
        )
    if shapes is not None:
        return tuple(_noise(shape) for shape in shapes)
    return first_inputs(make_data("--data", data or ""))[0]


def _noise(text: str) -> Any:
    import torch

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--shape {text!r}: write the shape of an input, batch first, as 1,3,224,224")
    shape = [int(part) for part in parts]
    if torch.Size(shape).numel() > _LARGEST_EXAMPLE:
        raise ValueError(f"--shape {text!r} has more than {_LARGEST_EXAMPLE:,} numbers")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
