"""Training the pruned architecture from fresh weights: the rival that every recovered network has to beat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from torch import nn

from secateur.measure.count import count
from secateur.measure.quiet import quiet
from secateur.model.batches import limited
from secateur.train.loop.fit import Fitted, fit
from secateur.train.loop.training import Training
from secateur.train.recovery.fresh import Initialise
from secateur.train.recovery.tickets import reinitialised

__all__ = ["Budget", "Scratch", "scratch", "scratch_epochs"]

Budget: TypeAlias = Literal["epochs", "flops"]


@dataclass(frozen=True)
class Scratch:
    """A network trained from scratch.

    Attributes:
        model: the trained copy.
        epochs: how long it was trained.
        budget: ``"epochs"`` (Scratch-E) or ``"flops"`` (Scratch-B).
        fitted: what ``fit`` returned.
    """

    model: nn.Module
    epochs: int
    budget: Budget
    fitted: Fitted


def scratch(
    small: nn.Module,
    data: Any,
    training: Training,
    *,
    budget: Budget = "epochs",
    dense_macs: int | None = None,
    at_most: float | None = None,
    example_inputs: Any = None,
    init: Initialise | None = None,
    seed: int = 0,
    valid: Any = None,
    metric: Any = None,
    checkpoint: str | Path | None = None,
    progress: Any = None,
) -> Scratch:
    """Train a copy of a pruned network from fresh weights, for as long or at the same cost as the dense one.

    Scratch-E: E epochs, those of ``training``. Scratch-B: floor(E * MACs_dense / MACs_small) epochs, the same
    multiply-adds in all; schedules given as shares of training stretch with them (milestones at .5 and .75 stay there).

    Args:
        small: the pruned network, channels removed or under masks (which the copy gets too); it is not changed.
        data: a pair of tensors, or batches that can be read again.
        training: how the dense network was trained, E epochs.
        budget: ``"epochs"`` or ``"flops"``.
        dense_macs: multiply-adds of the dense network for one sample, ``secateur.measure.count(dense, x).macs``.
        at_most: of the dense epochs, the most that "flops" may take: 2 as the paper on ImageNet; None: no limit.
        example_inputs: what the multiply-adds of ``small`` are counted on; None: the first batch.
        init: as for ``sc.tickets.reinitialised``.
        seed: of the fresh weights.
        valid: held-out data, as for ``sc.fit``.
        metric: as for ``sc.fit``.
        checkpoint: file from which a run that was stopped goes on.
        progress: as for ``sc.fit``.

    Returns:
        The trained copy and how long it took.

    Raises:
        ValueError: for a budget of "flops" without ``dense_macs``, or a network that costs more than the dense one;
            and whatever ``sc.fit`` and ``sc.tickets.reinitialised`` refuse.

    Example:
        >>> import torch
        >>> x, y = torch.randn(8, 4), torch.tensor([0, 1] * 4)
        >>> small = nn.Linear(4, 2)
        >>> training = Training(epochs=2, loss=nn.functional.cross_entropy)
        >>> scratch(small, (x, y), training, budget="flops", dense_macs=12, progress=False).epochs
        3

    Reference:
        Liu, Sun, Zhou, Huang, Darrell 2019, "Rethinking the Value of Network Pruning", arXiv 1810.05270.
    """
    macs = None
    if budget == "flops" and dense_macs is not None:
        with quiet(small, loader=data):
            macs = count(small, _first_inputs(data) if example_inputs is None else example_inputs).macs_kept
    epochs = scratch_epochs(training.epochs, budget, dense_macs=dense_macs, macs=macs, at_most=at_most)
    model = reinitialised(small, seed, init=init)
    fitted = fit(
        model,
        data,
        replace(training, epochs=epochs),
        valid=valid,
        metric=metric,
        checkpoint=checkpoint,
        progress=progress,
    )
    return Scratch(model, epochs, budget, fitted)


def scratch_epochs(
    epochs: int,
    budget: Budget,
    *,
    dense_macs: int | None = None,
    macs: int | None = None,
    at_most: float | None = None,
) -> int:
    """How long to train from scratch: E, or floor(E * MACs_dense / MACs_small), at most ``at_most`` E.

    Args:
        epochs: E, of the dense network.
        budget: ``"epochs"`` or ``"flops"``.
        dense_macs: multiply-adds of the dense network for one sample.
        macs: of the small one.
        at_most: limit as a multiple of E.

    Returns:
        Epochs.

    Raises:
        ValueError: for an unknown budget, missing counts, or a small network that is not smaller.

    Example:
        >>> scratch_epochs(160, "flops", dense_macs=138, macs=100)
        220
    """
    if budget not in ("epochs", "flops"):
        raise ValueError(f"budget={budget!r}; known are 'epochs' (Scratch-E) and 'flops' (Scratch-B)")
    if budget == "epochs":
        if dense_macs is not None or at_most is not None:
            raise ValueError("dense_macs= and at_most= belong to budget='flops'; budget='epochs' trains E epochs")
        return epochs
    if dense_macs is None or macs is None:
        raise ValueError(
            "budget='flops' needs dense_macs=, the multiply-adds of the dense network for one sample: "
            "secateur.measure.count(dense, example_inputs).macs"
        )
    if not 0 < macs <= dense_macs:
        raise ValueError(
            f"the small network takes {macs:,} multiply-adds, the dense one dense_macs={dense_macs:,}: the small one "
            "has to take some, and no more than the dense one. Are both counted on the same example inputs?"
        )
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most={at_most}: a multiple of the dense epochs, from 1; the paper takes 2 on ImageNet")
    longest = epochs * dense_macs // macs
    return longest if at_most is None else min(longest, int(epochs * at_most))


def _first_inputs(data: Any) -> Any:
    batch: Any = next(limited(data, 1))
    return cast("tuple[Any, ...]", batch)[0] if isinstance(batch, (tuple, list)) else batch
