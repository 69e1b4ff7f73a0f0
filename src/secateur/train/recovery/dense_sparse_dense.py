"""Dense-sparse-dense: pruning as regularisation; what comes out is dense."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from secateur.core import CriterionLike
from secateur.model.masks import Masks, find_masks
from secateur.model.names import find_parameter, unwrap
from secateur.model.selectors import Selector
from secateur.model.sharding import local, part_of, take
from secateur.train.loop.fit import Fitted, fit
from secateur.train.loop.training import Training
from secateur.train.prune import prune
from secateur.train.recovery.rate import scaled
from secateur.train.recovery.whole import left_whole

__all__ = ["DenseSparseDense", "dense_sparse_dense"]


@dataclass(frozen=True)
class DenseSparseDense:
    """The two trainings after the first dense one.

    Attributes:
        sparse: with the masks.
        dense: after they were lifted.
    """

    sparse: Fitted
    dense: Fitted


def dense_sparse_dense(
    model: nn.Module,
    data: Any,
    training: Training,
    *,
    sparsity: float = 0.3,
    epochs: tuple[int, int],
    final_lr_factor: float = 0.1,
    criterion: CriterionLike = "magnitude",
    allocation: Any = "uniform",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    valid: Any = None,
    metric: Any = None,
    progress: Any = None,
) -> DenseSparseDense:
    """Mask the smallest weights of a trained network, train, lift the masks, and train on at a tenth of the rate.

    The removed weights start again at 0, not at what they were. The network is dense at the end: this is
    a way to train it better, not to make it smaller. Both trainings run the learning-rate schedule of ``training``
    from its start over their own epochs, the second with every rate times ``final_lr_factor``; each begins with
    a new optimizer.

    Args:
        model: a trained network without masks; changed in place. If a training fails it is put back as it was.
        data: a pair of tensors, or batches that can be read again.
        training: how the dense network was trained; its epochs are not used.
        sparsity: share of the weights that are masked; the paper takes 25 to 50 %.
        epochs: of the sparse and of the second dense training.
        final_lr_factor: the second dense training's learning rate, as a multiple of that of ``training``.
        criterion: what scores the weights.
        allocation: how many each layer keeps; the paper masks the same share everywhere.
        targets: what is masked; None: the default targets.
        exclude: what of that stays dense.
        valid: held-out data, as for ``sc.fit``.
        metric: as for ``sc.fit``.
        progress: as for ``sc.fit``.

    Returns:
        What the two trainings came to.

    Raises:
        ValueError: for a model that has masks already, epochs or a factor out of range; and whatever
            ``sc.prune`` and ``sc.fit`` refuse.

    Example:
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> net = nn.Linear(4, 2)
        >>> training = Training(epochs=4, loss=nn.functional.cross_entropy)
        >>> _ = dense_sparse_dense(net, (x, y), training, sparsity=0.5, epochs=(2, 1), progress=False)
        >>> int((net.weight == 0).sum()), find_masks(net)
        (0, None)

    Reference:
        Han, Pool, Narang, Mao et al. 2017, "DSD: Dense-Sparse-Dense Training for Deep Neural Networks", arXiv
        1607.04381.
    """
    if find_masks(model) is not None:
        raise ValueError(
            "this model has masks, and dense-sparse-dense ends without any; call sc.find_masks(model).undo()"
        )
    _check(epochs, final_lr_factor)
    sparse, dense = (replace(training, epochs=count) for count in epochs)
    with left_whole(model):
        masks = prune(model, sparsity, criterion=criterion, allocation=allocation, targets=targets, exclude=exclude)
        first = fit(model, data, sparse, valid=valid, metric=metric, progress=progress)
        _lift(model, masks)
        last = fit(model, data, scaled(dense, final_lr_factor), valid=valid, metric=metric, progress=progress)
    return DenseSparseDense(first, last)


def _check(epochs: Any, factor: float) -> None:
    if not (isinstance(epochs, tuple) and len(epochs) == 2 and all(type(n) is int and n > 0 for n in epochs)):  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        raise ValueError(
            f"epochs={epochs!r}: two whole numbers, of the sparse and of the dense training, e.g. (10, 10)"
        )
    if not factor > 0:
        raise ValueError(f"final_lr_factor={factor}: a positive multiple of the learning rate; the paper takes 0.1")


def _lift(model: nn.Module, masks: Masks) -> None:
    """Forget the masks and leave zeros where they were."""
    root = unwrap(model)
    kept = {name: masks[name] for name in masks}
    masks.undo()
    with torch.no_grad():
        for name, mask in kept.items():
            parameter = find_parameter(root, name)
            values = local(parameter).detach()
            values[~take(mask, part_of(parameter)).to(values.device)] = 0
