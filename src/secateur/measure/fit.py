"""How well a classifier does: accuracy, calibration, and agreement with the dense model, in one pass."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias, cast, final

import torch
from torch import Tensor, nn

from secateur.measure.quiet import quiet
from secateur.records import Accuracy, Agreement

__all__ = ["Data", "agreement", "compare", "evaluate", "expected_calibration_error", "first_inputs", "labelled_batches"]

Data: TypeAlias = Iterable[tuple[Tensor, Tensor]] | tuple[Tensor, Tensor]
"""A loader of ``(inputs, labels)`` batches, or the two tensors themselves."""

_CHUNK = 256
_SUPPORTED = (
    "classification batches (x, y) are supported now: x what the model takes, y integer classes of shape [batch]; "
    "for other tasks use latency(), count() and sizes() and measure the fit yourself"
)


def evaluate(model: nn.Module, data: Data, *, split: str = "test", bins: int = 15) -> Accuracy:
    """Top-1 accuracy with its standard error, negative log likelihood, and calibration error.

    se = sqrt(p (1 - p) / n); nll = -mean log softmax(logits)[y]; ece = sum_m |B_m| / n |acc(B_m) - conf(B_m)|.
    Logits are taken to float64. The model is run in eval mode and every flag and random state restored.

    Args:
        model: gives logits [batch, classes].
        data: a DataLoader or other iterable of ``(x, y)``, or the pair of tensors ``(x, y)``.
        split: the name that stands in the record.
        bins: equal bins (lo, hi] of the calibration error.

    Returns:
        The record; ``nll`` in nats, the rest fractions of 1.

    Raises:
        ValueError: for batches, logits or labels of another shape, and for outputs that are not finite.

    Example:
        >>> x, y = torch.eye(2) * 9, torch.tensor([0, 0])
        >>> evaluate(nn.Identity(), (x, y)).top1
        0.5

    Reference:
        Guo, Pleiss, Sun, Weinberger 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599.
    """
    fit = _Fit(split, bins)
    with quiet(model, loader=data):
        for x, y in labelled_batches(data):
            fit.add(*_log_probabilities(model, x, y))
    return fit.accuracy()


def agreement(dense: nn.Module, sparse: nn.Module, data: Data) -> Agreement:
    """How much of the dense model's behaviour is left.

    agreement = P[argmax equal], negative flips = P[dense right and sparse wrong],
    kl = mean sum_c p_dense log(p_dense / p_sparse).

    Args:
        dense: gives logits [batch, classes].
        sparse: the pruned model, same classes.
        data: as for ``evaluate``; read once, both models see the same batches.

    Returns:
        The record; ``kl`` in nats.

    Raises:
        ValueError: as ``evaluate``; or if the two outputs differ in shape.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([0, 1])
        >>> agreement(nn.Identity(), nn.Softplus(), (x, y)).negative_flips
        0.0
    """
    return compare(dense, sparse, data)[2]


def compare(
    dense: nn.Module, sparse: nn.Module, data: Data, *, split: str = "test", bins: int = 15
) -> tuple[Accuracy, Accuracy, Agreement]:
    """``evaluate`` for both models and their ``agreement``, in one pass over the data.

    Args:
        dense: gives logits [batch, classes].
        sparse: the pruned model, same classes.
        data: as for ``evaluate``.
        split: the name that stands in the records.
        bins: of the calibration error.

    Returns:
        Accuracy of dense, accuracy of sparse, agreement.

    Raises:
        ValueError: as ``agreement``.

    Example:
        >>> compare(nn.Identity(), nn.Softplus(), (torch.eye(2), torch.tensor([0, 1])))[2].agreement
        1.0
    """
    fits = _Fit(split, bins), _Fit(split, bins)
    same = flips = 0
    divergence = 0.0
    with quiet(dense, sparse, loader=data):
        for x, y in labelled_batches(data):
            log_p, y_p = _log_probabilities(dense, x, y)
            log_q, y_q = _log_probabilities(sparse, x, y)
            if log_p.shape != log_q.shape:
                raise ValueError(
                    f"dense gives logits {tuple(log_p.shape)} and sparse {tuple(log_q.shape)}: the two models must "
                    "have the same classes"
                )
            fits[0].add(log_p, y_p)
            fits[1].add(log_q, y_q)
            log_q, p, q = log_q.to(log_p.device), log_p.argmax(1), log_q.to(log_p.device).argmax(1)
            same += int((p == q).sum())
            flips += int(((p == y_p) & (q != y_p)).sum())
            divergence += float((log_p.exp() * (log_p - log_q)).sum())
    n = fits[0].samples
    return fits[0].accuracy(), fits[1].accuracy(), Agreement(n, same / n, flips / n, divergence / n)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equal bins (lo, hi] of the confidence.

    ece = sum_m |B_m| / n |acc(B_m) - conf(B_m)|. It is biased upwards for small n; report it with the NLL.

    Args:
        confidence: [n] the largest softmax probability of each sample, in [0, 1].
        correct: [n] whether that class is right.
        bins: number of bins.

    Returns:
        A fraction of 1.

    Raises:
        ValueError: for shapes that differ, no sample, or confidences outside [0, 1].

    Example:
        >>> conf = torch.tensor([0.95, 0.85, 0.75, 0.55, 0.65, 0.99], dtype=torch.float64)
        >>> round(expected_calibration_error(conf, torch.tensor([1, 1, 0, 1, 0, 1]), bins=5), 6)
        0.343333

    Reference:
        Guo, Pleiss, Sun, Weinberger 2017, arXiv 1706.04599.
    """
    if confidence.shape != correct.shape or confidence.ndim != 1 or not len(confidence):
        raise ValueError(
            f"confidence {tuple(confidence.shape)} and correct {tuple(correct.shape)} must both be [n] with n >= 1"
        )
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence must lie in [0, 1]; give the largest softmax probability of each sample")
    counts = _Bins(bins)
    counts.add(confidence, correct)
    return counts.error()


def labelled_batches(data: Data) -> Iterator[tuple[Any, Tensor]]:
    """Batches ``(x, y)`` of a loader, or of two whole tensors in chunks.

    Raises:
        ValueError: for batches of another kind, or if there is none.
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):
        x, y = cast("tuple[Tensor, Tensor]", data)
        if not isinstance(y, Tensor) or x.ndim < 1 or y.ndim < 1 or len(x) != len(y):
            raise ValueError("data=(x, y) needs two tensors with the same number of samples on axis 0")
        data = list(zip(x.split(_CHUNK), y.split(_CHUNK), strict=True)) if len(x) else []
    seen = False
    for batch in data:
        if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
            length = f" of {len(batch)}" if isinstance(batch, (tuple, list)) else ""
            raise ValueError(f"a batch is a {type(batch).__name__}{length}; {_SUPPORTED}")
        seen = True
        yield batch[0], batch[1]
    if not seen:
        raise ValueError("data yielded no batch; an iterator that was read before is empty: give the loader itself")


def first_inputs(data: Data) -> Any:
    """The inputs of the first batch."""
    with quiet(loader=data):
        return next(labelled_batches(data))[0]


def _log_probabilities(model: nn.Module, x: Any, y: Tensor) -> tuple[Tensor, Tensor]:
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    logits = model(x.to(device) if isinstance(x, Tensor) and device is not None else x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model gives {given} where logits [batch, classes] are needed; {_SUPPORTED}")
    if not isinstance(y, Tensor) or y.shape != logits.shape[:1] or y.is_floating_point():
        given = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"labels are {given} for logits {tuple(logits.shape)}; {_SUPPORTED}")
    y = y.to(logits.device)
    if len(y) and (int(y.min()) < 0 or int(y.max()) >= logits.shape[1]):
        raise ValueError(f"labels lie in [{int(y.min())}, {int(y.max())}], the model has {logits.shape[1]} classes")
    broken = int((~torch.isfinite(logits)).any(1).sum())
    if broken:
        raise ValueError(f"the model gives NaN or infinite logits for {broken} of {len(y)} samples of a batch")
    return torch.log_softmax(logits.double(), dim=1), y.long()


@final
class _Bins:
    """Counts per confidence bin (lo, hi]."""

    def __init__(self, bins: int) -> None:
        if bins < 1:
            raise ValueError(f"bins={bins}: at least 1 bin is needed, 15 is usual")
        # The same k / bins as on paper: hi belongs to its bin, whatever confidence * bins rounds to.
        self._upper = torch.tensor([k / bins for k in range(1, bins)], dtype=torch.float64)
        self._sums = torch.zeros(3, bins, dtype=torch.float64)

    def add(self, confidence: Tensor, correct: Tensor) -> None:
        confidence, correct = confidence.double().cpu(), correct.double().cpu()
        where = torch.bucketize(confidence, self._upper)
        for row, values in enumerate((torch.ones_like(confidence), correct, confidence)):
            self._sums[row].index_add_(0, where, values)

    def error(self) -> float:
        count, correct, confidence = self._sums
        return float((correct - confidence).abs().sum() / count.sum())


@final
class _Fit:
    """Running sums of one model over one split."""

    def __init__(self, split: str, bins: int) -> None:
        self._split, self._bins, self._counts = split, bins, _Bins(bins)
        self.samples = self._right = 0
        self._nll = 0.0

    def add(self, log_p: Tensor, y: Tensor) -> None:
        best = log_p.max(1)
        right = best.indices == y
        self._counts.add(best.values.exp().clamp(max=1.0), right)
        self.samples += len(y)
        self._right += int(right.sum())
        self._nll -= float(log_p.gather(1, y[:, None]).sum())

    def accuracy(self) -> Accuracy:
        n, p = self.samples, self._right / self.samples
        return Accuracy(self._split, n, p, math.sqrt(p * (1 - p) / n), self._nll / n, self._counts.error(), self._bins)
