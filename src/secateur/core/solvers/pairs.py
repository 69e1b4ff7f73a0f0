"""What a layer gets beside what it got in the dense model: the aim is then what the dense model made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.core.solvers.layer import damped, inverse_of

__all__ = ["Pairs", "aim", "mean_shift", "pair_error", "split_pairs"]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Sums over tokens of products of inputs: ``now`` they are x', in the dense model they were x; float64.

    Attributes:
        now: ``[groups, columns, columns]``, ``sum x' x'^T``.
        cross: ``sum x x'^T``.
        then: ``sum x x^T``.
        sum_now: ``[groups, columns]``, ``sum x'``.
        sum_then: ``sum x``.
        count: tokens, ``[groups]``.
    """

    now: Tensor
    cross: Tensor
    then: Tensor
    sum_now: Tensor
    sum_then: Tensor
    count: Tensor


def split_pairs(gram: Tensor) -> Pairs:
    """The parts of ``sum z z^T`` with ``z = (x', x, 1)``.

    Args:
        gram: ``[groups, 2 columns + 1, 2 columns + 1]``.

    Returns:
        Views of it.

    Example:
        >>> z = torch.tensor([2.0, 3.0, 1.0])
        >>> found = split_pairs(torch.outer(z, z)[None])
        >>> float(found.now), float(found.cross), float(found.then), float(found.sum_then)
        (4.0, 6.0, 9.0, 3.0)
    """
    columns = (gram.shape[-1] - 1) // 2
    new, old = slice(0, columns), slice(columns, 2 * columns)
    return Pairs(
        gram[:, new, new], gram[:, old, new], gram[:, old, old], gram[:, new, -1], gram[:, old, -1], gram[:, -1, -1]
    )


def aim(weight: Tensor, pairs: Pairs, damping: float, shifts: bool) -> tuple[Tensor, Tensor]:
    """Weights V for which ``||(V - W') x'||`` differs from ``||W x - W' x'||`` by a constant, and their damped gram H.

    ``V = W (C + d I) H^-1``, ``H = sum x' x'^T + d I``, ``C = sum x x'^T``, where d is the damping times the mean
    diagonal.

    Args:
        weight: dense, ``[groups, rows, columns]``.
        pairs: of its inputs.
        damping: above 0 where inputs of the pruned model may vanish.
        shifts: whether the layer has a bias that makes up for the means; covariances take the place of the sums.

    Returns:
        V and H.

    Raises:
        ValueError: where H is not positive definite.

    Example:
        >>> z = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 1.0]])  # inputs are half of what they were
        >>> round(float(aim(torch.tensor([[[1.0]]]), split_pairs((z.T @ z)[None]), 0.0, shifts=False)[0]), 6)
        2.0
    """
    now, cross = pairs.now.double(), pairs.cross.double()
    if shifts:
        now = now - pairs.sum_now[:, :, None] * pairs.sum_now[:, None] / pairs.count[:, None, None]
        cross = cross - pairs.sum_then[:, :, None] * pairs.sum_now[:, None] / pairs.count[:, None, None]
    gram = damped(now, damping)
    right = weight.double() @ (cross + (gram - now))
    return torch.stack([one @ inverse_of(square) for one, square in zip(right, gram, strict=True)]), gram


def mean_shift(weight: Tensor, changed: Tensor, pairs: Pairs) -> Tensor:
    """What a bias has to take up, ``mean(W x - W' x')``, ``[groups, rows]``."""
    then, now = ((total / pairs.count[:, None])[..., None] for total in (pairs.sum_then, pairs.sum_now))
    return (weight @ then - changed @ now).squeeze(-1)


def pair_error(weight: Tensor, changed: Tensor, pairs: Pairs, shift: Tensor | None = None) -> float:
    """``||W x - W' x' - shift|| / ||W x||``; 0 where the dense layer's outputs are all zero.

    Args:
        weight: dense, ``[groups, rows, columns]``, float64.
        changed: the same shape.
        pairs: of the inputs.
        shift: ``[groups, rows]``, of the bias.

    Returns:
        A share of the root mean square of the dense outputs, without their bias.
    """
    whole = float(((weight @ pairs.then) * weight).sum())
    off = whole + float(((changed @ pairs.now) * changed).sum()) - 2 * float(((weight @ pairs.cross) * changed).sum())
    if shift is not None:
        mean = mean_shift(weight, changed, pairs)
        off += float((pairs.count[:, None] * (shift.square() - 2 * shift * mean)).sum())
    return math.sqrt(max(off, 0.0) / whole) if whole > 0 else 0.0
