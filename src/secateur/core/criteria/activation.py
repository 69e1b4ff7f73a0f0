"""Criteria that read activations, collected per output channel of a layer over batches, images, positions and tokens.

Evidence: ``activation_mean`` = mean |a|, ``activation_signed`` = mean a, ``activation_zeros`` = share of zeros, where
``a`` is the output of the activation function that follows the layer, however it is called; where none follows, the
layer's own output behind bias and norm. Functions without exact zeros (GELU, SiLU, tanh, the layer's own output) count
``|a|`` at most ``0.05`` times the root mean square of the layer's activations in the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "apoz", "mean_activation"]


def mean_activation(activation_mean: Tensor) -> Tensor:
    """Mean activation, ``s_c = mean |a_c|`` over samples and positions: channels that say little go first.

    Args:
        activation_mean: mean over data and positions of the absolute activation, one per channel.

    Returns:
        Scores, one per channel, at least float32.

    Example:
        >>> import torch
        >>> mean_activation(torch.tensor([0.75, 1.5, 0.0])).tolist()
        [0.75, 1.5, 0.0]

    Reference:
        A baseline of Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv 1611.06440; there without the absolute value,
        which changes nothing behind a ReLU.
    """
    return wide(activation_mean)


def apoz(activation_zeros: Tensor) -> Tensor:
    """Average percentage of zeros, ``s_c = 1 - mean [a_c = 0]``: channels with the most zeros go first.

    Args:
        activation_zeros: share of zeros among the activations, one per channel.

    Returns:
        Scores, one per channel, at least float32.

    Example:
        >>> import torch
        >>> apoz(torch.tensor([0.75, 0.25, 1.0])).tolist()
        [0.25, 0.75, 0.0]

    Reference:
        Hu, Peng, Tai, Tang 2016, arXiv 1607.03250.
    """
    return 1.0 - wide(activation_zeros)


ROWS: Mapping[str, CriterionEntry] = {
    "mean_activation": CriterionEntry(
        mean_activation,
        "unit",
        "mean",
        "batches",
        "mean |a| of each channel's activation",
        "Molchanov et al. 2017, arXiv 1611.06440",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "apoz": CriterionEntry(
        apoz,
        "unit",
        "mean",
        "batches",
        "1 - share of zeros of each channel's activation",
        "Hu et al. 2016, arXiv 1607.03250",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
}
