"""Dense against sparse, everything at once: the record that a report is made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import nn

from secateur.measure.count import Counts, count
from secateur.measure.effective import Effective, effective
from secateur.measure.energy import energy_per_call
from secateur.measure.environment import environment
from secateur.measure.fit import Data, compare, first_inputs
from secateur.measure.latency import against_itself, repeated, threads_set
from secateur.measure.macs import Compat
from secateur.measure.notes import sentences
from secateur.measure.sizes import sizes
from secateur.model.batches import to_device
from secateur.model.mask_checks import zeros_without_masks
from secateur.model.masks import Masks, find_masks
from secateur.model.names import parameters_by_name, unwrap
from secateur.records import (
    Accuracy,
    Agreement,
    Energy,
    Environment,
    Latency,
    Record,
    SchedulePoint,
    Shares,
    Side,
    Sizes,
    TrainingCost,
)

__all__ = ["measure"]


def measure(
    dense: nn.Module,
    sparse: nn.Module,
    data: Data | None = None,
    *,
    train: Data | None = None,
    example_inputs: Any = None,
    batches: Sequence[int] = (1, 256),
    rounds: int = 30,
    threads: int = 1,
    budget_s: float = 20.0,
    compat: Compat = None,
    masks: Masks | None = None,
    plan: Any = None,
    training: TrainingCost | None = None,
    schedule: Sequence[SchedulePoint] = (),
) -> Record:
    """Measure a sparse model against the dense one: fit, bytes, multiply-adds, latency, energy.

    compression = parameters(dense) / kept(sparse); theoretical speedup = macs(dense) / macs_kept(sparse);
    measured speedup = median ms(dense) / median ms(sparse), beside dense against itself in the same rounds.
    Whatever is no gain is said in ``notes``. Neither model is changed.

    Args:
        dense: the untouched model.
        sparse: another module, masked, shrunk or packed; deep-copy the dense one before you prune it.
        data: test batches ``(x, y)`` with integer classes, or the pair of tensors; None: no accuracy.
        train: the same for the training set; its accuracy stands beside.
        example_inputs: a tensor, a tuple or a mapping of keyword arguments, batch on axis 0; default: the
            inputs of the first batch of ``data``. One sample is counted; latency repeats its samples.
        batches: batch sizes at which latency is measured; empty: none.
        rounds: interleaved rounds per batch size; fewer (at least 5) where they would take more than ``budget_s``.
        threads: torch threads while measuring latency and energy.
        budget_s: seconds that the rounds of one batch size may take.
        compat: ``"shrinkbench"`` counts parameters and multiply-adds as ShrinkBench does.
        masks: which weights of ``sparse`` are removed; default: the masks registered for it.
        plan: a ``Plan`` or plain mapping to keep in the record.
        training: what training took, from ``TrainingMeter``.
        schedule: the mask updates as they happened.

    Returns:
        The record; ``record.notes`` says what was gained and what was not, and why.

    Raises:
        ValueError: if ``dense is sparse`` or they share weights, if ``dense`` has masks, if removed weights are
            no longer zero, if there is neither data nor example inputs, and for batches of another kind.

    Example:
        >>> dense, sparse = nn.Linear(4, 2), nn.Linear(4, 2)
        >>> record = measure(dense, sparse, example_inputs=torch.zeros(1, 4), batches=())
        >>> record.compression, record.sparse.macs
        (1.0, 8)

    Reference:
        Blalock, Gonzalez Ortiz, Frankle, Guttag 2020, "What is the State of Neural Network Pruning?",
        arXiv 2003.03033.
    """
    _refuse(dense, sparse, data, train)
    batches, plan = _batch_sizes(batches), _plan(plan)
    masks = _checked(find_masks(sparse) if masks is None else masks)
    unseen = zeros_without_masks(sparse) if masks is None else None
    inputs = _inputs(dense, data, example_inputs)
    fits = _fits(dense, sparse, data, train)
    speed = against_itself(dense, sparse, inputs, batches, rounds=rounds, threads=threads, budget_s=budget_s)
    joules, no_joules = _energy((dense, sparse), inputs, batches, threads)
    counts = count(dense, inputs, compat=compat), count(sparse, inputs, masks=masks, compat=compat)
    paths, files = (effective(dense), effective(sparse, masks)), (sizes(dense), sizes(sparse, masks, plan=plan))
    sides = [
        _side(name, model, counts[i], paths[i], fits.accuracy[i], speed.latency[i], joules[i], files[i])
        for i, (name, model) in enumerate((("dense", dense), ("sparse", sparse)))
    ]
    record = Record(
        dense=sides[0],
        sparse=sides[1],
        shares=Shares(0.0, 0.0, 0.0) if masks is None else masks.shares(),
        compression=_ratio(counts[0].parameters, counts[1].kept),
        effective_compression=_effective_compression(counts[0], paths[1]),
        theoretical_speedup=_ratio(counts[0].macs, counts[1].macs_kept),
        measured_speedup=speed.ratio,
        dense_self_ratio=speed.itself,
        agreement=fits.agreement,
        training=training,
        schedule=tuple(schedule),
        plan=plan,
        convention=counts[0].convention,
        notes=(),
        environment=_environment(threads),
        dense_spread=speed.spread,
    )
    return replace(record, notes=(*sentences(record), *_left_out(counts[1], paths[1], no_joules, unseen)))


def _checked(masks: Masks | None) -> Masks | None:
    if masks is not None:
        masks.check()
    return masks


def _refuse(dense: nn.Module, sparse: nn.Module, data: Data | None, train: Data | None) -> None:
    if unwrap(dense) is unwrap(sparse):
        raise ValueError(
            "dense and sparse are the same object, so there is nothing to compare: "
            "dense = copy.deepcopy(model) before pruning the model"
        )
    shared = _storages(dense).keys() & _storages(sparse).keys()
    if shared:
        names = sorted(_storages(sparse)[key] for key in shared)
        raise ValueError(
            f"dense and sparse share the memory of {names[0]!r}{f' and {len(names) - 1} more' if names[1:] else ''}: "
            "what was pruned in one is gone in the other; dense = copy.deepcopy(model) before pruning"
        )
    if find_masks(dense) is not None:
        raise ValueError(
            "dense has masks itself; give the untouched model (masks.undo(), or a deepcopy made before pruning)"
        )
    for name, given in (("data", data), ("train", train)):
        if isinstance(given, Iterator):
            raise ValueError(
                f"{name} is an iterator, which can be read once only; give the loader or a list of batches"
            )


def _batch_sizes(batches: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(batches, Sequence) or any(type(size) is not int or size < 1 for size in batches):
        raise ValueError(f"batches={batches!r}: give a sequence of whole numbers from 1 on, such as (1, 256), or ()")
    return tuple(batches)


def _storages(model: nn.Module) -> dict[tuple[torch.device, int], str]:
    named = parameters_by_name(model).items()
    return {(p.device, p.untyped_storage().data_ptr()): name for name, p in named if p.numel() and not p.is_meta}


def _inputs(dense: nn.Module, data: Data | None, example_inputs: Any) -> Any:
    if example_inputs is None:
        if data is None:
            raise ValueError("measure needs data=, or example_inputs= where there is no accuracy to measure")
        example_inputs = first_inputs(data)
    device = next((p.device for p in dense.parameters()), torch.device("cpu"))
    return to_device(example_inputs, device)


@dataclass(frozen=True)
class _Fits:
    accuracy: tuple[tuple[Accuracy, ...], tuple[Accuracy, ...]]
    agreement: Agreement | None


def _fits(dense: nn.Module, sparse: nn.Module, data: Data | None, train: Data | None) -> _Fits:
    given = {"train": train, "test": data}
    found = {split: compare(dense, sparse, d, split=split) for split, d in given.items() if d is not None}
    pairs = [(d, s) for d, s, _ in found.values()]
    return _Fits(
        accuracy=(tuple(d for d, _ in pairs), tuple(s for _, s in pairs)),
        agreement=found["test"][2] if "test" in found else None,
    )


def _energy(
    models: tuple[nn.Module, nn.Module], inputs: Any, batches: tuple[int, ...], threads: int
) -> tuple[list[tuple[Energy, ...]], str | None]:
    found: list[list[Energy]] = [[], []]
    for batch in batches:
        given = repeated(inputs, batch)
        for rows, model in zip(found, models, strict=True):
            row = energy_per_call(model, given, threads=threads)
            if isinstance(row, str):
                return [(), ()], row
            rows.append(row)
    return [tuple(rows) for rows in found], None


def _side(
    name: str,
    model: nn.Module,
    counts: Counts,
    paths: Effective,
    accuracy: tuple[Accuracy, ...],
    latency: tuple[Latency, ...],
    energy: tuple[Energy, ...],
    file_sizes: Sizes,
) -> Side:
    return Side(
        name=name,
        parameters=counts.parameters,
        kept=counts.kept,
        macs=counts.macs,
        macs_kept=counts.macs_kept,
        effective_kept=paths.parameters,
        sizes=file_sizes,
        accuracy=accuracy,
        latency=latency,
        energy=energy,
        layers=counts.layers,
    )


def _environment(threads: int) -> Environment:
    with threads_set(threads):
        return environment()


def _ratio(before: int, after: int) -> float:
    return before / after if after else (math.inf if before else 1.0)


def _effective_compression(dense: Counts, paths: Effective) -> float | None:
    return None if paths.parameters is None else _ratio(dense.parameters, paths.parameters)


def _plan(plan: Any) -> dict[str, Any] | None:
    if plan is None or isinstance(plan, Mapping):
        return None if plan is None else dict(cast("Mapping[str, Any]", plan))
    if not hasattr(plan, "to_record"):
        raise ValueError(f"plan is a {type(plan).__name__}; give a Plan, a mapping, or None")
    return plan.to_record()


def _left_out(counts: Counts, paths: Effective, no_joules: str | None, unseen: str | None) -> list[str]:
    found: list[str] = []
    if counts.uncounted:
        names = ", ".join(repr(name) for name in counts.uncounted)
        found.append(f"multiply-adds of {names} are not counted: only convolutions, linear layers and attention are")
    if paths.reason is not None:
        found.append(f"effective compression is not counted, because {paths.reason}")
    if no_joules is not None:
        found.append(f"joules are not measured: {no_joules}")
    if unseen is not None:
        found.append(unseen)
    return found
