"""Evidence -> scores of units: run a criterion on each parameter, pool, check."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from secateur.core.combine import Combination, by_hand, merge, parse_combination
from secateur.core.criteria import CRITERIA
from secateur.core.names import needs, resolve, settings_of, spec_of
from secateur.core.select import check_scores
from secateur.core.unit_channel import Channel, evidence_layout
from secateur.core.unit_rows import ROW_KINDS, unit_rows
from secateur.core.units import unit_name
from secateur.types import CriterionEntry, Evidence, KeyLayout, Layout, Reduce, Tensors, Unit

__all__ = [
    "CriterionLike",
    "batches_needed",
    "criterion_spec",
    "evidence_needed",
    "regrows",
    "resolve_criterion",
    "rounds_needed",
    "score",
    "settings_needed",
]

CriterionLike: TypeAlias = str | CriterionEntry | Combination | Callable[..., Tensor]
"""Whatever names a criterion: a spec, a row, a combination, or a function of evidence."""


def resolve_criterion(value: CriterionLike) -> CriterionEntry | Combination:
    """The table row, or the combination, that a value stands for.

    A bare function becomes a row of level "weight" with the mean as its reduction.

    Args:
        value: name, spec such as ``"large_init_large_final(alpha=0.5)"``, row, combination, or function.

    Returns:
        A row of the table of criteria with its hyper-parameters bound, or a combination.

    Raises:
        ValueError: for unknown names and hyper-parameters.

    Example:
        >>> resolve_criterion("snip").data
        'batches'
        >>> resolve_criterion(lambda weight: -weight).level
        'weight'
    """
    if isinstance(value, Combination):
        return value
    if isinstance(value, str) and value.strip().startswith("combine("):
        return parse_combination(value)
    return resolve("criterion", CRITERIA, value, by_hand)


def criterion_spec(value: CriterionLike) -> str:
    """The string that ``resolve_criterion`` turns back into the same criterion.

    Raises:
        ValueError: for a function without an importable name.

    Example:
        >>> criterion_spec("combine(l1=1.0)")
        "combine(l1=1.0, how='rank')"
    """
    if isinstance(value, Combination):
        return value.spec
    if isinstance(value, str) and value.strip().startswith("combine("):
        return parse_combination(value).spec
    return spec_of("criterion", CRITERIA, value)


def evidence_needed(criterion: CriterionLike) -> tuple[str, ...]:
    """Names of the evidence that a criterion reads, each once.

    Example:
        >>> evidence_needed("combine(l1=1.0, snip=2.0)")
        ('weight', 'grad_abs')
    """
    resolved = resolve_criterion(criterion)
    if isinstance(resolved, CriterionEntry):
        return needs(resolved.function)
    return tuple(dict.fromkeys(name for entry, _ in resolved.entries for name in needs(entry.function)))


def batches_needed(criterion: CriterionLike) -> int:
    """How many batches a criterion reads unless the user says otherwise; the most of a combination's parts.

    Example:
        >>> batches_needed("snip"), batches_needed("taylor")
        (1, 10)
    """
    resolved = resolve_criterion(criterion)
    if isinstance(resolved, CriterionEntry):
        return resolved.batches
    return max(entry.batches for entry, _ in resolved.entries)


def rounds_needed(criterion: CriterionLike) -> int:
    """How many rounds a criterion takes unless the user says otherwise; the most of a combination's parts.

    Example:
        >>> rounds_needed("snip"), rounds_needed("synflow")
        (1, 100)
    """
    return max(entry.rounds for entry in _rows(criterion))


def regrows(criterion: CriterionLike) -> bool:
    """Whether what a round removed competes again in the next; a combination, if all of its parts say so.

    Example:
        >>> regrows("iter_snip"), regrows("force")
        (False, True)
    """
    return all(entry.regrow for entry in _rows(criterion))


def settings_needed(criterion: CriterionLike) -> dict[str, Any]:
    """The hyper-parameters of a criterion, which those that collect its evidence see too.

    Raises:
        ValueError: where parts of a combination give one name two values.

    Example:
        >>> settings_needed("grasp(temperature=100.0)")
        {'temperature': 100.0}
    """
    found: dict[str, Any] = {}
    for entry in _rows(criterion):
        for name, value in settings_of(entry.function).items():
            if found.setdefault(name, value) != value:
                raise ValueError(
                    f"{name}={found[name]!r} and {name}={value!r} in one combination: evidence is collected once, so "
                    "give all parts the same value"
                )
    return found


def _rows(criterion: CriterionLike) -> tuple[CriterionEntry, ...]:
    resolved = resolve_criterion(criterion)
    return (resolved,) if isinstance(resolved, CriterionEntry) else tuple(entry for entry, _ in resolved.entries)


def score(
    criterion: CriterionLike, evidence: Evidence, layout: Layout, unit: Unit, reduce: Reduce | None = None
) -> dict[str, Tensor]:
    """Scores of units, low ones to go first.

    ``s_u = reduce_{i in u} criterion(evidence)_i`` for a criterion of level "weight"; at level "unit" the criterion's
    own score, whose evidence was collected per unit. Of a channel that several layers make, the scores of level
    "weight" are reduced over the weights of all of them, and those of level "unit" add up: so do the changes of the
    loss that they stand for (Molchanov et al. 2019, arXiv 1906.10771). Criteria of level "unit" that read weights get
    all weights of a unit as one row instead (see ``unit_rows``).

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
        run = partial(_run, entry, evidence)  # the scores of one parameter at a time
        return {k: unit.pool({k: run(k, one.shape, "weight")}, layout, how)[k] for k, one in parameters.items()}
    if _reads_rows(entry):
        return {key: _run_rows(entry, evidence, key, one, unit) for key, one in layout.items()}
    # Evidence that filters have too is one number per output of a producer; the rest is collected per coupled unit.
    if isinstance(unit, Channel) and entry.units is not None and "filter" in entry.units:
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
