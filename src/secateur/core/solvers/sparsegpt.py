"""SparseGPT: one inverse for all rows, columns from left to right."""

from __future__ import annotations

from torch import Tensor

from secateur import native
from secateur.core.select import keep_top
from secateur.core.solvers.layer import Layer, inverse_of
from secateur.core.typed import cholesky

__all__ = ["sparsegpt"]

_BLOCK = 128


def sparsegpt(layer: Layer) -> tuple[Tensor, Tensor]:
    """Columns left to right: ``s = w_j^2 / u_jj^2`` chooses in blocks of 128, ``w -= w_j / u_jj u_j`` makes up for it.

    U is the upper Cholesky factor of the inverse, ``H^-1 = U^T U``; ``u_jj^2`` is the inverse diagonal of what is not
    done yet. Weights compete in a block of all rows; for n of m in each row's group, chosen when it is reached. A
    block loses its share, rounded so that the layer's count is exact, and less where later blocks have lost more than
    theirs already; published code cuts at a threshold.

    Args:
        layer: with ``remove`` or ``pattern``; what is removed already goes first.

    Returns:
        New weights and what is kept, ``[groups, rows, columns]``.

    Raises:
        ValueError: where the gram is not positive definite.

    Example:
        >>> import torch
        >>> weight, gram = torch.tensor([[[1.0, 0.5]]]).double(), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double()
        >>> [part.tolist() for part in sparsegpt(Layer(weight, gram, torch.ones(1, 1, 2).bool(), remove=1))]
        [[[[1.0, 0.0]]], [[[True, False]]]]

    Reference:
        Frantar, Alistarh 2023, arXiv 2301.00774.
    """
    new, kept = layer.weight.clone(), layer.kept.clone()
    seen = gone = 0
    ahead = int((~kept).sum())  # gone already in blocks that were not reached
    of = 0 if layer.pattern is None else layer.pattern.of
    width = _BLOCK if not of else _BLOCK // of * of
    for weight, mask, gram in zip(new, kept, layer.gram, strict=True):
        factor = cholesky(inverse_of(gram))[0].t()
        for first in range(0, weight.shape[1], width):
            block, corner = slice(first, first + width), factor[first : first + width, first : first + width]
            part, chosen = weight[:, block].contiguous(), mask[:, block].contiguous()
            seen += part.numel()
            if layer.remove is not None:
                ahead -= int((~chosen).sum())
                due = (2 * layer.remove * seen + layer.weight.numel()) // (2 * layer.weight.numel())
                wanted = min(due, layer.remove - ahead) - gone
                chosen = _choose(part, chosen, corner, wanted)
            keep = 0 if layer.pattern is None else layer.pattern.keep
            errors = native.eliminate_columns(part, chosen, corner.contiguous(), keep, of)
            gone += int((~chosen).sum())
            weight[:, block], mask[:, block] = part, chosen
            weight[:, first + width :] -= errors @ factor[block, first + width :]
    return new, kept


def _choose(part: Tensor, kept: Tensor, corner: Tensor, wanted: int) -> Tensor:
    """The mask of a block that loses ``wanted`` weights; what is gone counts, and goes first."""
    costs = (part / corner.diagonal()).square().masked_fill(~kept, -1.0)
    before = int((~kept).sum())
    return keep_top(costs.flatten(), part.numel() - max(before, min(wanted, part.numel()))).reshape(part.shape)
