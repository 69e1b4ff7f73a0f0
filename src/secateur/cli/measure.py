"""``secateur measure``: dense against sparse, from their files to a table and a record."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.output import console

__all__ = ["measure"]


def measure(
    model: Annotated[str, typer.Option("--model", help="package.module:function that makes the model.")],
    dense: Annotated[Path, typer.Option("--dense", help="Weights of the dense model.")],
    sparse: Annotated[Path, typer.Option("--sparse", help="The file of `secateur prune` or sc.save.")],
    data: Annotated[str, typer.Option("--data", help="package.module:function that returns the test data.")],
    train: Annotated[
        str | None, typer.Option("--train", help="The same for the training data; its accuracy stands beside.")
    ] = None,
    batch: Annotated[
        list[int] | None, typer.Option(min=1, help="Batch size to time; may be repeated.  [default: 1, 256]")
    ] = None,
    rounds: Annotated[int, typer.Option(min=5, help="Interleaved rounds per batch size.")] = 30,
    threads: Annotated[int, typer.Option(min=1, help="Threads while timing.")] = 1,
    json: Annotated[Path | None, typer.Option("--json", help="Write the record too, for `secateur report`.")] = None,
) -> None:
    """Measure a sparse file against the dense one.

    Accuracy, bytes, multiply-adds and latency of both, in one table; and where nothing was gained, why.

    The function behind --data returns a loader or list of (inputs, labels) batches with integer
    classes, or one (inputs, labels) pair of whole tensors. It is read more than once.

    Example: secateur measure --model nets:make --dense dense.safetensors --sparse sparse.safetensors --data nets:test
    """
    from secateur.cli.functions import make_data, make_model
    from secateur.cli.weights import check_folder, fill, read_plan
    from secateur.measure import measure as compare
    from secateur.records import Report
    from secateur.report import print_table

    if json is not None:
        check_folder(json)
    dense_model, sparse_model = make_model(model), make_model(model)
    fill(dense_model, dense)
    fill(sparse_model, sparse)
    test_data = make_data("--data", data)
    train_data = None if train is None else make_data("--train", train)
    with console(stderr=True).status("measuring"):
        record = compare(
            dense_model,
            sparse_model,
            test_data,
            train=train_data,
            batches=batch or (1, 256),
            rounds=rounds,
            threads=threads,
            plan=read_plan(sparse),
        )
    if json is not None:
        json.write_text(json_module.dumps(record.to_record(), indent=1) + "\n", encoding="utf-8")
    print_table(Report(f"{sparse} against {dense}", (sparse.stem,), (record,)), console=console())
