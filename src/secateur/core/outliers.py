"""OWL: layers with more outliers among their scores stay denser."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from secateur.core.apportion import apportion
from secateur.core.streamed import Pieces, pieces_of
from secateur.types import AllocationEntry, Tensors

__all__ = ["ROWS", "outlier_shares", "owl"]


def owl(
    scores: Tensors, sizes: Mapping[str, int], keep: int, *, outlier: float = 5.0, spread: float = 0.08
) -> dict[str, int]:
    """Outlier-weighed layerwise: ``d_l = c + 2 spread (D_l - min D) / (max D - min D)``, ``D_l = share(s > M mean s)``.

    ``c`` is such that the total is exact, densities cut off at 0 and 1; with layers of one size and nothing cut off,
    that is the paper's rule. There the layers of a transformer block share one density, from Wanda's scores; here every
    key has its own, from the scores given.

    Args:
        scores: unit scores, not negative.
        sizes: units per key.
        keep: units to keep in all.
        outlier: M, how many times the mean of its key a score is that counts as an outlier.
        spread: lambda; densities differ by at most twice that.

    Returns:
        Units kept per key, ``keep`` in all.

    Raises:
        ValueError: for negative scores, and hyper-parameters out of range.

    Example:
        >>> flat, peaked = torch.ones(100), torch.ones(100)
        >>> peaked[:5] = 100.0
        >>> owl({"a": flat, "b": peaked}, {"a": 100, "b": 100}, 100, outlier=3.0)
        {'a': 42, 'b': 58}

    Reference:
        Yin, Wu, Zhang, Hsieh, Wang, Jia, Pechenizkiy, Liang, Wang, Liu 2024, arXiv 2310.05175 (from memory, not
        verified).
    """
    if not (outlier > 0 and 0 <= spread <= 0.5):
        raise ValueError(f"owl(outlier={outlier}, spread={spread}): outlier is above 0 (3 to 10), spread 0 to 0.5")
    shares = outlier_shares(scores, outlier)
    low, high = min(shares.values()), max(shares.values())
    raised = {key: 2 * spread * (share - low) / (high - low) if high > low else 0.0 for key, share in shares.items()}
    return apportion(_lifted(raised, sizes, keep), keep, sizes)


def outlier_shares(scores: Tensors, outlier: float) -> dict[str, float]:
    """Per key the share of scores above ``outlier`` times their mean; 0 where there are none.

    Raises:
        ValueError: for negative scores.

    Example:
        >>> outlier_shares({"a": torch.tensor([1.0, 1.0, 1.0, 9.0])}, 2.0)
        {'a': 0.25}
    """
    found: dict[str, float] = {}
    for key in scores:
        passes = pieces_of(scores, key)
        total, count, least = _sums(passes)
        if least < 0:
            raise ValueError(
                f"owl compares scores with their mean, and some of {key!r} are negative: take a criterion without a "
                "sign, such as 'wanda' or 'l1', or allocation='global'"
            )
        limit = outlier * total / max(1, count)
        found[key] = sum(int(torch.count_nonzero(piece > limit)) for piece in passes()) / max(1, count)
    return found


def _sums(passes: Pieces) -> tuple[float, int, float]:
    total, count, least = 0.0, 0, 0.0
    for piece in passes():
        if piece.numel():
            total += float(piece.sum(dtype=torch.float64))
            count += piece.numel()
            least = min(least, float(piece.amin()))
    return total, count, least


def _lifted(raised: Mapping[str, float], sizes: Mapping[str, int], keep: int) -> dict[str, float]:
    """Counts ``size * clip(raised + c, 0, 1)`` of sum ``keep``, c by bisection."""

    def counts(level: float) -> dict[str, float]:
        return {key: n * min(1.0, max(0.0, raised[key] + level)) for key, n in sizes.items()}

    low, high = -1.0, 1.0  # all gone, all kept
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(counts(middle).values()) < keep else (low, middle)
    return counts(high)


ROWS: Mapping[str, AllocationEntry] = {
    "owl": AllocationEntry(
        owl, "density grows with the share of outliers, s > M mean s", "Yin et al. 2024, arXiv 2310.05175"
    ),
}
