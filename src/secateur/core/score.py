"""Evidence -> scores of units: run a criterion on each parameter, pool, check."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.core.asked import CriterionLike, resolve_criterion
from secateur.core.combine import merge
from secateur.core.names import needs
from secateur.core.select import check_scores
from secateur.core.unit_channel import Channel, evidence_layout
from secateur.core.unit_rows import ROW_KINDS, unit_rows
from secateur.core.units import unit_name
from secateur.types import CriterionEntry, Evidence, KeyLayout, Layout, Reduce, Tensors, Unit

__all__ = ["score"]


def score(
    criterion: CriterionLike, evidence: Evidence, layout: Layout, unit: Unit, reduce: Reduce | None = None
) -> dict[str, Tensor]:
    """Scores of units, low ones to go first.

    ``s_u = reduce_{i in u} criterion(evidence)_i`` for a criterion of level "weight"; at level "unit" the criterion's
    own score, whose evidence was collected per unit. Of a channel that several layers make, the score is the mean of
    what it comes to in each of them: of scores of weights their sum, norm or maximum there (see ``Channel.pool``), of
    scores of outputs their sum or mean (``Channel.add_up``; Molchanov et al. 2019, arXiv 1906.10771, divide by the
    sharers of a gate). Criteria of level "unit" that read weights get all weights of a unit as one row instead (see
    ``unit_rows``).

    Args:
        criterion: what ``resolve_criterion`` takes.
        evidence: kind -> (parameter name -> tensor); parameters that the layout does not name are not read.
        layout: the parameters, or coupled groups, to score.
        unit: what is removed together.
        reduce: how the scores of one unit's weights become its score; None: as the criterion's row says.

    Returns:
        Parameter or group -> scores in the unit's grid shape; at least float32, float64 for a combination.

    Raises:
        ValueError: for missing evidence, a unit that the criterion is not defined for, wrong shapes, and scores that
            are NaN or infinite.

    Example:
        >>> import torch
        >>> from secateur.core.units import Filter
        >>> from secateur.types import KeyLayout
        >>> weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
        >>> score("l1", {"weight": {"fc": weight}}, {"fc": KeyLayout((2, 2))}, Filter())["fc"].tolist()
        [2.0, 0.5]
    """
    resolved = resolve_criterion(criterion)
    if isinstance(resolved, CriterionEntry):
        if reduce is not None and resolved.level == "unit":
            raise ValueError(
                f"reduce={reduce!r}: criterion {_name(resolved)!r} scores units itself, so there is nothing to reduce; "
                "leave reduce out"
            )
        scores = _score_entry(resolved, evidence, layout, unit, reduce)
    else:
        parts = [(_score_entry(entry, evidence, layout, unit, reduce), weight) for entry, weight in resolved.entries]
        for part, _ in parts:
            check_scores(part)
        scores = merge(parts, resolved.how)
    check_scores(scores)
    return scores


def _score_entry(
    entry: CriterionEntry, evidence: Evidence, layout: Layout, unit: Unit, reduce: Reduce | None
) -> dict[str, Tensor]:
    _check_unit(entry, unit)
    if entry.level == "weight":
        parameters = evidence_layout(unit, layout)
        how = entry.reduce if reduce is None else reduce
        if isinstance(unit, Channel):
            raw = {key: _run(entry, evidence, key, one.shape, "weight") for key, one in parameters.items()}
            return unit.pool(raw, layout, how)
        pooled: dict[str, Tensor] = {}
        for key, one in parameters.items():  # the scores of one parameter at a time
            pooled |= unit.pool({key: _run(entry, evidence, key, one.shape, "weight")}, layout, how)
        return pooled
    if _reads_rows(entry):
        return {key: _run_rows(entry, evidence, key, one, unit) for key, one in layout.items()}
    if isinstance(unit, Channel) and entry.units is not None and not entry.coupled:  # one per output of a producer
        named = [_kind(entry, evidence, name) for name in needs(entry.function)]
        known = dict.fromkeys(member.name for key in layout.values() for member in key.members if member.part == "out")
        outputs = {key: (named[0][key].shape[0],) for key in known if all(key in tensors for tensors in named)}
        raw = {key: _run(entry, evidence, key, shape, "output") for key, shape in outputs.items()}
        return unit.add_up(raw, layout, entry.reduce)
    return {key: _run(entry, evidence, key, unit.grid(one), unit_name(unit)) for key, one in layout.items()}


def _run(entry: CriterionEntry, evidence: Evidence, key: str, shape: tuple[int, ...], what: str) -> Tensor:
    made = entry.function(*[_read(entry, evidence, name, key) for name in needs(entry.function)])
    if tuple(made.shape) != shape:
        raise ValueError(
            f"criterion {_name(entry)!r} gave scores of shape {tuple(made.shape)} for {key!r}, but {shape} is "
            f"needed: one per {what}"
        )
    return made


def _reads_rows(entry: CriterionEntry) -> bool:
    """Whether a criterion of whole units looks at their weights, a row each."""
    names = needs(entry.function)
    rows = [name for name in names if name in ROW_KINDS]
    if entry.units is None or not rows:
        return False
    if len(rows) < len(names):
        others = [name for name in names if name not in ROW_KINDS]
        raise ValueError(
            f"criterion {_name(entry)!r} of level 'unit' reads {', '.join(rows)}, a row per unit, and "
            f"{', '.join(others)}, a number per output of a layer; make two criteria of it and combine them"
        )
    return True


def _run_rows(entry: CriterionEntry, evidence: Evidence, key: str, one: KeyLayout, unit: Unit) -> Tensor:
    rows = {name: unit_rows(name, _kind(entry, evidence, name), key, one, unit) for name in needs(entry.function)}
    for name, found in rows.items():
        if not bool(torch.isfinite(found).all()):
            raise ValueError(
                f"evidence {name!r} of {key!r} holds NaN or infinite values, so {_name(entry)!r} cannot compare its "
                f"units; look for overflow in training, or leave it out with exclude=[{key!r}]"
            )
    made, shape = entry.function(*rows.values()), unit.grid(one)
    if tuple(made.shape) != shape:
        raise ValueError(
            f"criterion {_name(entry)!r} gave scores of shape {tuple(made.shape)} for {key!r}, but {shape} is "
            f"needed: one per {unit_name(unit)}"
        )
    return made


def _read(entry: CriterionEntry, evidence: Evidence, name: str, key: str) -> Tensor:
    found = _kind(entry, evidence, name)
    if key not in found:
        raise ValueError(f"evidence {name!r} has nothing for the parameter {key!r}, which {_name(entry)!r} scores")
    return found[key]


def _kind(entry: CriterionEntry, evidence: Evidence, name: str) -> Tensors:
    found = evidence.get(name)
    if found is None:
        raise ValueError(
            f"criterion {_name(entry)!r} reads the evidence {name!r}, which was not given (there is: "
            f"{', '.join(evidence) or 'none'}); it needs data: {entry.data}"
        )
    return found


def _check_unit(entry: CriterionEntry, unit: Unit) -> None:
    if entry.level == "weight" or entry.units is None or unit_name(unit) in entry.units:
        return
    named = " or ".join(sorted(entry.units))
    raise ValueError(
        f"criterion {_name(entry)!r} gives one score per {named}, because its evidence "
        f"({', '.join(needs(entry.function))}) is collected per {named}; it says nothing about a {unit_name(unit)}. "
        f"Take unit={' or '.join(map(repr, sorted(entry.units)))}, or a criterion of level 'weight' such as "
        "'taylor' or 'l1'"
    )


def _name(entry: CriterionEntry) -> str:
    function = getattr(entry.function, "func", entry.function)
    return getattr(function, "__name__", repr(function))
