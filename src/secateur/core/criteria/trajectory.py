"""Criteria that compare the weight with its initial value, or follow it through training.

The mask criteria of Zhou et al. 2019, arXiv 1905.01067, with w_f the weight now and w_i the initial one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = [
    "ROWS",
    "large_final",
    "large_init",
    "large_init_large_final",
    "magnitude_increase",
    "movement",
    "movement_sanh",
    "small_final",
    "small_init",
    "small_init_small_final",
]

By: TypeAlias = Literal["size", "rank"]


def large_final(weight: Tensor) -> Tensor:
    """Keep what ends large, ``s = |w_f|``.

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> large_final(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return wide(weight).abs()


def small_final(weight: Tensor) -> Tensor:
    """Keep what ends small, ``s = -|w_f|``: a control.

    Args:
        weight: parameter, any shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> small_final(torch.tensor([3.0, -4.0])).tolist()
        [-3.0, -4.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return -wide(weight).abs()


def large_init(init: Tensor) -> Tensor:
    """Keep what starts large, ``s = |w_i|``.

    Args:
        init: initial parameter, any shape.

    Returns:
        Scores like ``init``, at least float32.

    Example:
        >>> large_init(torch.tensor([3.0, -4.0])).tolist()
        [3.0, 4.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return wide(init).abs()


def small_init(init: Tensor) -> Tensor:
    """Keep what starts small, ``s = -|w_i|``: a control.

    Args:
        init: initial parameter, any shape.

    Returns:
        Scores like ``init``, at least float32.

    Example:
        >>> small_init(torch.tensor([3.0, -4.0])).tolist()
        [-3.0, -4.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return -wide(init).abs()


def large_init_large_final(weight: Tensor, init: Tensor, *, alpha: float = 1.0, by: By = "size") -> Tensor:
    """Keep what starts and ends large, ``s = min(alpha |w_f|, |w_i|)``.

    ``by="rank"`` is the paper's code: what is in both of two top-p masks of the layer, p such that the wanted number
    is; as a score ``min(rank |w_f|, rank |w_i|)``, from 0 to 1. ``alpha`` is from the paper's text (from memory,
    not verified).

    Args:
        weight: parameter, any shape.
        init: initial parameter, same shape.
        alpha: balance of the two; ranks have none.
        by: ``"size"`` or ``"rank"`` (of equal sizes the first in order ranks lower).

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for another word, and for ``alpha`` with ranks.

    Example:
        >>> large_init_large_final(torch.tensor([3.0, -4.0]), torch.tensor([5.0, 1.0])).tolist()
        [3.0, 1.0]
        >>> large_init_large_final(torch.tensor([3.0, -4.0, 5.0]), torch.tensor([5.0, 1.0, 2.0]), by="rank").tolist()
        [0.0, 0.0, 0.5]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return _both(wide(weight).abs(), wide(init).abs(), alpha, by, torch.minimum)


def small_init_small_final(weight: Tensor, init: Tensor, *, alpha: float = 1.0, by: By = "size") -> Tensor:
    """Keep what starts and ends small, ``s = -max(alpha |w_f|, |w_i|)``: a control.

    Args:
        weight: parameter, any shape.
        init: initial parameter, same shape.
        alpha: balance of the two (from memory, not verified).
        by: ``"size"``, or ``"rank"`` as in the paper's code: what is in both of two bottom-p masks.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for another word, and for ``alpha`` with ranks.

    Example:
        >>> small_init_small_final(torch.tensor([3.0, -4.0]), torch.tensor([5.0, 1.0])).tolist()
        [-5.0, -4.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return -_both(wide(weight).abs(), wide(init).abs(), alpha, by, torch.maximum)


def magnitude_increase(weight: Tensor, init: Tensor) -> Tensor:
    """Keep what grew, ``s = |w_f| - |w_i|``.

    Args:
        weight: parameter, any shape.
        init: initial parameter, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> magnitude_increase(torch.tensor([3.0, -4.0]), torch.tensor([5.0, 1.0])).tolist()
        [-2.0, 3.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return wide(weight).abs() - wide(init).abs()


def movement(weight: Tensor, init: Tensor) -> Tensor:
    """Keep what moved far, ``s = |w_f - w_i|``; the score of movement pruning is ``movement_sanh``.

    Args:
        weight: parameter, any shape.
        init: initial parameter, same shape.

    Returns:
        Scores like ``weight``, at least float32.

    Example:
        >>> movement(torch.tensor([3.0, -4.0]), torch.tensor([5.0, 1.0])).tolist()
        [2.0, 5.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    return (wide(weight) - wide(init)).abs_()


def movement_sanh(movement: Tensor) -> Tensor:
    """Movement pruning, ``s = -sum_t g_t w_t`` over the steps of training: keep what moves away from zero.

    Args:
        movement: the sum, collected during training, shape of the parameter.

    Returns:
        Signed scores like the parameter, at least float32.

    Example:
        >>> movement_sanh(torch.tensor([-0.29, -0.05])).argmin().item()
        0

    Reference:
        Sanh, Wolf, Rush 2020, arXiv 2005.07683.
    """
    return wide(movement)


def _both(final: Tensor, init: Tensor, alpha: float, by: By, extreme: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    if by not in ("size", "rank"):
        raise ValueError(f"by={by!r}: take 'size' or 'rank'")
    if by == "size":
        return extreme(alpha * final, init)
    if alpha != 1.0:
        raise ValueError(f"alpha={alpha} balances sizes, and by='rank' compares ranks: leave alpha out")
    return extreme(_ranks(final), _ranks(init))


def _ranks(sizes: Tensor) -> Tensor:
    """0 for the smallest of a tensor to 1; in float64, which tells all of them apart."""
    order = sizes.flatten().argsort(stable=True)
    ranks = torch.empty(order.numel(), dtype=torch.float64, device=sizes.device)
    ranks[order] = torch.arange(order.numel(), dtype=torch.float64, device=sizes.device)
    return (ranks / max(1, order.numel() - 1)).reshape(sizes.shape)


_ZHOU = "Zhou et al. 2019, arXiv 1905.01067"

ROWS: Mapping[str, CriterionEntry] = {
    "large_final": CriterionEntry(large_final, "weight", "mean", "none", "|w|", _ZHOU, elementwise=True),
    "small_final": CriterionEntry(small_final, "weight", "mean", "none", "-|w|", _ZHOU, elementwise=True),
    "large_init": CriterionEntry(large_init, "weight", "mean", "init", "|w_init|", _ZHOU, elementwise=True),
    "small_init": CriterionEntry(small_init, "weight", "mean", "init", "-|w_init|", _ZHOU, elementwise=True),
    "large_init_large_final": CriterionEntry(
        large_init_large_final, "weight", "mean", "init", "min(alpha |w|, |w_init|)", _ZHOU, elementwise=True
    ),
    "small_init_small_final": CriterionEntry(
        small_init_small_final, "weight", "mean", "init", "-max(alpha |w|, |w_init|)", _ZHOU, elementwise=True
    ),
    "magnitude_increase": CriterionEntry(
        magnitude_increase, "weight", "mean", "init", "|w| - |w_init|", _ZHOU, elementwise=True
    ),
    "movement": CriterionEntry(movement, "weight", "mean", "init", "|w - w_init|", _ZHOU, elementwise=True),
    "movement_sanh": CriterionEntry(
        movement_sanh,
        "weight",
        "mean",
        "training",
        "-sum_t g_t w_t",
        "Sanh et al. 2020, arXiv 2005.07683",
        elementwise=True,
    ),
}
