"""Which inputs stand together in groups of n of m, so that the groups lose less.

Units (input channels) stand in slots; every block of m slots keeps the n largest of each row. Shape letters: U units,
R rows (outputs, kernel places, layers that read the units), B blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.assign import assign
from secateur.core.canonical import wide
from secateur.core.typed import chunks

__all__ = ["Slots", "best_order", "kept_score", "slots_of", "spread"]

_AT_ONCE = 1 << 24
"""Scores looked at together."""

_LITTLE = 1e-6
"""Sweeps that gain less than this share of what is kept are idle; after m of them all pairs of places have met."""


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Where units stand.

    Attributes:
        blocks: ``[B, m]``, the slots of each block.
        dense: the other slots, where everything is kept: the tail of an axis.
    """

    blocks: Tensor
    dense: Tensor

    def same(self, other: Slots) -> bool:
        """Whether the same slots stand together."""
        return torch.equal(self.blocks, other.blocks) and torch.equal(self.dense, other.dense)


def slots_of(places: Tensor, length: int, of: int) -> Slots | None:
    """The blocks that the slots of units make along an axis of inputs.

    Args:
        places: ``[U]``, the position of each slot on the axis.
        length: positions after which groups of m begin anew: inputs of one group of a convolution.
        of: m.

    Returns:
        The slots of each block; None where a block also holds something else than m of these slots.

    Example:
        >>> slots_of(torch.arange(6), 6, 4)
        Slots(blocks=tensor([[0, 1, 2, 3]]), dense=tensor([4, 5]))
        >>> slots_of(torch.arange(2, 6), 6, 4) is None
        True
    """
    inside = places % length
    tail = inside >= length - length % of
    block = places // length * (length // of + 1) + inside // of
    blocked = (~tail).nonzero().flatten()
    order = blocked[block[blocked].argsort(stable=True)]
    if len(order) % of:
        return None
    blocks = order.view(-1, of)
    if not bool((block[blocks] == block[blocks[:, :1]]).all()):
        return None
    blocks = blocks.sort(1).values
    return Slots(blocks[blocks[:, 0].argsort()], tail.nonzero().flatten())


def kept_score(scores: Tensor, slots: Slots, keep: int, order: Tensor) -> float:
    """The sum that the blocks keep, in float64.

    Args:
        scores: ``[U, R]``.
        slots: where units stand.
        keep: n of n:m.
        order: ``[U]``, the unit in each slot.

    Example:
        >>> scores = torch.tensor([[3.0], [2.0], [1.0], [0.0]])
        >>> pairs = Slots(torch.tensor([[0, 1], [2, 3]]), torch.tensor([], dtype=torch.int64))
        >>> [kept_score(scores, pairs, 1, torch.tensor(order)) for order in ([0, 1, 2, 3], [0, 2, 1, 3])]
        [4.0, 5.0]
    """
    total = float(scores[order[slots.dense]].sum(dtype=torch.float64))
    size = max(1, _AT_ONCE // max(1, scores.shape[1] * slots.blocks.shape[1]))
    for blocks in chunks(slots.blocks, size):
        total += float(scores[order[blocks]].topk(keep, dim=1).values.sum(dtype=torch.float64))
    return total


def spread(scores: Tensor, slots: Slots) -> Tensor:
    """An order in which large and small stand together: by falling total score the blocks take units in turn.

    Slots in which everything is kept take the largest. Of equal totals the first in order comes first.

    Args:
        scores: ``[U, R]``.
        slots: where units stand.

    Returns:
        ``[U]``, the unit in each slot.

    Example:
        >>> pairs = Slots(torch.tensor([[0, 1], [2, 3]]), torch.tensor([], dtype=torch.int64))
        >>> spread(torch.tensor([[3.0], [2.0], [1.0], [0.0]]), pairs).tolist()
        [0, 2, 1, 3]
    """
    falling = scores.sum(1, dtype=torch.float64).argsort(descending=True, stable=True)
    order = torch.empty_like(falling)
    order[torch.cat([slots.dense, slots.blocks.t().flatten()])] = falling
    return order


def best_order(scores: Tensor, slots: Slots, keep: int, *, sweeps: int = 10) -> Tensor:
    """An order of units that keeps more, and never less, than the one they have.

    The better of the order that is there and ``spread`` is improved place by place: one unit is taken out of every
    block and put back where the sum gains most, ``max sum_b sum_r max(0, s_r - t_br)`` with ``t_br`` the n-th largest
    of the m - 1 that stayed, which is an assignment and is solved exactly. Until sweeps gain next to nothing.

    Args:
        scores: ``[U, R]``, finite.
        slots: where units stand, on the CPU.
        keep: n of n:m.
        sweeps: through all m places, at most.

    Returns:
        ``[U]``, the unit in each slot, on the CPU; the order that is there where none is better.

    Example:
        >>> pairs = Slots(torch.tensor([[0, 1], [2, 3]]), torch.tensor([], dtype=torch.int64))
        >>> scores = torch.tensor([[3.0, 1.0], [2.0, 0.0], [0.0, 2.0], [1.0, 3.0]])
        >>> [kept_score(scores, pairs, 1, order) for order in (torch.arange(4), best_order(scores, pairs, 1))]
        [8.0, 10.0]

    Reference:
        Zhang, Bai, Lin, Zhao, Hou, Cannistraci 2024, ICLR; Pool, Yu 2021, NeurIPS, search by swaps (from memory, not
        verified).
    """
    scores = wide(scores)
    there = torch.arange(len(scores))
    starts = [(kept_score(scores, slots, keep, order), order) for order in (there, spread(scores, slots).cpu())]
    best, order = max(starts, key=lambda start: start[0])  # of equal ones the first
    (count, of), idle = slots.blocks.shape, 0
    for sweep in range(sweeps if count else 0):
        tried = order
        for place in range(of):
            # Other places of the blocks meet in every sweep: what stands where within a block is all the same.
            at = (place + sweep * torch.arange(count)) % of
            tried = _assigned(scores, slots, keep, tried, at)
        gained = kept_score(scores, slots, keep, tried) - best
        if gained > 0.0:  # rounding may make it less
            best, order = best + gained, tried
        idle = idle + 1 if gained <= _LITTLE * abs(best) else 0
        if idle == of:
            break
    return order


def _assigned(scores: Tensor, slots: Slots, keep: int, order: Tensor, at: Tensor) -> Tensor:
    """The order after the units at one place of each block, and in dense slots, changed places as gains most."""
    chosen = torch.zeros_like(slots.blocks, dtype=torch.bool).scatter_(1, at[:, None], value=True)
    staying = slots.blocks[~chosen].view(len(slots.blocks), -1)
    taken = torch.cat([slots.blocks[chosen], slots.dense])
    units = order[taken]
    values = scores[units]
    size = max(1, _AT_ONCE // max(1, scores.shape[1] * staying.shape[1]))
    gains = list[Tensor]()
    for blocks in chunks(staying, size):
        border = scores[order[blocks]].topk(keep, dim=1).values[:, -1]  # [some of B, R]
        sums = values.sum(1) - border.sum(1)[:, None]
        gains.append((torch.cdist(border, values, p=1.0) + sums) / 2.0)  # of max(0, s - t)
    gains.append(values.sum(1).expand(len(slots.dense), -1))
    made = order.clone()
    made[taken] = units[torch.tensor(assign(torch.cat(gains).double().cpu().numpy()))]
    return made
