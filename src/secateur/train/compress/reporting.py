"""The report of a run: the chosen model, its rivals and some of the frontier, each measured beside the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from secateur.measure.measure import measure
from secateur.records import Record, Report, Trial, Trials
from secateur.train.compress.page import headline
from secateur.train.compress.rivals import rival_model
from secateur.train.compress.run import Run
from secateur.train.compress.setting import ACCURACY

__all__ = ["report_of"]

_FRONTIER = 3
_BUDGET_S = 3.0
_MASKED = "because a masked dense tensor runs the same dense kernels"


def report_of(run: Run, record: Trials) -> Report:
    """Measured records for a page.

    Args:
        run: that is over.
        record: of it.

    Returns:
        The report; what is in the folder's journal already is not measured again.
    """
    chosen = record.point(record.chosen)
    models: dict[str, tuple[Trial, nn.Module]] = {}
    model = run.shelf.get(chosen.key)
    assert model is not None, "the chosen model is always kept"
    spoken = "chosen" if record.met else "nearest"
    models[spoken] = (chosen, model)
    for rival in record.rivals:
        other = rival_model(run, rival)
        if other is not None and rival.trial is not None:
            models[rival.name] = (rival.trial, other)
    rest = [point for key in record.frontier if (point := record.point(key)).key != chosen.key]
    for point in _spread_out(rest, _FRONTIER):
        other = run.shelf.get(point.key)
        if other is not None:
            shares = " then ".join(f"{100 * share:.0f} %" for share in point.sparsities)
            models[f"{point.family}, {shares}"] = (point, other)
    records = tuple(_measured(run, record, trial, model) for trial, model in models.values())
    return Report(f"compress: {headline(record)}", tuple(models), records, chosen=spoken)


def _spread_out(points: list[Trial], count: int) -> list[Trial]:
    """The first, the last and some between."""
    if len(points) <= count:
        return points
    return [points[round(place * (len(points) - 1) / (count - 1))] for place in range(count)]


def _measured(run: Run, record: Trials, trial: Trial, model: nn.Module) -> Record:
    known = run.journal.get("measured", f"{trial.key}-{record.split}")
    if known is not None:
        return Record.from_record(known)
    setting = run.setting
    half = trial.key == "bf16"
    labelled = record.metric == ACCURACY
    data = setting.valid if setting.test is None else setting.test
    plan: Mapping[str, Any] = {
        "family": trial.family,
        "sparsities": list(trial.sparsities),
        "recovery": record.recovery,
    }
    found = measure(
        setting.dense,
        model,
        data if labelled else None,
        example_inputs=setting.example,
        batches=(setting.batch,),
        budget_s=_BUDGET_S,
    )
    # The plan would make the file longer; told is the file that was searched on.
    sizes = replace(found.sparse.sizes, file_bytes=trial.bytes)
    found = replace(found, plan=dict(plan), sparse=replace(found.sparse, sizes=sizes))
    # Its zeros are none: the reason that measure gives for dense kernels is one of masks.
    found = replace(found, notes=tuple(note.replace(f", {_MASKED}", "") for note in found.notes)) if half else found
    run.journal.add("measured", f"{trial.key}-{record.split}", found.to_record())
    return found
