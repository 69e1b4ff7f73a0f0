"""Criteria that weigh what a unit is worth against the multiply-adds that are spent on it.

Evidence: ``macs``, shaped like the weight = multiply-adds of one example that each weight takes part in; ``unit_macs``
[outputs] = those of all weights of each output of a layer. Both are counted in the passes over the data, at its size.
A criterion of your own may read them too: ``lambda weight, macs: weight.abs() / macs``.

What the next layers save when a channel goes is no part of either: the papers' terms are of the layer alone. Budgets
(``sc.shrink(macs=...)``, ``sc.knapsack``) know the whole cost.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.core.canonical import wide
from secateur.core.criteria.curvature import woodfisher, woodfisher_update
from secateur.core.criteria.gate import taylor_2017
from secateur.types import CriterionEntry

__all__ = ["ROWS", "taylor_2017_flops", "woodfisher_flops"]

_MILLION_OPERATIONS = 2e-6
"""Of one multiply-add."""


def taylor_2017_flops(gate_example_abs: Tensor, unit_macs: Tensor, *, flops_weight: float = 1e-3) -> Tensor:
    """Taylor expansion of 2017 less what the feature map costs, ``s_c = taylor_2017_c - lambda F_c``.

    ``F_c`` is millions of operations (two to a multiply-add, bias left out) that the layer spends on the output for one
    example. The unit is chosen so that the published lambda makes sense: scores have length 1 per layer, so they are
    about .04 to .1 for 512 to 64 channels, and in VGG-16 at 224 x 224 the term is .002 (last block) to .06 (second
    layer). In single operations it would drown the scores, in thousands of millions it would change nothing.

    Args:
        gate_example_abs: mean over examples of the absolute gradient of the gate, one per channel.
        unit_macs: multiply-adds of one example per channel.
        flops_weight: lambda, from 0; 0 is ``taylor_2017``.

    Returns:
        Scores, one per channel, at least float32; negative where a channel costs more than it is worth.

    Raises:
        ValueError: for a negative lambda.

    Example:
        >>> import torch
        >>> s = taylor_2017_flops(torch.tensor([3.0, 4.0]), torch.tensor([5e7, 5e7]))
        >>> [round(score, 4) for score in s.tolist()]
        [0.5, 0.7]

    Reference:
        Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv 1611.06440. The term and lambda = 0.001 are from memory, not
        verified; millions of operations per feature map are our reading.
    """
    if flops_weight < 0:
        raise ValueError(f"taylor_2017_flops(flops_weight={flops_weight!r}): the weight of the cost, from 0")
    scores = taylor_2017(gate_example_abs)
    return scores - (flops_weight * _MILLION_OPERATIONS * wide(unit_macs).double()).to(scores)


def woodfisher_flops(
    weight: Tensor,
    inverse_fisher_diagonal: Tensor,
    macs: Tensor,
    *,
    beta: float = 0.3,
    block: int = 128,
    damping: float = 1e-5,
    average: int = 1,
) -> Tensor:
    """WoodFisher for few operations, ``s = woodfisher / f^beta``, f the multiply-adds that the weight takes part in.

    Weights of early layers, which are used at every position of large maps, go earlier. ``sc.prune(..., update=True)``
    moves the kept weights along as for ``woodfisher``. A factor common to all (operations per multiply-add) changes no
    order.

    Args:
        weight: parameter, any shape.
        inverse_fisher_diagonal: diagonal of the inverse, same shape.
        macs: multiply-adds of one example per weight, same shape; counted as at least 1.
        beta: from 0; 0 is ``woodfisher``.
        block: as for ``woodfisher``.
        damping: as for ``woodfisher``.
        average: as for ``woodfisher``.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5])
        >>> woodfisher_flops(torch.tensor([1.0, 1.0]), half, torch.tensor([4.0, 16.0]), beta=0.5).tolist()
        [0.5, 0.25]

    Reference:
        Singh, Alistarh 2020, arXiv 2004.14340: the variant that counts operations; where beta stands and its default
        are from memory, not verified.
    """
    if beta < 0:
        raise ValueError(f"woodfisher_flops(beta={beta!r}): the power of the cost, from 0")
    scores = woodfisher(weight, inverse_fisher_diagonal, block=block, damping=damping, average=average)
    return scores / wide(macs).clamp(min=1.0).pow(beta).to(scores)


ROWS: Mapping[str, CriterionEntry] = {
    "taylor_2017_flops": CriterionEntry(
        taylor_2017_flops,
        "unit",
        "mean",
        "batches",
        "taylor_2017 - lambda millions of operations",
        "Molchanov et al. 2017, arXiv 1611.06440",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "woodfisher_flops": CriterionEntry(
        woodfisher_flops,
        "weight",
        "sum",
        "batches",
        "woodfisher / (multiply-adds of the weight)^beta; update",
        "Singh, Alistarh 2020, arXiv 2004.14340",
        batches=10,
        update=woodfisher_update,
        elementwise=True,
    ),
}
