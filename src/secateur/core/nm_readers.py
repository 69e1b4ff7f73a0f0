"""A group of units and the layers that read it in groups of n of m: what an order of the units keeps there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.canonical import grouped_shape
from secateur.core.nm_order import Slots, best_order, slots_of
from secateur.core.select import select
from secateur.types import NM, KeyLayout, Layout, Tensors

__all__ = ["Reader", "input_axis", "kept_by_pattern", "order_for", "readers_of", "stood_anew"]


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """A weight that has units of a group along its axis of inputs.

    Attributes:
        name: of the weight.
        places: ``[units, positions of each]`` along that axis.
    """

    name: str
    places: Tensor


def input_axis(key: KeyLayout) -> tuple[int, int]:
    """The axis along which n:m groups lie, and after how many positions they begin anew.

    Example:
        >>> input_axis(KeyLayout((8, 3, 5, 5), kind="conv_transpose", groups=2)), input_axis(KeyLayout((10, 20)))
        ((0, 4), (1, 20))
    """
    return (0 if key.kind == "conv_transpose" else 1), grouped_shape(key)[2]


def kept_by_pattern(scores: Tensor, key: KeyLayout, pattern: NM) -> float:
    """The sum of the scores that n:m keeps of one weight, in float64.

    Example:
        >>> kept_by_pattern(torch.tensor([[3.0, 2.0, 1.0, 0.0]]), KeyLayout((1, 4)), NM(1, 2))
        4.0
    """
    mask = select({"": scores}, {}, within=pattern, layout={"": key})[""]
    return float(scores[mask].sum(dtype=torch.float64))


def stood_anew(scores: Tensor, key: KeyLayout, places: Tensor, order: Tensor) -> Tensor:
    """Scores of a weight whose inputs have changed places.

    Args:
        scores: like the weight.
        key: its layout.
        places: of the units along its axis of inputs.
        order: ``[units]``, the unit in each slot.
    """
    dim, _ = input_axis(key)
    positions = torch.arange(scores.shape[dim])
    positions[places] = places[order]
    return scores.index_select(dim, positions.to(scores.device))


def order_for(
    readers: Sequence[Reader], scores: Tensors, layout: Layout, pattern: NM, *, sweeps: int = 10
) -> tuple[Tensor | None, str]:
    """The order of the units of a group in which the layers that read them keep most.

    Args:
        readers: of the group.
        scores: weight -> scores, like it.
        layout: weight -> layout.
        pattern: n of m.
        sweeps: of the search, at most.

    Returns:
        The unit in each slot; or None and why it is as it is. An order that is given keeps more than the one that is
        there, over all the readers.

    Example:
        >>> scores = {"fc": torch.tensor([[3.0, 2.0, 1.0, 0.0]])}
        >>> reader = Reader("fc", torch.arange(4)[:, None])
        >>> order_for([reader], scores, {"fc": KeyLayout((1, 4))}, NM(1, 2))[0].tolist()
        [0, 2, 1, 3]
    """
    if not readers:
        return None, f"no layer that is scored reads it in groups of {pattern.of}"
    slots, matrix = _in_blocks(readers, scores, layout, pattern)
    if slots is None:
        return None, f"groups of {pattern.of} along {readers[0].name!r} do not hold whole units of it alone"
    order = best_order(matrix, slots, pattern.keep, sweeps=sweeps)
    if bool((order == torch.arange(len(order))).all()):
        return None, _AS_GOOD
    before, after = 0.0, 0.0
    for one in readers:
        now, key = scores[one.name], layout[one.name]
        before += kept_by_pattern(now, key, pattern)
        after += kept_by_pattern(stood_anew(now, key, one.places, order), key, pattern)
    if not after > before:
        return None, _AS_GOOD
    return order, ""


_AS_GOOD = "no better order was found"


def _in_blocks(readers: Sequence[Reader], scores: Tensors, layout: Layout, pattern: NM) -> tuple[Slots | None, Tensor]:
    """The blocks in which most of what is read stands, and the scores there, ``[units, rows]``."""
    found: list[tuple[Slots, list[Tensor]]] = []
    for one in readers:
        dim, length = input_axis(layout[one.name])
        rows = scores[one.name].movedim(dim, 0).flatten(1)
        for places in one.places.unbind(1):
            slots = slots_of(places, length, pattern.of)
            if slots is None or not len(slots.blocks):
                continue
            same = next((parts for known, parts in found if known.same(slots)), None)
            if same is None:
                found.append((slots, same := []))
            same.append(rows[places.to(rows.device)])
    if not found:
        return None, torch.zeros(0)
    slots, parts = max(found, key=lambda each: sum(part.shape[1] for part in each[1]))
    return slots, torch.cat(
        [part.to(parts[0].device, torch.promote_types(part.dtype, torch.float32)) for part in parts], 1
    )


def readers_of(places: Mapping[tuple[str, int], Tensor | None], layout: Layout) -> list[Reader]:
    """Of the members of a group (tensor, axis -> places of its units) those that n:m groups lie along.

    Example:
        >>> places = {("a", 0): torch.arange(2)[:, None], ("b", 1): torch.arange(2)[:, None]}
        >>> [one.name for one in readers_of(places, {"a": KeyLayout((2, 3)), "b": KeyLayout((3, 2))})]
        ['b']
    """
    return [
        Reader(name, found)
        for (name, dim), found in places.items()
        if found is not None and name in layout and input_axis(layout[name])[0] == dim
    ]
