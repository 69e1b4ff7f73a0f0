"""What names a criterion, and what it asks for: evidence, batches, rounds, settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor

from secateur.core.combine import Combination, by_hand, parse_combination
from secateur.core.criteria import CRITERIA
from secateur.core.names import needs, resolve, settings_of, spec_of
from secateur.types import CriterionEntry

__all__ = [
    "CriterionLike",
    "batches_needed",
    "criterion_spec",
    "evidence_needed",
    "regrows",
    "resolve_criterion",
    "rounds_needed",
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
