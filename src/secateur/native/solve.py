"""Least squares and eliminations, row by row, in float64: the solvers of layers after pruning."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.native.loading import core, never_traced, takes
from secateur.native.threads import usable_threads

__all__ = ["eliminate_columns", "elimination_order", "refit_rows"]

_LEAST_PIVOT = 1e-13
"""Of the diagonal; below it a gram counts as not positive definite."""


@never_traced
def refit_rows(gram: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    """For every row the weights on its kept columns S that solve ``gram[S, S] w = targets[S]``; 0 elsewhere.

    Args:
        gram: float64 ``[columns, columns]``, symmetric, positive definite on every support.
        targets: float64 ``[rows, columns]``.
        kept: bool ``[rows, columns]``.

    Returns:
        float64 ``[rows, columns]``.

    Raises:
        ValueError: shapes or types do not fit, or a support's gram is not positive definite.

    Example:
        >>> gram = torch.tensor([[4.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> refit_rows(gram, torch.tensor([[8.0, 5.0]], dtype=torch.float64), torch.tensor([[True, False]])).tolist()
        [[2.0, 0.0]]
    """
    _check(gram, targets, kept)
    if core is None or not all(takes(tensor) for tensor in (gram, targets, kept)):
        return _refit_reference(gram, targets, kept)
    gram, kept, values = gram.contiguous(), kept.contiguous(), targets.contiguous().clone()
    rows, columns = values.shape
    addresses = gram.data_ptr(), columns, kept.data_ptr(), values.data_ptr()
    wrong = core.refit_rows(core.active, *addresses, rows, usable_threads())
    if wrong < rows:
        raise _not_positive(wrong)
    return values


@never_traced
def eliminate_columns(weights: Tensor, kept: Tensor, factor: Tensor, keep: int = 0, of: int = 0) -> Tensor:
    """Take columns out in order and let those behind them make up for it, in place (the inner loop of SparseGPT).

    ``e_j = w_j / u_jj`` where removed, else 0; ``w_k -= e_j u_jk`` for ``k > j``.

    Args:
        weights: float64 ``[rows, width]``, contiguous; changed.
        kept: bool ``[rows, width]``, contiguous; changed where ``of > 0``: of every ``of`` columns the ``keep`` with
            the largest ``(w_j / u_jj)^2`` stay, chosen when the first is reached, columns that are not kept
            beforehand going first. A tail shorter than ``of`` stays as it is.
        factor: float64 ``[width, width]``, upper triangular.
        keep: of every ``of`` columns.
        of: size of the groups, at most 64; 0: the mask stands.

    Returns:
        The errors ``[rows, width]``, which columns behind the block have yet to take up.

    Raises:
        ValueError: shapes or types do not fit.

    Example:
        >>> weights = torch.tensor([[1.0, 5.0]], dtype=torch.float64)
        >>> factor = torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
        >>> eliminate_columns(weights, torch.tensor([[False, True]]), factor).tolist(), weights.tolist()
        ([[0.5, 0.0]], [[0.0, 4.5]])
    """
    _check(factor, weights, kept)
    if not (weights.is_contiguous() and kept.is_contiguous()) or not (0 <= keep <= of <= 64):
        raise ValueError(f"weights and kept have to be contiguous, and 0 <= keep <= of <= 64; got {keep} of {of}")
    if core is None or not all(takes(tensor) for tensor in (weights, kept, factor)):
        return _eliminate_reference(weights, kept, factor, keep, of)
    factor, errors = factor.contiguous(), torch.empty_like(weights)
    rows, width = weights.shape
    addresses = weights.data_ptr(), errors.data_ptr(), kept.data_ptr(), rows, factor.data_ptr()
    core.obs_columns(core.active, *addresses, width, keep, of, usable_threads())
    return errors


@never_traced
def elimination_order(
    inverse: Tensor, weights: Tensor, kept: Tensor, keep: int = 0, of: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """The order in which greedy elimination removes the columns of each row, all others being refitted every time.

    Each time the column with the least ``w_q^2 / [H^-1]_qq`` goes; then ``w -= w_q / [H^-1]_qq H^-1_q``, and row and
    column q are eliminated from the inverse.

    Args:
        inverse: float64 ``[columns, columns]``, inverse of the gram.
        weights: float64 ``[rows, columns]``.
        kept: bool ``[rows, columns]``; what is not kept goes first, at no cost, and is not in the order.
        keep: of every ``of`` columns at least so many stay.
        of: size of the groups, 0: no groups. A tail shorter than ``of`` stays.

    Returns:
        Order, int32 ``[rows, columns]``; costs, float64 ``[rows, columns]``; how many of each row count, int64
        ``[rows]``.

    Raises:
        ValueError: shapes or types do not fit.

    Example:
        >>> order, costs, counts = elimination_order(
        ...     torch.eye(2, dtype=torch.float64),
        ...     torch.tensor([[3.0, 1.0]], dtype=torch.float64),
        ...     torch.ones(1, 2, dtype=torch.bool),
        ... )
        >>> order.tolist(), costs.tolist(), counts.tolist()
        ([[1, 0]], [[1.0, 9.0]], [2])
    """
    _check(inverse, weights, kept)
    rows, columns = weights.shape
    order = torch.full((rows, columns), -1, dtype=torch.int32)
    costs, counts = torch.full((rows, columns), float("inf"), dtype=torch.float64), torch.zeros(rows, dtype=torch.int64)
    if core is None or not all(takes(tensor) for tensor in (inverse, weights, kept)):
        for row in range(rows):
            found = _order_reference(inverse.clone(), weights[row].clone(), kept[row], keep, of)
            counts[row] = len(found)
            order[row, : len(found)] = torch.tensor([q for q, _ in found], dtype=torch.int32)
            costs[row, : len(found)] = torch.tensor([cost for _, cost in found], dtype=torch.float64)
        return order, costs, counts
    inverse, kept, moved = inverse.contiguous(), kept.contiguous(), weights.contiguous().clone()
    given = inverse.data_ptr(), columns, moved.data_ptr(), kept.data_ptr()
    made = order.data_ptr(), costs.data_ptr(), counts.data_ptr()
    core.obs_order(core.active, *given, rows, keep, of, *made, usable_threads())
    return order, costs, counts


def _check(square: Tensor, matrix: Tensor, kept: Tensor) -> None:
    for name, tensor in (("the square matrix", square), ("the rows", matrix)):
        if tensor.dtype != torch.float64 or tensor.dim() != 2:
            raise ValueError(f"{name}: expected a float64 matrix, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    columns = matrix.shape[1]
    if tuple(square.shape) != (columns, columns) or kept.shape != matrix.shape or kept.dtype != torch.bool:
        raise ValueError(
            f"shapes do not fit: {tuple(square.shape)} for rows {tuple(matrix.shape)}, and a mask {kept.dtype} of "
            f"{tuple(kept.shape)}"
        )


def _not_positive(row: int) -> ValueError:
    return ValueError(
        f"the gram of the kept columns of row {row} is not positive definite: inputs that are always zero, or fewer "
        "tokens than columns. Give a damping above 0, or more batches"
    )


def _refit_reference(gram: Tensor, targets: Tensor, kept: Tensor) -> Tensor:
    values = torch.zeros_like(targets)
    for row in range(targets.shape[0]):
        support = kept[row].nonzero().squeeze(1)
        square = gram[support][:, support]
        factor, info = torch.linalg.cholesky_ex(square)
        if int(info) or bool((factor.diagonal().square() <= _LEAST_PIVOT * square.diagonal()).any()):
            raise _not_positive(row)
        values[row, support] = torch.cholesky_solve(targets[row, support, None], factor).squeeze(1)
    return values


def _eliminate_reference(weights: Tensor, kept: Tensor, factor: Tensor, keep: int, of: int) -> Tensor:
    errors = torch.zeros_like(weights)
    for j in range(weights.shape[1]):
        if of and j % of == 0 and j + of <= weights.shape[1]:
            group = slice(j, j + of)
            costs = (weights[:, group] / factor.diagonal()[group]).square().masked_fill(~kept[:, group], -1.0)
            first = costs.argsort(dim=1, stable=True)[:, : of - keep]
            kept[:, group] &= torch.ones_like(kept[:, group]).scatter_(1, first, False)
        errors[:, j] = torch.where(kept[:, j], torch.zeros_like(weights[:, j]), weights[:, j] / factor[j, j])
        weights[:, j] = torch.where(kept[:, j], weights[:, j], torch.zeros_like(weights[:, j]))
        weights[:, j + 1 :] -= errors[:, j, None] * factor[j, None, j + 1 :]
    return errors


def _order_reference(inverse: Tensor, weights: Tensor, kept: Tensor, keep: int, of: int) -> list[tuple[int, float]]:
    alive, found = torch.ones_like(kept), list[tuple[int, float]]()

    def remove(q: int) -> None:
        line, pivot = inverse[q].clone(), inverse[q, q].clone()
        weights.sub_(weights[q] / pivot * line)
        inverse.sub_(torch.outer(line, line) / pivot)
        alive[q] = False
        weights[q], inverse[q], inverse[:, q] = 0.0, 0.0, 0.0

    for q in (~kept).nonzero().squeeze(1).tolist():
        remove(q)
    while True:
        free = alive.clone()
        if of:
            whole = len(alive) // of * of
            free[whole:] = False
            free[:whole] &= (alive[:whole].view(-1, of).sum(1) > keep).repeat_interleave(of)
        if not bool(free.any()):
            return found
        costs = torch.where(free, weights.square() / inverse.diagonal(), torch.inf)
        q = int(costs.argmin())
        found.append((q, float(costs[q])))
        remove(q)
