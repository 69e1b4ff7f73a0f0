"""One pool of the units of all keys, passed over, never joined."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.core.border import Pool, border
from secateur.core.streamed import dtype_of, pieces_of, shape_of
from secateur.types import Tensors

__all__ = ["global_"]


def global_(scores: Tensors, keep: int, floors: Mapping[str, int], *, normalise: str = "none") -> dict[str, int]:
    """One pool of all units: each key keeps what it has among the ``keep`` highest.

    Scores of different keys have to be comparable, or are made so: ``s / mean |s|``, ``s / max |s|`` or
    ``s / sqrt(sum s^2)``, each over one key. Under protection the top ``floors[key]`` units of each key are kept first,
    and the rest compete for what is left.

    Args:
        scores: unit scores.
        keep: units to keep in all.
        floors: units each key keeps in any case.
        normalise: ``"none"``, ``"mean"``, ``"max"`` or ``"l2"``; allocation ``lamp`` is another way.

    Returns:
        Units kept per key, ``keep`` in all.

    Raises:
        ValueError: for another word.

    Example:
        >>> scores = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, 4.0, 5.0])}
        >>> global_(scores, 3, {"a": 0, "b": 0}), global_(scores, 3, {"a": 1, "b": 1})
        ({'a': 0, 'b': 3}, {'a': 1, 'b': 2})
        >>> global_(scores, 3, {"a": 0, "b": 0}, normalise="mean")
        {'a': 1, 'b': 2}

    Reference:
        Follows from the definition; protection as catalogued for layer collapse.
    """
    if normalise not in ("none", *_SIZES):
        raise ValueError(
            f"global(normalise={normalise!r}): take 'none', {', '.join(map(repr, _SIZES))}, or allocation='lamp', "
            "which weighs each score against those above it"
        )
    if normalise != "none":
        scores = {key: _normalised(score, normalise) for key, score in scores.items()}
    sizes = {key: math.prod(shape_of(scores, key)) for key in scores}
    left = keep - sum(floors[key] for key in sizes)
    assert 0 <= left <= sum(sizes.values()) - sum(floors[key] for key in sizes), (keep, floors, sizes)
    if left in (0, sum(sizes.values()) - sum(floors[key] for key in sizes)):
        return {key: n if left else floors[key] for key, n in sizes.items()}
    pools = {key: Pool(pieces_of(scores, key), floors[key]) for key in sizes}
    least = border(list(pools.values()), left, dtype_of(scores))
    kept, ties = dict(floors), dict[str, int]()
    for key, pool in pools.items():
        above, equal = _above_and_equal(pool, least)
        safe = max(0, floors[key] - above)
        kept[key], ties[key] = max(floors[key], above), max(0, equal - safe)
    missing = keep - sum(kept[key] for key in sizes)
    for key in reversed(list(sizes)):  # of equal scores the first in order go first
        taken = min(missing, ties[key])
        kept[key], missing = kept[key] + taken, missing - taken
    return {key: kept[key] for key in sizes}


_SIZES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda sizes: sizes.mean(),
    "max": lambda sizes: sizes.max(),
    "l2": lambda sizes: sizes.square().sum().sqrt(),
}
"""What the scores of one key are divided by, of their absolute values in float64."""


def _normalised(scores: Tensor, how: str) -> Tensor:
    wide = scores.double()
    size = float(_SIZES[how](wide.abs())) if wide.numel() else 0.0
    return wide / size if size > 0.0 else wide


def _above_and_equal(pool: Pool, least: float) -> tuple[int, int]:
    above = equal = 0
    for piece in pool.passes():
        above += int(torch.count_nonzero(piece > least))
        equal += int(torch.count_nonzero(piece == least))
    return above, equal
