"""``secateur prune``: one shot, from a factory and its weights to a sparse file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from secateur.cli.output import print_line

if TYPE_CHECKING:
    from secateur.model.masks import Masks

__all__ = ["prune"]

# Named here, so that the command below reads as the list of its options.
Model: TypeAlias = Annotated[str, typer.Option(help="package.module:function that makes the model.")]
Output: TypeAlias = Annotated[Path, typer.Option("--output", "-o", help="The sparse file to write.")]
Weights: TypeAlias = Annotated[
    Path | None, typer.Option(help="Its weights: safetensors, a secateur file, or a state dict (.pt).")
]
Sparsity: TypeAlias = Annotated[float | None, typer.Option(help="Share of units to remove, as 0.9; not for n of m.")]
Criterion: TypeAlias = Annotated[str, typer.Option(help="What scores the units.")]
Unit: TypeAlias = Annotated[str, typer.Option(help="What is removed together.")]
Allocation: TypeAlias = Annotated[str, typer.Option(help="How many units each parameter keeps.")]
Within: TypeAlias = Annotated[str, typer.Option(help='Where units compete: tensor, row, or a pattern as "2 of 4".')]
Targets: TypeAlias = Annotated[list[str] | None, typer.Option(help="Name or glob of what to prune; may be repeated.")]
Exclude: TypeAlias = Annotated[list[str] | None, typer.Option(help="Name or glob of what stays dense, likewise.")]
Data: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="package.module:function that returns batches, for criteria that read gradients and unit channel."
    ),
]
Loss: TypeAlias = Annotated[
    str | None,
    typer.Option(help="cross_entropy, nll, mse, l1, smooth_l1, bce_with_logits, or package.module:function."),
]
Batches: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Batches to read; else as the criterion says.")]
Init: TypeAlias = Annotated[Path | None, typer.Option(help="Weights before training, for criteria that compare.")]
Merge: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--merge", help="Kept channels take over for removed ones: cosine, srinivas_babu, activation_correlation."
    ),
]
Rounds: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Decide in rounds, with new evidence in each; else as the criterion says.")
]
Update: TypeAlias = Annotated[
    bool, typer.Option("--update", help="Kept weights make up for removed ones; obs, woodfisher.")
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Of random criteria; torch gets it before the model is made.")]


def prune(
    model: Model,
    output: Output,
    weights: Weights = None,
    sparsity: Sparsity = None,
    criterion: Criterion = "magnitude",
    unit: Unit = "weight",
    allocation: Allocation = "global",
    within: Within = "tensor",
    targets: Targets = None,
    exclude: Exclude = None,
    data: Data = None,
    loss: Loss = None,
    batches: Batches = None,
    init: Init = None,
    seed: Seed = 0,
    merge: Merge = False,
    rounds: Rounds = None,
    update: Update = False,
) -> None:
    """Make a model sparse and write it as a small file.

    The function behind --model takes no arguments and returns a torch.nn.Module. The one behind
    --data returns a loader or any iterable of (inputs, labels) batches, or of mappings that go in as
    model(**batch); a single (inputs, labels) pair is one batch. Unit channel traces the model with the
    inputs of the first batch. `secateur methods` lists what criterion, unit and allocation can be.

    Example: secateur prune --model nets:make --weights dense.safetensors --sparsity 0.9 -o sparse.safetensors
    """
    from secateur.cli.weights import check_folder

    check_folder(output)
    choices: dict[str, Any] = {
        "sparsity": sparsity,
        "criterion": criterion,
        "unit": unit,
        "allocation": allocation,
        "within": within,
        "targets": targets or None,
        "exclude": exclude or None,
        "seed": seed,
        "rounds": rounds,
    }
    given: dict[str, Any] = {"data": data, "loss": loss, "batches": batches, "init": init}
    given["edits"] = {"merge": merge, "update": update}
    _run(model, weights, output, choices, given)


def _run(model: str, weights: Path | None, output: Path, choices: dict[str, Any], given: Mapping[str, Any]) -> None:
    import torch

    from secateur.cli.functions import find_function, loss_named, make_data, make_model
    from secateur.cli.weights import fill, read_tensors
    from secateur.core import unit_name
    from secateur.deploy import save
    from secateur.train.plan import Plan
    from secateur.train.prune import prune as run

    for choice in ("criterion", "allocation"):  # a plan takes functions of imported modules by name
        if ":" in choices[choice] and "(" not in choices[choice]:
            find_function(f"--{choice}", choices[choice])
    plan = Plan(**choices)
    data = None if given["data"] is None else make_data("--data", given["data"])
    loss = None if given["loss"] is None else loss_named(given["loss"])
    init = None if given["init"] is None else read_tensors(given["init"])
    torch.manual_seed(choices["seed"])
    net = make_model(model)
    if weights is not None:
        fill(net, weights)
    example = None
    if unit_name(plan.parsed_unit) == "channel":
        example, data = _example(data)
    choices |= {"example_inputs": example, "data": data, "loss": loss, "init": init, "batches": given["batches"]}
    masks = run(net, **choices, **given["edits"], undo=False)
    _say(masks, output, save(net, output, plan=plan))


def _example(data: Any) -> tuple[Any, Any]:
    """The model's inputs in the first batch, and the data with that batch still in it."""
    from secateur.cli.functions import first_inputs

    if data is None:
        raise ValueError(
            "--unit channel traces the model to see which channels go together, with the inputs of the first batch of "
            "--data: name a function that returns batches"
        )
    return first_inputs(data)


def _say(masks: Masks, output: Path, written: int) -> None:
    from secateur.measure.sizes import plain_bytes
    from secateur.text import data_size

    plain = len(plain_bytes(masks.model))
    print_line(str(masks))
    if written < plain:
        outcome = f"{plain / written:.2f} x smaller than the {data_size(plain)} of plain safetensors"
    else:
        outcome = (
            f"no gain here: plain safetensors take {data_size(plain)}, because masks and record take more than "
            "the removed weights save; remove more, or larger layers"
        )
    print_line(f"{output}: {data_size(written)}, {outcome}")
