"""Exact top-k: of N units at sparsity S exactly ``floor(S*N + 0.5)`` go.

Low scores go first, and of equal scores the one with the lower flat index; no threshold decides.
The mask equals that of a full stable sort, at the cost of one selection: linear in the number of units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor

from secateur import native
from secateur.core.canonical import to_grouped, to_parameter, wide
from secateur.core.streamed import Streamed, left_over, pieces_of, shape_of
from secateur.core.top import keep_by_passes, keep_top, row_borders
from secateur.types import NM, KeyLayout, Layout, Tensors

__all__ = ["Within", "check_scores", "keep_top", "removed_count", "select", "select_each"]

Within: TypeAlias = Literal["tensor", "row"] | NM
"""Where units compete: in the whole tensor, in each output row, or in each group of n of m."""

_SMALL = 1 << 22
"""Streamed scores of so many units are rather made once than passed over."""

# A sparsity is a rounded number: 0.145 stands for 14.5 of 100, and 1/6 for 0.5 of 3. Products that miss
# their half by less than some last places of the float count as having reached it.
_SLACK = Fraction(1, 2**48)


def removed_count(n: int, sparsity: float) -> int:
    """How many of ``n`` units go: ``floor(sparsity * n + 0.5)``, as if ``sparsity`` had no rounding error.

    The product is taken in exact arithmetic and raised by one part in 2**48, so that a half which the binary form
    of the sparsity just misses is rounded up like any other half.

    Args:
        n: number of units.
        sparsity: share to remove, from 0 to 1.

    Returns:
        A count from 0 to ``n``.

    Raises:
        ValueError: for a sparsity outside 0 to 1.

    Example:
        >>> removed_count(10, 0.9), removed_count(100, 0.145), removed_count(3, 1 / 6)
        (9, 15, 1)
    """
    if not (isinstance(sparsity, int | float) and 0.0 <= sparsity <= 1.0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"sparsity={sparsity!r} is the share of units removed: give a number from 0 to 1, like 0.9")
    exact = Fraction(sparsity) * n * (1 + _SLACK)
    return min(n, math.floor(exact + Fraction(1, 2)))


def check_scores(scores: Tensors) -> None:
    """Refuse scores that cannot be ordered.

    Raises:
        ValueError: naming the parameter and how many of its scores are NaN or infinite.

    Example:
        >>> check_scores({"fc.weight": torch.tensor([1.0, float("nan")])})
        Traceback (most recent call last):
        ValueError: scores of 'fc.weight': 1 of 2 are NaN and 0 infinite, so ...
    """
    for key in scores:
        if all(map(_all_finite, pieces_of(scores, key)())):
            continue
        score = scores[key]
        nan = int(torch.isnan(score).sum())
        infinite = int(torch.isinf(score).sum())
        raise ValueError(
            f"scores of {key!r}: {nan} of {score.numel()} are NaN and {infinite} infinite, so they have no order; "
            "look for NaN or overflow in the weights and the loss, score in float32 instead of half precision, "
            f"or leave the parameter out with exclude=[{key!r}]"
        )


def select(
    scores: Tensors,
    keep: Mapping[str, int],
    *,
    within: Within = "tensor",
    layout: Layout | None = None,
    previous: Tensors | None = None,
) -> dict[str, Tensor]:
    """Unit scores and kept counts -> unit masks.

    ``within="tensor"`` keeps exactly ``keep[key]`` units of each key. ``within="row"`` removes
    ``floor(S * R + 0.5)`` of the R units in each output row, S = 1 - keep / N; where ``previous`` left
    fewer units in a row than it should keep, all of them stay. ``NM`` keeps ``within.keep`` of every
    ``within.of`` along the input axis, for each output and kernel position, and does not read ``keep``.

    Args:
        scores: unit scores, in the unit's grid shape.
        keep: units to keep of each key.
        within: the window in which units compete.
        layout: needed for ``NM``, and for rows of a transposed convolution.
        previous: unit masks so far. Units already removed stay removed.

    Returns:
        Bool unit masks, True = kept, in the grid shape.

    Raises:
        ValueError: for NaN or infinite scores, counts out of range, more to keep than ``previous`` left
            (``within="tensor"``), or a window that the unit does not have.

    Example:
        >>> select({"fc": torch.tensor([[1.0, 4.0], [3.0, 2.0]])}, {"fc": 2})["fc"].tolist()
        [[False, True], [True, False]]
        >>> select({"fc": torch.tensor([[1.0, 4.0], [5.0, 6.0]])}, {"fc": 2}, within="row")["fc"].tolist()
        [[False, True], [False, True]]
    """
    return dict(select_each(scores, keep, within=within, layout=layout, previous=previous))


def select_each(
    scores: Tensors,
    keep: Mapping[str, int],
    *,
    within: Within = "tensor",
    layout: Layout | None = None,
    previous: Tensors | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """As ``select``, key by key, so that no two scores or masks have to stand together."""
    if not isinstance(scores, Streamed):  # those were checked when they were made
        check_scores(scores)
    for key in scores:
        shape = shape_of(scores, key)
        alive = None if previous is None else _alive(key, shape, previous)
        if isinstance(within, NM):
            yield key, _select_nm(key, scores[key], within, _layout_of(key, layout, "n of m"), alive)
            continue
        if not 0 <= keep[key] <= math.prod(shape):
            raise ValueError(f"keep[{key!r}] = {keep[key]}: it counts kept units, from 0 to {math.prod(shape)}")
        if within == "row":
            one = None if layout is None else layout.get(key)
            yield key, _select_rows(key, scores[key], keep[key], one, alive)
        elif within == "tensor":  # pyright: ignore[reportUnnecessaryComparison]
            yield key, _select_tensor(scores, key, keep[key], alive).reshape(shape)
        else:
            raise ValueError(f"within={within!r}: take 'tensor', 'row' or NM(keep=2, of=4)")


def _all_finite(piece: Tensor) -> bool:
    if not piece.numel() or not piece.is_floating_point():
        return True
    return all(map(math.isfinite, map(float, piece.aminmax())))  # both are NaN where one element is


def _alive(key: str, shape: tuple[int, ...], previous: Tensors) -> Tensor:
    mask = previous.get(key)
    if mask is None or mask.shape != shape:
        given = None if mask is None else tuple(mask.shape)
        raise ValueError(f"previous mask of {key!r} has shape {given}, but its units have shape {shape}")
    return mask.bool()


def _select_tensor(scores: Tensors, key: str, keep: int, alive: Tensor | None) -> Tensor:
    """Flat mask; a tensor that stands is handed to ``keep_top``, one that comes in pieces is passed over."""
    if alive is None:
        if isinstance(scores, Streamed) and math.prod(scores.shape(key)) > _SMALL:
            return keep_by_passes(pieces_of(scores, key), math.prod(scores.shape(key)), keep)
        return keep_top(scores[key].flatten(), keep)
    left = left_over(scores, {key: alive})
    count = math.prod(left.shape(key))
    if keep > count:
        raise ValueError(
            f"keep[{key!r}] = {keep}, but the previous masks kept only {count} of {alive.numel()} units and "
            "removed units stay removed: ask for a higher sparsity, or start without previous masks"
        )
    kept = keep_by_passes(pieces_of(left, key), count, keep)
    mask = alive.flatten().to(kept.device, copy=True)
    mask[mask.clone()] = kept
    return mask


def _select_rows(key: str, score: Tensor, keep: int, layout: KeyLayout | None, alive: Tensor | None) -> Tensor:
    # single weights: parameter order; a group has its units in order
    turn = layout is not None and layout.kind != "group" and tuple(score.shape) == layout.shape
    rows = _rows(score, layout if turn else None)
    if rows.shape[1] == 1:
        raise ValueError(
            f"within='row' for {key!r}: each output row has one unit of shape {tuple(score.shape)}, so none competes; "
            "take within='tensor', or a finer unit"
        )
    n, per_row = score.numel(), rows.shape[1]
    removed = (2 * (n - keep) * per_row + n) // (2 * n)  # floor(S * per_row + 1/2) in whole numbers
    rows = wide(rows)
    if alive is not None:
        kept_before = _rows(alive, layout if turn else None)
        rows = rows.masked_fill(~kept_before, -math.inf)
        mask = _keep_top_rows(rows, per_row - removed) & kept_before
    else:
        mask = _keep_top_rows(rows, per_row - removed)
    if turn:
        return to_parameter(mask, cast("KeyLayout", layout))
    return mask.reshape(score.shape)


def _rows(tensor: Tensor, layout: KeyLayout | None) -> Tensor:
    if layout is None:
        return tensor.reshape(tensor.shape[0], -1)
    grouped = to_grouped(tensor, layout)
    return grouped.reshape(grouped.shape[0] * grouped.shape[1], -1)


def _keep_top_rows(rows: Tensor, keep: int) -> Tensor:
    width = rows.shape[1]
    if keep == width:
        return torch.ones_like(rows, dtype=torch.bool)
    if keep == 0:
        return torch.zeros_like(rows, dtype=torch.bool)
    border = row_borders(rows, keep)
    above = rows > border
    ties = rows == border
    missing = keep - above.sum(1, keepdim=True)
    ties_from_the_end = ties.flip(1).cumsum(1).flip(1)
    return above | (ties & (ties_from_the_end <= missing))


def _select_nm(key: str, score: Tensor, pattern: NM, layout: KeyLayout, alive: Tensor | None) -> Tensor:
    if tuple(score.shape) != layout.shape or layout.kind == "group":
        raise ValueError(
            f"{pattern} selects single weights, but the scores of {key!r} have shape {tuple(score.shape)} and the "
            f"parameter {layout.shape}: take unit='weight'"
        )
    score = wide(score)
    if alive is not None:
        score = score.masked_fill(~alive, -math.inf)
    inputs_last = to_grouped(score, layout).movedim(2, -1)
    rows = inputs_last.reshape(-1, inputs_last.shape[-1]).contiguous()
    mask = native.nm_select(rows, pattern.keep, pattern.of).reshape(inputs_last.shape).movedim(-1, 2)
    mask = to_parameter(mask, layout)
    return mask if alive is None else mask & alive


def _layout_of(key: str, layout: Layout | None, why: str) -> KeyLayout:
    if layout is None or key not in layout:
        raise ValueError(f"selecting {why} in {key!r} needs its layout, to know the input axis: give layout=")
    return layout[key]
