"""Inverses of curvature: of whole small networks for optimal brain surgeon, of blocks for WoodFisher. Float64.

Weights that are zero count as gone: their rows and columns drop out, so that pruning further is of the rest alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.core.blocks import check_blocks, in_blocks, out_of_blocks
from secateur.model.evidence.functional import alone, batches_of
from secateur.model.evidence.hessians import matrix
from secateur.model.evidence.passes import Found
from secateur.model.evidence.samples import copies, sample_gradients
from secateur.model.evidence.source import Request

__all__ = ["INVERSE_FISHER_KINDS", "INVERSE_HESSIAN_KINDS", "gather_inverse_fisher", "gather_inverse_hessian"]

INVERSE_HESSIAN_KINDS = {
    "inverse_hessian": "rows of the inverse over all targets together, [weights of the parameter, weights of all]",
    "inverse_hessian_diagonal": "its diagonal, in the shape of the parameter",
}
INVERSE_FISHER_KINDS = {
    "inverse_fisher": "inverse of the damped Fisher matrix in blocks of each parameter, [blocks, c, c]",
    "inverse_fisher_diagonal": "its diagonal, in the shape of the parameter",
}


def gather_inverse_hessian(request: Request) -> Found:
    """``(H + damping I)^-1`` over the weights that are not zero; zeros elsewhere.

    Raises:
        ValueError: for negative damping, too many weights, and a matrix that is not positive definite.
    """
    damping = float(request.settings.get("damping", 1e-4))
    if not damping >= 0:
        raise ValueError(f"damping={damping!r} is added to the diagonal of the matrix; give a number from 0")
    with request.ranks.together(), alone(request):
        weights = copies(request)
        total, samples = matrix(request, weights)
    whole = request.ranks.sums({"matrix": total})["matrix"] / request.ranks.total(samples)
    alive = torch.cat([weight.detach().flatten() != 0 for weight in weights.values()])
    at = alive.nonzero().squeeze(1)
    part = whole[at][:, at] + damping * torch.eye(len(at), dtype=whole.dtype, device=whole.device)
    factor, failed = torch.linalg.cholesky_ex(part)
    if int(failed):
        lowest = float(torch.linalg.eigvalsh(part)[0])
        raise ValueError(
            f"the matrix of second derivatives is not positive definite (lowest eigenvalue {lowest:.3g} with "
            f"damping={damping:g}), so nothing is at a minimum here: take more damping, more batches=, or "
            'hess="ggn" or "fisher", which are never negative'
        )
    inverse = torch.zeros_like(whole)
    inverse[at[:, None], at] = torch.cholesky_inverse(factor)
    sizes = [weight.numel() for weight in weights.values()]
    found: Found = {}
    if "inverse_hessian" in request.kinds:
        found["inverse_hessian"] = dict(zip(weights, inverse.split(sizes), strict=True))
    if "inverse_hessian_diagonal" in request.kinds:
        pieces = zip(weights.items(), inverse.diagonal().clone().split(sizes), strict=True)
        found["inverse_hessian_diagonal"] = {name: one.reshape(weight.shape) for (name, weight), one in pieces}
    return found


def gather_inverse_fisher(request: Request) -> Found:
    """``(damping I + 1/N sum_n g_n g_n^T)^-1`` in blocks; g_n is of ``average`` samples.

    By N updates of rank one; over several ranks, which cannot update each other's, as the inverse of the sum.

    Raises:
        ValueError: for settings out of range, and batches that cannot be taken apart into samples.
    """
    block, damping = request.settings.get("block", 128), float(request.settings.get("damping", 1e-5))
    check_blocks(block, damping, request.settings.get("average", 1))
    with request.ranks.together(), alone(request):
        weights = copies(request)
        if request.ranks.several:
            sums, count = _sums(request, weights, block)
        else:
            inverses = _updated(request, weights, block, damping)
    if request.ranks.several:
        sums, count = request.ranks.sums(sums), request.ranks.total(count)
        inverses = {name: _inverse(total / count, damping) for name, total in sums.items()}
    found: Found = {}
    if "inverse_fisher" in request.kinds:
        found["inverse_fisher"] = inverses
    if "inverse_fisher_diagonal" in request.kinds:
        diagonals = {name: one.diagonal(dim1=1, dim2=2) for name, one in inverses.items()}
        found["inverse_fisher_diagonal"] = {n: out_of_blocks(one, weights[n].shape) for n, one in diagonals.items()}
    return found


def _updated(request: Request, weights: Mapping[str, Tensor], block: int, damping: float) -> dict[str, Tensor]:
    read = list(batches_of(request))
    count = sum(1 for _ in _gradients(request, weights, read))
    inverses = {name: _start(weight, block, damping) for name, weight in weights.items()}
    for rows in _rows(request, weights, read, block):
        for name, row in rows.items():
            _update(inverses[name], row, count)
    return inverses


def _sums(request: Request, weights: Mapping[str, Tensor], block: int) -> tuple[dict[str, Tensor], int]:
    """``sum_n g_n g_n^T`` in blocks, and n."""
    totals: dict[str, Tensor] = {}
    count = 0
    for rows in _rows(request, weights, list(batches_of(request)), block):
        count += 1
        for name, row in rows.items():
            totals[name] = totals.get(name, 0) + row.unsqueeze(2) * row.unsqueeze(1)
    return totals, count


def _rows(request: Request, weights: Mapping[str, Tensor], read: list[Any], block: int) -> Iterator[dict[str, Tensor]]:
    """Gradients ``[blocks, c]``, zero at weights that are gone."""
    alive = {name: in_blocks(weight.detach() != 0, block) for name, weight in weights.items()}
    for gradients in _gradients(request, weights, read):
        yield {name: in_blocks(one.double(), block) * alive[name] for name, one in gradients.items()}


def _inverse(blocks: Tensor, damping: float) -> Tensor:
    eye = damping * torch.eye(blocks.shape[1], dtype=blocks.dtype, device=blocks.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(blocks + eye))


def _start(weight: Tensor, block: int, damping: float) -> Tensor:
    blocks, size = in_blocks(weight.detach(), block).shape
    eye = torch.eye(size, dtype=torch.float64, device=weight.device) / damping
    return eye.expand(blocks, size, size).clone()


def _update(inverse: Tensor, gradient: Tensor, count: int) -> None:
    """``F^-1 -= F^-1 g g^T F^-1 / (N + g^T F^-1 g)`` in every block at once."""
    moved = torch.einsum("bij,bj->bi", inverse, gradient)
    below = count + (gradient * moved).sum(1)
    inverse.baddbmm_((moved / below[:, None]).unsqueeze(2), moved.unsqueeze(1), alpha=-1.0)


def _gradients(request: Request, weights: Mapping[str, Tensor], read: list[Any]) -> Iterator[dict[str, Tensor]]:
    """Means over ``average`` samples in the order of the data; what is left at the end is a mean of fewer."""
    average = request.settings.get("average", 1)
    total: dict[str, Tensor] = {}
    have = 0
    for chunk in sample_gradients(request, weights, read):
        for at in range(len(next(iter(chunk.values())))):
            total = {name: total[name] + one[at] if have else one[at] for name, one in chunk.items()}
            have += 1
            if have == average:
                yield {name: one / have for name, one in total.items()}
                have = 0
    if have:
        yield {name: one / have for name, one in total.items()}
