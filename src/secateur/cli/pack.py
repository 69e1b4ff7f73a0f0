"""``secateur pack``: from a sparse file and its model to what the zeros save on this machine, and to a packed file."""

from __future__ import annotations

import json as json_module
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.bench import Data, Shape
from secateur.cli.output import console, print_line

if TYPE_CHECKING:
    from secateur.deploy.pack import PackedModel

__all__ = ["NOTHING_FASTER", "pack"]


class Precision(str, Enum):
    """The number formats of ``sc.pack(dtype=)``."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"


NOTHING_FASTER = 3
"""The exit code where the dense model is at least as fast."""


def pack(
    file: Annotated[Path, typer.Argument(help="Weights: of `secateur prune`, sc.save, or plain safetensors.")],
    model: Annotated[str, typer.Option("--model", help="package.module:function that makes the model.")],
    shape: Shape = None,
    data: Data = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that a program may use.  [default: as many as there are]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the packed model, which sc.load takes without its class.")
    ] = None,
    blobs: Annotated[bool, typer.Option("--blobs", help="Write the kernels' own streams into that file too.")] = False,
    dtype: Annotated[
        Precision,
        typer.Option("--dtype", help="What linear layers may run in where it is faster; measure the accuracy."),
    ] = Precision.float32,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Use and keep what was measured on this machine.")
    ] = True,
    json: Annotated[
        Path | None,
        typer.Option("--json", help="Write the table and the machine's limits as JSON too, for `secateur report`."),
    ] = None,
) -> None:
    """Pack a sparse model for this machine's CPU, and say what it gains.

    Every layer runs the kernel that was measured fastest, dense included; the table says which, and both times. Exit
    code 3 where nothing was faster: stay with the dense model then. A model that needs torch between its programs
    cannot be written with --out; the message names the operators, and the table is printed all the same.

    Example: secateur pack sparse.safetensors --model nets:make --shape 1,3,224,224 --out packed.safetensors
    """
    import torch

    from secateur.cli.bench import example_inputs
    from secateur.cli.functions import make_model
    from secateur.cli.weights import check_folder, fill
    from secateur.deploy.pack import pack as run
    from secateur.measure.environment import environment

    for path in (out, json):
        if path is not None:
            check_folder(path)
    if blobs and out is None:
        raise ValueError("--blobs is about the file of --out, which is not given")
    net = make_model(model)
    fill(net, file)
    inputs = example_inputs(shape, data)
    with console(stderr=True).status("measuring"):
        fast = run(net, inputs, threads=threads, dtype=getattr(torch, dtype.value), cache=cache)
        found = replace(fast.explain(roofs=json is not None), title=str(file), environment=environment())
    if json is not None:
        json.write_text(json_module.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    print_line(str(found))
    if out is not None and fast.regions:
        _write(fast, out, blobs)
    if fast.is_dense:
        raise typer.Exit(NOTHING_FASTER)


def _write(fast: PackedModel, out: Path, blobs: bool) -> None:
    from secateur.deploy import save
    from secateur.text import data_size

    record: dict[str, Any] = {"explained": fast.explain().to_dict()}
    size = save(fast, out, record=record, blobs=blobs)
    print_line(f"{out}: {data_size(size)}; sc.load({str(out)!r}) gives the packed model back")
