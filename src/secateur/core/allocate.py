"""Kept counts: run an allocation, then protect layers and respect what is gone already."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from secateur.core.allocations import resolve_allocation
from secateur.core.apportion import apportion
from secateur.core.bit_masks import BitMasks
from secateur.core.names import needs
from secateur.core.select import removed_count
from secateur.core.streamed import left_over
from secateur.core.units import Layer, unit_sizes
from secateur.types import AllocationEntry, Evidence, Layout, Tensors, Unit

__all__ = ["AllocationLike", "allocate"]

AllocationLike = str | AllocationEntry | Callable[..., dict[str, int]]


def allocate(
    allocation: AllocationLike,
    *,
    sparsity: float,
    scores: Tensors,
    layout: Layout,
    unit: Unit,
    evidence: Evidence | None = None,
    min_density: float | None = 0.0,
    previous: Tensors | None = None,
) -> dict[str, int]:
    """How many units each key keeps.

    Of the N units of all keys ``N - floor(S N + 0.5)`` stay (``uniform`` rounds per key). Layer-collapse protection
    keeps at least ``max(1, ceil(min_density * n_l))`` units of each key; what it adds to one key it takes from the
    others, so the total stands. No layer collapses without its bias: of biases none has to stay where min_density is 0.

    Args:
        allocation: name, row, or function of named inputs (see ``allocations``).
        sparsity: share of units to remove, 0 to 1.
        scores: unit scores in the grid shape.
        layout: the keys and their shapes.
        unit: what is removed together. Whole layers are not protected: removing them is their purpose.
        evidence: what an allocation may ask for besides.
        min_density: share of its units that each key keeps at least; 0.0 means one unit (no bias), None no protection.
        previous: unit masks so far; a key keeps no more than they left, and the others take what it cannot hold.

    Returns:
        Units kept per key, in the layout's order.

    Raises:
        ValueError: where protection asks for more than may stay, ``previous`` left less than should stay, an input
            is missing, or a hand-written allocation returns impossible counts.

    Example:
        >>> import torch
        >>> from secateur.core.units import Weight
        >>> from secateur.types import KeyLayout
        >>> layout = {"a": KeyLayout((1, 4)), "b": KeyLayout((2, 4))}
        >>> scores = {"a": torch.full((1, 4), 0.01), "b": torch.ones(2, 4)}
        >>> allocate("global", sparsity=1 / 3, scores=scores, layout=layout, unit=Weight())
        {'a': 1, 'b': 7}
        >>> allocate("global", sparsity=1 / 3, scores=scores, layout=layout, unit=Weight(), min_density=None)
        {'a': 0, 'b': 8}
    """
    sizes = unit_sizes(unit, layout)
    keep = sum(sizes.values()) - removed_count(sum(sizes.values()), sparsity)
    alive = dict(sizes) if previous is None else {key: int(torch.count_nonzero(previous[key])) for key in sizes}
    floors = _floors(layout, sizes, alive, None if isinstance(unit, Layer) else min_density)
    entry = resolve_allocation(allocation)
    if not entry.own_total:  # else sparsity is no share of the units
        keep = _possible(keep, sparsity, sizes, alive, floors)
    left = scores if previous is None else left_over(scores, BitMasks((key, previous[key]) for key in sizes))
    given: dict[str, object] = {
        **(evidence or {}),
        "scores": left,
        "keep": keep,
        "sizes": sizes,
        "sparsity": sparsity,
        "layout": layout,
        "floors": floors,
    }
    counts = _call(entry, given)
    _check_counts(counts, sizes, None if entry.own_total else keep)
    total = max(sum(floors.values()), min(sum(counts.values()), sum(alive.values())))
    return _fit({key: counts[key] for key in sizes}, floors, alive, total)


def _floors(
    layout: Layout, sizes: Mapping[str, int], alive: Mapping[str, int], min_density: float | None
) -> dict[str, int]:
    if min_density is None:
        return dict.fromkeys(sizes, 0)
    if not 0.0 <= min_density <= 1.0:
        raise ValueError(f"min_density={min_density!r}: the least share of units a layer keeps, 0 to 1, or None")
    # Here "at least" is wanted, so round up; but 0.1 of 10 is one, whatever the float says.
    least = {key: 0 if layout[key].kind == "bias" else 1 for key in sizes}
    return {key: min(alive[key], max(least[key], math.ceil(min_density * n - 1e-12 * n))) for key, n in sizes.items()}


def _possible(
    keep: int, sparsity: float, sizes: Mapping[str, int], alive: Mapping[str, int], floors: Mapping[str, int]
) -> int:
    least, most = sum(floors.values()), sum(alive.values())
    if keep < least:
        layers = sum(count > 0 for count in floors.values())
        raise ValueError(
            f"sparsity={sparsity} leaves {keep} of {sum(sizes.values())} units, but layer-collapse protection keeps at "
            f"least {least} (one in each of {layers} layers, or min_density): take a lower sparsity, a smaller "
            "min_density, or min_density=None for no protection"
        )
    # Counts rounded key by key may have removed up to one unit per key more than the total says.
    if keep > most + len(sizes):
        raise ValueError(
            f"sparsity={sparsity} keeps {keep} of {sum(sizes.values())} units, but the previous masks left only {most} "
            "and removed units stay removed: ask for a higher sparsity, or start without previous masks"
        )
    return min(keep, most)


def _call(entry: AllocationEntry, given: Mapping[str, object]) -> dict[str, int]:
    names = needs(entry.function)
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(
            f"allocation {getattr(entry.function, '__name__', entry.function)!r} asks for {missing}, but there is only "
            f"{sorted(given)}: give the rest as evidence"
        )
    return entry.function(**{name: given[name] for name in names})


def _check_counts(counts: Mapping[str, int], sizes: Mapping[str, int], keep: int | None) -> None:
    if set(counts) != set(sizes):
        raise ValueError(f"the allocation gave counts for {sorted(counts)}, but the keys are {sorted(sizes)}")
    for key, count in counts.items():
        if type(count) is not int or not 0 <= count <= sizes[key]:
            raise ValueError(f"the allocation keeps {count!r} units of {key!r}: a whole number from 0 to {sizes[key]}")
    if keep is not None and abs(sum(counts.values()) - keep) > len(sizes):
        raise ValueError(
            f"the allocation keeps {sum(counts.values())} units in all, but {keep} are wanted; it may differ by "
            "rounding, one unit per key"
        )


def _fit(counts: dict[str, int], floors: Mapping[str, int], ceilings: Mapping[str, int], total: int) -> dict[str, int]:
    """Bring counts between floors and ceilings and to the total, each key moving in proportion to its room."""
    inside = {key: min(ceilings[key], max(floors[key], count)) for key, count in counts.items()}
    missing = total - sum(inside.values())
    if not missing:
        return inside
    if missing > 0:
        room = {key: ceilings[key] - count for key, count in inside.items()}
    else:
        room = {key: count - floors[key] for key, count in inside.items()}
    whole = sum(room.values())
    moved = apportion({key: abs(missing) * space / whole for key, space in room.items()}, abs(missing), room)
    sign = 1 if missing > 0 else -1
    return {key: count + sign * moved[key] for key, count in inside.items()}
