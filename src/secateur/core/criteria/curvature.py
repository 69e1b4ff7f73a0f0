"""Criteria that read second derivatives of the loss, and the updates of kept weights that go with them.

Evidence: ``hessian_diagonal`` = H_ii, ``loss_change_sq`` = mean_b (w^2 H_ii / 2 - w g)^2, ``inverse_hessian_diagonal``
and ``inverse_hessian`` of the matrix over all targets together, ``inverse_fisher_diagonal`` and ``inverse_fisher`` in
blocks of each parameter. Options of these criteria reach those who collect the evidence.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from secateur.core.blocks import check_blocks, compensated, in_blocks, out_of_blocks
from secateur.core.canonical import wide
from secateur.core.typed import split
from secateur.types import CriterionEntry, Tensors

__all__ = ["ROWS", "obd", "obs", "obs_update", "taylor_second", "woodfisher", "woodfisher_update"]

_DIAGONALS = ("exact", "hutchinson", "ggn", "fisher")
_MATRICES = ("exact", "ggn", "fisher")


def obd(weight: Tensor, hessian_diagonal: Tensor, *, hess: str = "ggn", probes: int = 10) -> Tensor:
    """Optimal brain damage, ``s = w^2 max(H_ii, 0) / 2``: the change of the loss at a minimum, other weights fixed.

    Args:
        weight: parameter, any shape.
        hessian_diagonal: second derivatives, same shape; negative ones count as zero and are warned of.
        hess: ``"ggn"`` (Gauss-Newton, never negative, as in the paper), ``"fisher"`` (squared gradients of single
            samples), ``"hutchinson"`` (random signs), ``"exact"`` (one backward pass for each weight).
        probes: of ``"hutchinson"``: directions for each batch.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for an unknown ``hess``.

    Example:
        >>> obd(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([4.0, 1.0, -1.0])).tolist()
        [2.0, 2.0, 0.0]

    Reference:
        LeCun, Denker, Solla 1990, "Optimal Brain Damage".
    """
    _check("obd", hess, _DIAGONALS)
    return 0.5 * wide(weight).square() * wide(hessian_diagonal).clamp(min=0)


def taylor_second(loss_change_sq: Tensor, *, hess: str = "hutchinson", probes: int = 10) -> Tensor:
    """Second-order Taylor, ``s = mean_b (w^2 H_ii / 2 - w g)^2``: the squared change of the loss; a unit has the sum.

    The mean over batches is of squares, as for ``taylor``. H_ii may be negative here.

    Args:
        loss_change_sq: the mean, shape of the parameter.
        hess: the route to H_ii, as for ``obd``.
        probes: of ``"hutchinson"``: directions for each batch.

    Returns:
        Scores like the parameter, at least float32.

    Raises:
        ValueError: for an unknown ``hess``.

    Example:
        >>> taylor_second(torch.tensor([0.04, 0.09])).argmin().item()
        0

    Reference:
        Molchanov, Mallya, Tyree, Frosio, Kautz 2019, arXiv 1906.10771.
    """
    _check("taylor_second", hess, _DIAGONALS)
    return wide(loss_change_sq)


def obs(weight: Tensor, inverse_hessian_diagonal: Tensor, *, hess: str = "ggn", damping: float = 1e-4) -> Tensor:
    """Optimal brain surgeon, ``s = w^2 / (2 [H^-1]_ii)``: the change of the loss if all others make up for it.

    For small networks: H is over all targets together. ``sc.prune(..., update=True)`` moves the kept weights along,
    jointly for all that go. Removing in several calls, with new second derivatives in each, is nearer to the paper.

    Args:
        weight: parameter, any shape.
        inverse_hessian_diagonal: diagonal of the damped inverse, same shape; 0 for weights that are gone.
        hess: ``"ggn"`` (as in the paper), ``"fisher"`` or ``"exact"``, which has to be positive definite.
        damping: added to the diagonal of H, from 0.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for an unknown ``hess`` or negative damping.

    Example:
        >>> obs(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])).tolist()
        [1.0, 0.5]

    Reference:
        Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon".
    """
    _check("obs", hess, _MATRICES)
    if not damping >= 0:
        raise ValueError(f"obs(damping={damping!r}): it is added to the diagonal; give a number from 0")
    return _over(weight, inverse_hessian_diagonal)


def obs_update(weights: Tensors, removed: Tensors, inverse_hessian: Tensors) -> dict[str, Tensor]:
    """New weights of all targets, ``w - H^-1 E (E^T H^-1 E)^-1 E^T w``, E the weights that go.

    Args:
        weights: name -> parameter.
        removed: name -> bool, True: goes.
        inverse_hessian: name -> rows of the inverse, ``[weights of the parameter, weights of all]``.

    Returns:
        Name -> values, zero where removed.

    Example:
        >>> h = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64).inverse()
        >>> obs_update({"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([True, False])}, {"w": h})["w"].tolist()
        [0.0, 1.5]
    """
    names = list(inverse_hessian)
    flat = torch.cat([weights[name].flatten().double() for name in names])
    gone = torch.cat([removed[name].flatten().to(flat.device) for name in names])
    whole = torch.cat([inverse_hessian[name] for name in names])
    made = split(compensated(flat[None], gone[None], whole[None])[0], [weights[name].numel() for name in names])
    return {name: one.reshape(weights[name].shape).to(weights[name]) for name, one in zip(names, made, strict=True)}


def woodfisher(
    weight: Tensor, inverse_fisher_diagonal: Tensor, *, block: int = 128, damping: float = 1e-5, average: int = 1
) -> Tensor:
    """WoodFisher, ``s = w^2 / (2 [F^-1]_ii)`` with ``F = damping I + mean_n g_n g_n^T`` in blocks of each parameter.

    ``sc.prune(..., update=True)`` moves the kept weights of every block along, jointly for all that go in it; the
    paper's code adds up updates of single weights and leaves out the half. The inverses take 8 c bytes for each weight.

    Args:
        weight: parameter, any shape.
        inverse_fisher_diagonal: diagonal of the inverse, same shape.
        block: c, consecutive weights that are seen together; the paper takes thousands.
        damping: above 0.
        average: samples whose mean gradient is one g_n.

    Returns:
        Scores like ``weight``, at least float32.

    Raises:
        ValueError: for options out of range.

    Example:
        >>> woodfisher(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0])).tolist()
        [1.0, 0.5]

    Reference:
        Singh, Alistarh 2020, arXiv 2004.14340.
    """
    check_blocks(block, damping, average)
    return _over(weight, inverse_fisher_diagonal)


def woodfisher_update(weights: Tensors, removed: Tensors, inverse_fisher: Tensors) -> dict[str, Tensor]:
    """New weights block by block, ``w - F^-1 E (E^T F^-1 E)^-1 E^T w``, E the weights of the block that go.

    Args:
        weights: name -> parameter.
        removed: name -> bool, True: goes.
        inverse_fisher: name -> ``[blocks, c, c]``.

    Returns:
        Name -> values, zero where removed.

    Example:
        >>> h = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]], dtype=torch.float64).inverse()
        >>> gone = {"w": torch.tensor([True, False])}
        >>> woodfisher_update({"w": torch.tensor([1.0, 1.0])}, gone, {"w": h})["w"].tolist()
        [0.0, 1.5]
    """
    made: dict[str, Tensor] = {}
    for name, inverse in inverse_fisher.items():
        weight, size = weights[name], inverse.shape[1]
        gone = in_blocks(removed[name].to(weight.device), size)
        values = compensated(in_blocks(weight, size), gone, inverse)
        made[name] = out_of_blocks(values, weight.shape).to(weight)
    return made


def _over(weight: Tensor, inverse: Tensor) -> Tensor:
    below = wide(inverse)
    scores = wide(weight).square() / (2 * below)
    return torch.where(below > 0, scores, torch.zeros_like(scores))


def _check(name: str, hess: str, known: tuple[str, ...]) -> None:
    if hess not in known:
        raise ValueError(f"{name}(hess={hess!r}): known are {', '.join(known)}")


_SINGH = "Singh, Alistarh 2020, arXiv 2004.14340"

ROWS: Mapping[str, CriterionEntry] = {
    "taylor_second": CriterionEntry(
        taylor_second,
        "weight",
        "sum",
        "batches",
        "mean_b (w^2 H_ii / 2 - w g)^2",
        "Molchanov et al. 2019, arXiv 1906.10771",
        batches=10,
        elementwise=True,
    ),
    "obd": CriterionEntry(
        obd, "weight", "sum", "batches", "w^2 max(H_ii, 0) / 2", "LeCun, Denker, Solla 1990", batches=10,
        elementwise=True,
    ),
    "obs": CriterionEntry(
        obs, "weight", "sum", "batches", "w^2 / (2 [H^-1]_ii); update", "Hassibi, Stork 1993", batches=10,
        update=obs_update, elementwise=True,
    ),
    "woodfisher": CriterionEntry(
        woodfisher, "weight", "sum", "batches", "w^2 / (2 [F^-1]_ii), F in blocks; update", _SINGH, batches=10,
        update=woodfisher_update, elementwise=True,
    ),
}  # fmt: skip
