"""``secateur shrink``: from a factory and its weights to a smaller model that meets a budget."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from secateur.cli.output import print_line, printable
from secateur.cli.prune import Allocation, Batches, Criterion, Exclude, Loss, Model, Seed, Targets, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["GOAL_NOT_MET", "shrink"]

GOAL_NOT_MET = 3
"""The exit code where no removal meets the budget."""

_LARGEST_EXAMPLE = 1 << 30

Output: TypeAlias = Annotated[Path, typer.Option("--output", "-o", help="The file of the smaller model to write.")]
Example: TypeAlias = Annotated[
    list[str] | None, typer.Option(help="Shape of an input as 1,3,32,32, filled with noise; repeat for several inputs.")
]
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(help="package.module:function that returns batches; instead of --example, and for criteria."),
]
Macs: TypeAlias = Annotated[float | None, typer.Option(help="Multiply-adds of one sample: 0.5 of dense, or 20e6.")]
Params: TypeAlias = Annotated[float | None, typer.Option(help="Parameters, likewise.")]
Bytes: TypeAlias = Annotated[float | None, typer.Option("--bytes", help="Bytes as plain safetensors, likewise.")]
Latency: TypeAlias = Annotated[float | None, typer.Option(help="Milliseconds per call, one thread, likewise.")]
Sparsity: TypeAlias = Annotated[float | None, typer.Option(help="Share of all units to remove.")]
Unit: TypeAlias = Annotated[
    str, typer.Option(help="channel, head or head_dim; as channel(all) or channel(out, weights) scored otherwise.")
]
RoundTo: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="Widths in multiples: 8, or by layer as layer3*=8 (may be repeated), or measured."),
]
Recalibrate: TypeAlias = Annotated[
    str | None, typer.Option(help="package.module:function with batches for the batch norms of the smaller model.")
]
Json: TypeAlias = Annotated[Path | None, typer.Option("--json", help="Write what came of it as JSON too.")]


def shrink(
    model: Model,
    output: Output,
    weights: Weights = None,
    example: Example = None,
    data: Data = None,
    macs: Macs = None,
    params: Params = None,
    bytes: Bytes = None,
    latency_ms: Latency = None,
    sparsity: Sparsity = None,
    criterion: Criterion = "l2",
    unit: Unit = "channel",
    allocation: Allocation = "global",
    round_to: RoundTo = None,
    targets: Targets = None,
    exclude: Exclude = None,
    loss: Loss = None,
    batches: Batches = None,
    recalibrate: Recalibrate = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Make a model smaller for good: whole channels go until every budget holds.

    A budget up to 1.0 is a fraction of the dense model, above it the figure itself; several hold together, and where
    no removal meets them the exit code is 3. Without a budget the masks in --weights say what goes.
    The file loads back by sc.load(output, into=function). The functions are as for `secateur prune`.

    Example: secateur shrink --model nets:make --weights dense.safetensors --example 1,3,32,32 --macs 0.5 -o small
    """
    from secateur.cli.weights import check_folder

    check_folder(output)
    if json is not None:
        check_folder(json)
    budget = {"macs": macs, "params": params, "bytes": bytes, "latency_ms": latency_ms, "sparsity": sparsity}
    choices: dict[str, Any] = {
        "criterion": criterion,
        "allocation": allocation,
        "unit": unit,
        "round_to": _round_to(round_to),
        "targets": targets or None,
        "exclude": exclude or None,
        "batches": batches,
        "seed": seed,
    }
    given = {"example": example, "data": data, "loss": loss, "recalibrate": recalibrate}
    _run(model, weights, (output, json), budget, choices, given)


def _run(
    model: str,
    weights: Path | None,
    written: tuple[Path, Path | None],
    budget: Mapping[str, float | None],
    choices: dict[str, Any],
    given: Mapping[str, Any],
) -> None:
    import torch

    from secateur.cli.functions import find_function, loss_named, make_data, make_model
    from secateur.cli.weights import fill
    from secateur.deploy import save
    from secateur.train.budget import OutOfReach
    from secateur.train.shrink import shrink as run
    from secateur.train.shrinkage import shrinkage

    if ":" in choices["criterion"] and "(" not in choices["criterion"]:
        choices["criterion"] = find_function("--criterion", choices["criterion"])
    loss = None if given["loss"] is None else loss_named(given["loss"])
    data = None if given["data"] is None else make_data("--data", given["data"])
    recalibrate = None if given["recalibrate"] is None else make_data("--recalibrate", given["recalibrate"])
    torch.manual_seed(choices["seed"])
    net = make_model(model)
    if weights is not None:
        fill(net, weights)
    inputs, data = _inputs(given["example"], data)
    if all(value is None for value in budget.values()):
        data = None  # it gave the inputs; masks need no scores
    try:
        small = run(net, example_inputs=inputs, data=data, loss=loss, recalibrate=recalibrate, **budget, **choices)
    except OutOfReach as error:
        print(f"secateur shrink: {printable(str(error))}", file=sys.stderr)
        raise typer.Exit(GOAL_NOT_MET) from error
    record = shrinkage(small)
    assert record is not None, "shrink remembers what it did"
    output, json = written
    size = save(small, output, record={"shrinkage": record.to_record()})
    if json is not None:
        json.write_text(json_module.dumps(record.to_record(), indent=1) + "\n", encoding="utf-8")
    print_line(str(record))
    _say(net, output, size)


def _say(dense: nn.Module, output: Path, size: int) -> None:
    from secateur.measure.sizes import plain_bytes
    from secateur.text import data_size

    plain = len(plain_bytes(dense))
    if size < plain:
        outcome = f"{plain / size:.2f} x smaller than the {data_size(plain)} of the dense model"
    else:
        outcome = f"no gain here: plain safetensors of the dense model take {data_size(plain)}"
    print_line(f"{output}: {data_size(size)}, {outcome}")


def _round_to(given: list[str] | None) -> int | str | dict[str, int] | None:
    """``["8"]``, ``["measured"]`` or ``["layer1*=8", "layer2*=16"]`` as ``shrink`` takes it."""
    if not given:
        return None
    if given == ["measured"]:
        return "measured"
    if len(given) == 1 and given[0].isdecimal():
        return int(given[0])
    table: dict[str, int] = {}
    for item in given:
        layer, equals, multiple = item.rpartition("=")
        if not (equals and layer and multiple.isdecimal()):
            raise ValueError(
                f"--round-to {item!r}: write a whole number, layer=number (globs are allowed), or measured"
            )
        table[layer] = int(multiple)
    return table


def _inputs(shapes: list[str] | None, data: Any) -> tuple[Any, Any]:
    """Inputs for the trace, and the data with the batch that was read still in it."""
    from secateur.cli.functions import first_inputs

    if shapes:
        return tuple(_noise(shape) for shape in shapes), data
    if data is None:
        raise ValueError(
            "a trace shows which channels go together: give --example with the shape of an input (1,3,32,32), or "
            "--data with a function that returns batches"
        )
    return first_inputs(data)


def _noise(text: str) -> Tensor:
    import torch

    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--example {text!r}: write the shape of an input, batch first, as 1,3,32,32")
    shape = [int(part) for part in parts]
    if torch.Size(shape).numel() > _LARGEST_EXAMPLE:
        raise ValueError(f"--example {text!r} has more than {_LARGEST_EXAMPLE:,} numbers")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
