"""Batch-norm statistics taken again: what a network needs after its channels changed, before anyone judges it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]

from secateur.measure import evaluate
from secateur.measure.fit import Data
from secateur.measure.quiet import quiet
from secateur.model.batches import Batch, limited, to_device
from secateur.model.names import clean_name, unwrap
from secateur.records import Accuracy

__all__ = ["Forward", "Recalibration", "batch_norms", "recalibrate"]

Forward: TypeAlias = Callable[[nn.Module, Batch], object]
"""``(model, batch)``: runs the model once; what it returns is not looked at."""

_LARGER = "Give batches of at least 2 samples; a loader's drop_last=True leaves a short last one out"


@dataclass(frozen=True)
class Recalibration:
    """What ``recalibrate`` did.

    Attributes:
        moved: norm -> how far its statistics went: the root mean square over channels of
            (new mean - old mean) / sqrt(old variance + eps), in old standard deviations.
        left_alone: norm -> why its statistics are the old ones.
        batches: how many batches were read.
        before: fit on ``valid`` with the old statistics; None without ``valid``.
        after: fit on ``valid`` with the new ones.
    """

    moved: Mapping[str, float]
    left_alone: Mapping[str, str]
    batches: int
    before: Accuracy | None = None
    after: Accuracy | None = None

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        kept = {"moved": dict(self.moved), "left_alone": dict(self.left_alone), "batches": self.batches}
        fits = {"before": self.before, "after": self.after}
        return kept | {name: None if fit is None else asdict(fit) for name, fit in fits.items()}

    def __str__(self) -> str:
        furthest = max(self.moved, key=lambda name: self.moved[name])
        lines = [
            f"{len(self.moved)} batch norms re-estimated on {self.batches} batches; furthest moved: {furthest} "
            f"by {self.moved[furthest]:.2f} standard deviations"
        ]
        if self.before is not None and self.after is not None:
            lines.append(
                f"accuracy on {self.after.split}: {self.before.top1:.2%} before recalibration, "
                f"{self.after.top1:.2%} after (+- {self.after.standard_error:.2%})"
            )
        return "\n".join(lines + [f"left alone: {name}: {why}" for name, why in self.left_alone.items()])


def recalibrate(
    model: nn.Module,
    data: Any,
    *,
    batches: int = 100,
    step: Forward | None = None,
    valid: Data | None = None,
) -> Recalibration:
    """Take the running statistics of all batch norms again, by forward passes alone.

    running_mean = mean over batches of mean_b, running_var = mean over batches of the unbiased var_b; while
    that happens each batch is normalised by its own statistics, as in training.

    Removing channels changes what reaches the norms behind them, so their old statistics are wrong; this is
    cheap, and often gives back most of the accuracy that seemed lost. Weights are not changed, dropout is off,
    and nothing else of the model, its gradients or any random state is left different. On an error the old
    statistics are put back. Every batch counts the same, also a short last one. Under data parallelism each
    process takes the statistics of its own batches.

    Args:
        model: any module; wrappers are looked through. A norm in eval mode inside a model in train mode is
            frozen on purpose, and left alone.
        data: a loader, a list of batches, or one batch. Labels are not read.
        batches: how many batches to read at most.
        step: ``step(model, batch)`` runs one pass. Default: a mapping goes in as ``model(**batch)``, of an
            ``(inputs, labels)`` pair the inputs, a tensor as it is.
        valid: labelled batches to report accuracy before and after on; never the data of the final test.

    Returns:
        How far each norm moved, which were left alone and why, and the two accuracies, apart.

    Raises:
        ValueError: if no batch norm can be re-estimated, for no batch or batches of an unknown kind, a batch
            with one value per channel, or statistics that are not finite.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])
        >>> recalibrate(net, [x, x + 1]).batches
        2
        >>> net.running_mean, net.running_var
        (tensor([3.5000, 4.5000]), tensor([4., 4.]))

    Reference:
        Ioffe and Szegedy 2015, "Batch Normalization", arXiv 1502.03167, algorithm 2; for pruned networks
        Li, Wu, Su, Wang 2020, "EagleEye", arXiv 2007.02491.
    """
    if type(batches) is not int or batches < 1:
        raise ValueError(f"batches={batches!r}: how many batches to read, a whole number from 1")
    if isinstance(valid, Iterator):
        raise ValueError("valid is an iterator, which can be read once only; give the loader or a list of batches")
    root = unwrap(model)
    norms, left_alone = _sorted_out(root)
    before = None if valid is None else evaluate(root, valid, split="valid")
    with _put_back_on_error(root, norms) as old:
        count = _estimate(root, norms, data, batches, step or _forward)
        for name in [name for name, norm in norms.items() if not _passes(norm)]:
            left_alone[name] = "no batch reached it"
            _fill(norms.pop(name), old)
        if not norms:
            raise ValueError(f"no batch norm was reached by the {count} batches; {_named(left_alone)}")
        _check_finite(norms)
        moved = {name: _distance(norm, old) for name, norm in norms.items()}
        after = None if valid is None else evaluate(root, valid, split="valid")
    return Recalibration(MappingProxyType(moved), MappingProxyType(left_alone), count, before, after)


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms that ``recalibrate`` would take anew, by name; empty where there is nothing to do.

    Args:
        model: any module; wrappers are looked through.

    Returns:
        Clean name -> module, shared ones once.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.BatchNorm1d(2), nn.LayerNorm(2))))
        ['0']
    """
    root = unwrap(model)
    return {name: module for name, module in _modules(root).items() if _reason(root, module) is None}


def _modules(root: nn.Module) -> dict[str, nn.Module]:
    named = cast("Iterator[tuple[str, nn.Module]]", root.named_modules())
    return {clean_name(name): module for name, module in named}


def _sorted_out(root: nn.Module) -> tuple[dict[str, _BatchNorm], dict[str, str]]:
    named = _modules(root)
    reasons = {name: _reason(root, module) for name, module in named.items()}
    norms = {name: cast(_BatchNorm, named[name]) for name, reason in reasons.items() if reason is None}
    left_alone = {name: reason for name, reason in reasons.items() if reason}
    if not norms:
        raise ValueError(
            "the model has no batch norm with running statistics, so there is nothing to recalibrate "
            f"({_named(left_alone)}). secateur.train.recalibrate.batch_norms(model) tells before"
        )
    return norms, left_alone


def _reason(root: nn.Module, module: nn.Module) -> str | None:
    """None: it is re-estimated. ``""``: no norm at all. Else why a norm is left alone."""
    if not isinstance(module, _BatchNorm):
        tracks = isinstance(getattr(module, "running_mean", None), Tensor)
        return f"{type(module).__name__} keeps running statistics in a way of its own" if tracks else ""
    if not module.track_running_stats or module.running_mean is None or module.running_var is None:
        return "it keeps no running statistics: every batch is normalised by its own"
    if module.num_batches_tracked is None:
        return "its counter num_batches_tracked is None, so batches cannot be averaged"
    if root.training and not module.training:
        return "it is frozen: in eval mode while the model is in train mode"
    return None


def _estimate(root: nn.Module, norms: Mapping[str, _BatchNorm], data: Any, batches: int, forward: Forward) -> int:
    """Run the passes with the norms alone in train mode; how many there were."""
    device = next((tensor.device for tensor in (*root.parameters(), *root.buffers())), torch.device("cpu"))
    momenta = {norm: norm.momentum for norm in norms.values()}
    given = [data] if isinstance(data, Tensor) else data  # iterating over a tensor would read its rows as batches
    count = 0
    with quiet(root, loader=data):
        try:
            for norm in momenta:
                norm.reset_running_stats()
                norm.momentum, norm.training = None, True
            for batch in limited(given, batches):
                count += 1
                forward(root, to_device(batch, device))
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch {count} has one value per channel, of which there is no variance. {_LARGER}"
            ) from error
        finally:
            for norm, momentum in momenta.items():
                norm.momentum = momentum
    return count


def _forward(model: nn.Module, batch: Batch) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Tensor):
        return model(batch)
    shape = type(batch).__name__
    if isinstance(batch, (tuple, list)):
        parts = tuple(cast("tuple[Any, ...]", batch))
        if 1 <= len(parts) <= 2:
            return model(parts[0])
        shape = f"{shape} of {len(parts)}"
    raise ValueError(
        f"a batch is a {shape}; known are tensors, (inputs, labels) pairs and mappings that go in as "
        "model(**batch). For anything else give step=lambda model, batch: model(...)"
    )


@contextmanager
def _put_back_on_error(root: nn.Module, norms: Mapping[str, _BatchNorm]) -> Generator[dict[Tensor, Tensor]]:
    """Yields the old value of every buffer; buffers of other modules than these norms are put back in any case."""
    old = {buffer: buffer.detach().clone() for buffer in root.buffers()}
    statistics = {buffer for norm in norms.values() for buffer in norm.buffers(recurse=False)}
    changed = old.keys()
    try:
        yield old
        changed = old.keys() - statistics
    finally:
        with torch.no_grad():
            for buffer in changed:
                buffer.copy_(old[buffer])


def _fill(norm: _BatchNorm, old: Mapping[Tensor, Tensor]) -> None:
    with torch.no_grad():
        for buffer in norm.buffers(recurse=False):
            buffer.copy_(old[buffer])


def _passes(norm: _BatchNorm) -> int:
    assert norm.num_batches_tracked is not None
    return int(norm.num_batches_tracked)


def _statistics(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    return mean, variance


def _check_finite(norms: Mapping[str, _BatchNorm]) -> None:
    broken = [n for n, norm in norms.items() if not all(bool(torch.isfinite(s).all()) for s in _statistics(norm))]
    if broken:
        raise ValueError(
            f"the new statistics of {', '.join(map(repr, broken[:3]))} are not finite, so the old ones were put back. "
            f"Either data or activations are not finite, or a batch has one value per channel. {_LARGER}"
        )


def _distance(norm: _BatchNorm, old: Mapping[Tensor, Tensor]) -> float:
    mean, variance = _statistics(norm)
    step = (mean - old[mean]).double() / (old[variance].double() + norm.eps).sqrt()
    return float(step.square().mean().sqrt()) if step.numel() else 0.0


def _named(left_alone: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in left_alone.items()) or "it has no batch norm at all"
