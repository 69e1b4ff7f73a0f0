"""Criteria without data that compare the units of a layer with each other: what another unit does too can go.

They read whole units, a row each (``core/unit_rows``): ``weight`` ``[groups, units, fan-in]``, ``bias``
``[groups, units, producers]``, ``outgoing`` ``[1, units, fan-out]``. Greedy ones return the order of removal as the
score: of two duplicates exactly one goes, which no score of single units could say. They hold units^2 distances of
one layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.core.canonical import wide
from secateur.core.merging import equal_partners, parallel_partners
from secateur.core.nearest import NOISE, Nearest, in_order, product_blocks, squared_distances
from secateur.types import CriterionEntry

__all__ = ["ROWS", "cosine", "geometric_median", "srinivas_babu", "weight_correlation"]

_FIRST = -1.0
"""Score of rows without a direction: below all distances."""
_LAST = 3.0
"""Score of the row that is left over: above all distances, which end at 2."""


def geometric_median(weight: Tensor) -> Tensor:
    """Filter pruning via geometric median, ``s_a = sum_b ||v_a - v_b||_2`` over the units b of the same layer.

    What lies nearest to all others is most easily replaced and goes first. The paper takes the same share of each
    layer (``allocation="uniform"``): the sums of layers of different width and size do not compare. Distances are
    between the weights with their signs; some code takes their absolute values.

    Args:
        weight: ``[groups, units, fan-in]``.

    Returns:
        Scores ``[units]`` over all groups, at least float32.

    Example:
        >>> geometric_median(torch.tensor([[[1.0], [2.0], [5.0]]])).tolist()
        [5.0, 4.0, 7.0]

    Reference:
        He, Liu, Wang, Hu, Yang 2019, arXiv 1811.00250.
    """
    rows = weight.double()
    total = rows.new_zeros(rows.shape[0] * rows.shape[1])
    for first, last, squares in squared_distances(rows):
        distances = squares.sqrt_()
        total[first:last] += distances.sum(1)
        total[last:] += distances[:, last - first :].sum(0)
    return total.to(wide(weight).dtype)


def cosine(weight: Tensor, bias: Tensor, *, absolute: bool = False, with_bias: bool = False) -> Tensor:
    """Cosine distance, greedily by pairs, ``D_ab = 1 - v_a . v_b / (||v_a|| ||v_b||)``; the score is D at removal.

    Again and again the nearest pair loses its smaller row (of equal ones the later), so that of two duplicates one
    goes. Rows of zeros go first (-1), the one left over last (3). Anti-parallel rows (D = 2) are far apart, they
    complement each other. Rows are weights as they stand; where units are merged (``merge=True``), with the batch norm
    behind the layer folded in.

    Args:
        weight: ``[groups, units, fan-in]``.
        bias: ``[groups, units, producers]``; read with ``with_bias`` alone.
        absolute: ``1 - |cos|``: for linear and odd activations only. ``merge=True`` hands on positive multiples alone.
        with_bias: the bias is part of the row.

    Returns:
        Scores ``[units]``, all different, at least float32.

    Example:
        >>> rows = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
        >>> cosine(rows, torch.zeros(1, 3, 0)).tolist()
        [0.0, 3.0, 1.0]

    Reference:
        No paper of its own known; nearest is Srinivas, Babu 2015, arXiv 1507.06149.
    """
    rows = torch.cat([weight, bias.to(weight)], 2) if with_bias else weight
    return _greedy(rows.double(), wide(weight).dtype, absolute)


def weight_correlation(weight: Tensor) -> Tensor:
    """Pearson correlation of weights, greedily by pairs, ``D_ab = 1 - r_ab``; the score is D at removal.

    ``r`` is the cosine after each row's mean is taken away, so other pairs than with ``cosine`` may win. Again and
    again the nearest pair loses the row that varies less (of equal ones the later). Constant rows go first (-1), the
    one left over last (3).

    Args:
        weight: ``[groups, units, fan-in]``.

    Returns:
        Scores ``[units]``, all different, at least float32.

    Example:
        >>> weight_correlation(torch.tensor([[[1.0, 2.0], [8.0, 6.0], [5.0, 5.5]]])).tolist()
        [2.0, 3.0, 0.0]

    Reference:
        Pearson's r; of weights instead of the activations of Babaeizadeh, Smaragdis, Campbell 2016, arXiv 1611.06211.
    """
    rows = weight.double()
    constant = rows.amax(2, keepdim=True) == rows.amin(2, keepdim=True)
    return _greedy((rows - rows.mean(2, keepdim=True)).masked_fill(constant, 0.0), wide(weight).dtype, absolute=False)


def srinivas_babu(weight: Tensor, bias: Tensor, outgoing: Tensor) -> Tensor:
    """Data-free neuron removal, ``s_ab = <a_b^2> ||W_a - W_b||^2``; the score is s at removal of b.

    W is the row with its bias, ``a_b`` the outgoing weights, ``<>`` their mean. Again and again the b of the smallest s
    goes (of equal ones the later) and a takes its outgoing weights over, ``a_a += a_b``, which later saliencies see.
    ``merge=True`` does that to the network, and W is then what a batch norm behind the layer makes of it; else the
    weights as they stand. The formula is from memory, not verified.

    Args:
        weight: ``[1, units, fan-in]``.
        bias: ``[1, units, producers]``.
        outgoing: ``[1, units, fan-out]``.

    Returns:
        Scores ``[units]``, all different, at least float32; a saliency below one before it is raised to that.

    Example:
        >>> rows, out = torch.tensor([[[1.0], [1.0], [3.0]]]), torch.tensor([[[1.0], [2.0], [1.0]]])
        >>> srinivas_babu(rows, torch.zeros(1, 3, 0), out).argsort().tolist()
        [1, 2, 0]

    Reference:
        Srinivas, Babu 2015, arXiv 1507.06149.
    """
    rows = torch.cat([weight, bias.to(weight)], 2).double()
    out: NDArray[np.float64] = outgoing[0].to("cpu", torch.float64, copy=True).numpy()
    n = rows.shape[1]
    near = Nearest(squared_distances(rows), n, wide(weight).dtype)
    squares = np.square(out).mean(1)
    here, values = np.ones(n, dtype=bool), [0.0] * n
    order: list[int] = []
    for step in range(n - 1):
        saliency = np.where(here, squares * np.where(here, near.distance, 0.0), np.inf)
        gone = n - 1 - int(saliency[::-1].argmin())
        values[step] = float(saliency[gone])
        order.append(gone)
        heir, here[gone] = int(near.of[gone]), False
        out[heir] += out[gone]
        squares[heir] = np.square(out[heir]).mean()
        near.remove(gone)
    order.append(int(here.argmax()))
    return in_order(order, values, wide(weight).dtype).to(weight.device)


def _greedy(rows: Tensor, dtype: torch.dtype, absolute: bool) -> Tensor:
    n = rows.shape[0] * rows.shape[1]
    norms = rows.square().sum(2).sqrt().flatten()
    unit = rows / norms.reshape(rows.shape[0], -1, 1).clamp(min=torch.finfo(torch.float64).tiny)
    empty = norms == 0

    def distances() -> Iterator[tuple[int, int, Tensor]]:
        for first, last, products in product_blocks(unit):
            made = 1 - (products.abs() if absolute else products)
            made[made <= NOISE] = 0
            made[empty[first:last]] = torch.inf
            made[:, empty[first:]] = torch.inf
            yield first, last, made

    near = Nearest(distances(), n, dtype)
    size: NDArray[np.float64] = norms.cpu().numpy()
    order = [at for at in range(n) if size[at] == 0]
    values = [_FIRST] * len(order)
    while len(order) < n - 1:
        one = int(near.distance.argmin())
        low, high = sorted((one, int(near.of[one])))
        values.append(float(near.distance[one]))
        order.append(low if size[low] < size[high] else high)
        near.remove(order[-1])
    if len(order) < n:
        order += set(range(n)) - set(order)
        values.append(_LAST)
    return in_order(order, values, dtype).to(rows.device)


_FEW = frozenset({"channel", "filter"})

ROWS: Mapping[str, CriterionEntry] = {
    "geometric_median": CriterionEntry(
        geometric_median,
        "unit",
        "mean",
        "none",
        "sum of distances to the other units of the layer",
        "He et al. 2019, arXiv 1811.00250",
        units=_FEW,
    ),
    "cosine": CriterionEntry(
        cosine,
        "unit",
        "mean",
        "none",
        "1 - cosine to the nearest unit, by pairs",
        "near Srinivas & Babu 2015, arXiv 1507.06149",
        units=_FEW,
        merge=parallel_partners,
    ),
    "weight_correlation": CriterionEntry(
        weight_correlation,
        "unit",
        "mean",
        "none",
        "1 - Pearson's r to the nearest unit, by pairs",
        "near Babaeizadeh et al. 2016, arXiv 1611.06211",
        units=_FEW,
    ),
    "srinivas_babu": CriterionEntry(
        srinivas_babu,
        "unit",
        "mean",
        "none",
        "<a_b^2> ||W_a - W_b||^2, greedily by pairs",
        "Srinivas & Babu 2015, arXiv 1507.06149",
        units=frozenset({"channel"}),
        merge=equal_partners,
    ),
}
