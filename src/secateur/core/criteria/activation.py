"""Criteria that read activations, collected per output channel of a layer over batches, images, positions and tokens.

Evidence: ``activation_mean`` = mean |a|, ``activation_signed`` = mean a, ``activation_zeros`` = share of zeros, where
``activation_pooled`` [channels, examples] = mean over positions, ``activation_rank`` = mean rank of feature maps, where
``a`` is the output of the activation function that follows the layer, however it is called; where none follows, the
layer's own output behind bias and norm. Functions without exact zeros (GELU, SiLU, tanh, the layer's own output) count
``|a|`` at most ``0.05`` times the root mean square of the layer's activations in the first batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.types import CriterionEntry

__all__ = ["ROWS", "activation_entropy", "apoz", "hrank", "mean_activation"]


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


def apoz(activation_zeros: Tensor, *, eps: float | None = None) -> Tensor:
    """Average percentage of zeros, ``s_c = 1 - mean [|a_c| <= eps]``: channels with the most zeros go first.

    Args:
        activation_zeros: share of zeros among the activations, one per channel; what counts as zero is decided where
            they are read.
        eps: largest size that counts as zero, 0 or more. None: exactly zero behind ReLU and its like, and where a
            function makes no zeros (GELU, SiLU) 5 % of the root mean square of the layer's activations in the first
            batch. Where activations are read, an ``eps`` below 0, or one that is no number, is refused.

    Returns:
        Scores, one per channel, at least float32.

    Example:
        >>> import torch
        >>> apoz(torch.tensor([0.75, 0.25, 1.0])).tolist()
        [0.25, 0.75, 0.0]

    The paper removes what has more zeros than the layer's mean and one standard deviation, a few layers at a time,
    and trains on (from memory, not verified): that is a sparsity per layer, found from these scores.

    Reference:
        Hu, Peng, Tai, Tang 2016, arXiv 1607.03250.
    """
    return 1.0 - wide(activation_zeros)


def activation_entropy(
    activation_pooled: Tensor, *, bins: int = 100, range: str = "layer", prune: str = "low"
) -> Tensor:
    """Entropy of pooled activations, ``s_c = -sum_b p_b ln p_b``: channels that say the same to all examples go first.

    ``p`` is the histogram, over examples, of the channel's mean over positions. A dead channel has entropy 0.
    An article that prunes high entropies means weights (Luo and Wu drop the lowest); ``prune="high"`` turns this one.

    Args:
        activation_pooled: mean of the activation over positions, [channels, examples].
        bins: of the histogram, equally wide.
        range: from the least to the greatest value of the ``"layer"``, or of each channel, ``"unit"``, which no scale
            and no shift of a channel changes.
        prune: ``"low"`` or ``"high"`` entropies go first.

    Returns:
        Scores, one per channel, in nats (minus that for ``prune="high"``), at least float32.

    Raises:
        ValueError: for no bins, and other words.

    Example:
        >>> import torch
        >>> same, spread = torch.zeros(4), torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> [round(score, 3) for score in activation_entropy(torch.stack([same, spread]), bins=4).tolist()]
        [0.0, 1.386]

    Reference:
        Luo, Wu 2017, arXiv 1706.05791; formula and 100 bins from memory, not verified.
    """
    if bins != int(bins) or bins < 1:
        raise ValueError(f"activation_entropy(bins={bins!r}): a whole number from 1")
    if range not in ("layer", "unit") or prune not in ("low", "high"):
        raise ValueError(
            f"activation_entropy(range={range!r}, prune={prune!r}): take range 'layer' or 'unit', prune 'low' or 'high'"
        )
    values = wide(activation_pooled).double()
    low = values.amin(1, keepdim=True) if range == "unit" else values.amin()
    high = values.amax(1, keepdim=True) if range == "unit" else values.amax()
    width = torch.where(high > low, high - low, torch.ones_like(high))
    places = ((values - low) / width * int(bins)).long().clamp(max=int(bins) - 1)
    counts = torch.zeros(values.shape[0], int(bins), dtype=torch.float64, device=values.device)
    shares = counts.scatter_add_(1, places, torch.ones_like(values)) / values.shape[1]
    tiny = torch.finfo(torch.float64).tiny
    entropy = 0.0 - (shares * shares.clamp(min=tiny).log()).sum(1)
    return (-entropy if prune == "high" else entropy).to(wide(activation_pooled).dtype)


def hrank(activation_rank: Tensor) -> Tensor:
    """Rank of feature maps, ``s_c = mean over images of rank(a_c)``: channels with maps of low rank go first.

    Ranks tie massively, and ties go by position; maps without positions (behind linear layers) have rank 0 or 1, which
    says little.

    Args:
        activation_rank: mean over images of the rank of a channel's map, one per channel.

    Returns:
        Scores, one per channel, at least float32.

    Example:
        >>> import torch
        >>> hrank(torch.tensor([1.0, 2.0, 0.0])).tolist()
        [1.0, 2.0, 0.0]

    Reference:
        Lin, Ji, Wang, Zhang, Zhang, Tian, Shao 2020, arXiv 2002.10179.
    """
    return wide(activation_rank)


_PER_OUTPUT = frozenset({"channel", "filter"})

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
        "1 - share of zeros (up to eps) in each channel",
        "Hu et al. 2016, arXiv 1607.03250",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "activation_entropy": CriterionEntry(
        activation_entropy,
        "unit",
        "mean",
        "batches",
        "entropy of pooled activations over examples",
        "Luo, Wu 2017, arXiv 1706.05791",
        units=_PER_OUTPUT,
        batches=10,
    ),
    "hrank": CriterionEntry(
        hrank,
        "unit",
        "mean",
        "batches",
        "mean rank of each channel's feature map",
        "Lin et al. 2020, arXiv 2002.10179",
        units=_PER_OUTPUT,
        batches=5,
    ),
}
