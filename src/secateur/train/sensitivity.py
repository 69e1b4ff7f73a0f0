"""How much each layer alone can lose: a scan without retraining, and allocations made from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, parse_unit, removed_count, select
from secateur.core.apportion import apportion
from secateur.core.real import is_real
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.group_targets import find_layout
from secateur.model.masked import masked
from secateur.model.names import unwrap
from secateur.model.quietly import quietly
from secateur.model.registry import find_masks
from secateur.model.selectors import Selector
from secateur.train.prune import score
from secateur.types import NM, AllocationEntry, Reduce, Unit

__all__ = ["Progress", "Sensitivity", "sensitivity"]

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Progress = Callable[[int, int, str], None]
"""``(done, of, key)``, after each evaluation."""


@dataclass(frozen=True)
class Sensitivity:
    """What a figure became when each layer alone was pruned.

    Attributes:
        dense: the figure of the model as it is; higher is better.
        sparsities: that were tried, ascending.
        figures: key -> the figure at each of them.
        sizes: key -> units.
    """

    dense: float
    sparsities: tuple[float, ...]
    figures: Mapping[str, tuple[float, ...]]
    sizes: Mapping[str, int]

    def shares(self, drop: float) -> dict[str, float]:
        """Per key the largest sparsity tried that costs at most ``drop``; 0 where none does.

        Args:
            drop: how much lower than dense the figure may be, in its own unit.

        Example:
            >>> scan = Sensitivity(0.9, (0.5, 0.9), {"a": (0.9, 0.8), "b": (0.7, 0.1)}, {"a": 10, "b": 20})
            >>> scan.shares(0.0), scan.shares(0.21)
            ({'a': 0.5, 'b': 0.0}, {'a': 0.9, 'b': 0.5})
        """
        slack = 1e-12 * max(1.0, abs(self.dense))
        return {
            key: max(
                (s for s, figure in zip(self.sparsities, row, strict=True) if self.dense - figure <= drop + slack),
                default=0.0,
            )
            for key, row in self.figures.items()
        }

    def sparsity(self, drop: float) -> float:
        """The share of all units that goes when each key loses its ``shares(drop)``."""
        shares = self.shares(drop)
        gone = sum(removed_count(self.sizes[key], share) for key, share in shares.items())
        return gone / sum(self.sizes.values())

    @property
    def allocation(self) -> AllocationEntry:
        """A rule that spends any sparsity by the scan: what ``allocation=`` takes.

        The drop that all keys may have is raised until enough goes; those that the last step reached share what it
        takes too much. At ``sparsity(drop)`` each key loses its ``shares(drop)``. Beyond the highest sparsity tried
        the keys share the rest in proportion to what they still have.
        """

        def by_scan(sizes: Mapping[str, int], keep: int) -> dict[str, int]:
            if set(sizes) != set(self.sizes) or any(self.sizes[key] != n for key, n in sizes.items()):
                raise ValueError(
                    f"the scan is of {dict(self.sizes)}, but the units to share out are {dict(sizes)}: prune the model "
                    "that was scanned, with the same unit, targets and exclude"
                )
            return self._spend(sizes, keep)

        return AllocationEntry(by_scan, "by a sensitivity scan", "Li et al. 2017, arXiv 1608.08710")

    def _spend(self, sizes: Mapping[str, int], keep: int) -> dict[str, int]:
        wanted = sum(sizes.values()) - keep
        before = dict.fromkeys(sizes, 0)
        for drop in sorted({self.dense - figure for row in self.figures.values() for figure in row}):
            gone = {key: removed_count(sizes[key], share) for key, share in self.shares(drop).items()}
            if sum(gone.values()) >= wanted:
                return self._between(sizes, before, gone, wanted)
            before = gone
        return self._between(sizes, before, dict(sizes), wanted)

    @staticmethod
    def _between(
        sizes: Mapping[str, int], less: Mapping[str, int], more: Mapping[str, int], wanted: int
    ) -> dict[str, int]:
        room = {key: more[key] - less[key] for key in sizes}
        missing, whole = wanted - sum(less.values()), sum(room.values())
        extra = apportion({key: missing * space / max(1, whole) for key, space in room.items()}, missing, room)
        return {key: n - less[key] - extra[key] for key, n in sizes.items()}

    def __str__(self) -> str:
        width = max(map(len, self.figures), default=3)
        head = f"{'':{width}}  {'dense':>8}" + "".join(f"{s:>8.2f}" for s in self.sparsities)
        rows = [
            f"{key:{width}}  {self.dense:>8.4f}" + "".join(f"{figure:>8.4f}" for figure in row)
            for key, row in self.figures.items()
        ]
        return "\n".join([head, *rows])


def sensitivity(
    model: nn.Module,
    evaluate: Callable[[nn.Module], float],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    criterion: CriterionLike = "magnitude",
    unit: str | Unit = "weight",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    example_inputs: Any = None,
    exact: bool = True,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
    init: Mapping[str, Tensor] | None = None,
    reduce: Reduce | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Prune each layer alone at several sparsities, and evaluate without retraining: ``f_l(r) = evaluate(model_l,r)``.

    ``evaluate`` runs in eval mode, without gradients, once for the dense model and once for each layer and sparsity.
    After each, and whatever it raises, weights, buffers, modes and random state are bit by bit as before.

    Args:
        model: any module; wrappers are looked through.
        evaluate: model -> a figure, higher is better, such as ``lambda m: sc.evaluate(m, valid).top1``.
        sparsities: shares of one layer's units to remove, ascending, above 0 and at most 1.
        criterion: what scores the units; as for ``sc.prune``, like all that follows.
        unit: what is removed together.
        targets: what to scan.
        exclude: what of that to leave out.
        example_inputs: for unit ``channel``.
        exact: for unit ``channel``.
        data: batches, for criteria that read them.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``.
        batches: how many to read.
        init: state dict before training.
        reduce: how weight scores pool to unit scores.
        seed: of random criteria.
        progress: called with ``(done, of, key)`` after each evaluation.

    Returns:
        The scan. ``sc.prune(model, scan.sparsity(drop=0.01), allocation=scan.allocation)`` prunes each layer as far as
        it alone may go.

    Raises:
        ValueError: for sparsities out of order, n:m patterns, a model that has masks, and figures that are no numbers.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 1, bias=False))
        >>> for parameter in net.parameters():
        ...     _ = parameter.data.fill_(0.5)
        >>> scan = sensitivity(net, lambda m: float(m(torch.ones(2))), sparsities=(0.5, 1.0))
        >>> scan.dense, scan.figures
        (2.0, {'0.weight': (1.0, 0.0), '1.weight': (1.0, 0.0)})

    Reference:
        Li, Kadav, Durdanovic, Samet, Graf 2017, arXiv 1608.08710.
    """
    shares, parsed = _checked(model, sparsities, unit)
    if not callable(evaluate):
        raise ValueError(f"evaluate={evaluate!r}: give a function of the model that returns a figure, larger is better")
    layout = find_layout(model, targets, exclude, parsed, example_inputs, exact)
    scores = score(
        model, criterion, unit=parsed, targets=targets, exclude=exclude, example_inputs=example_inputs, exact=exact,
        data=data, loss=loss, step=step, batches=batches, init=init, reduce=reduce, seed=seed,
    )  # fmt: skip
    total, done = 1 + len(scores) * len(shares), 0

    def figure(key: str, masks: Mapping[str, Tensor]) -> float:
        nonlocal done
        found = _evaluated(model, evaluate, masks)
        done += 1
        if progress is not None:
            progress(done, total, key)
        if not math.isfinite(found):
            raise ValueError(f"evaluate gave {found} with {key or 'nothing'} pruned: it has to return a finite number")
        return found

    dense, figures = figure("", {}), dict[str, tuple[float, ...]]()
    for key, units in scores.items():
        found = list[float]()
        for share in shares:
            keep = units.numel() - removed_count(units.numel(), share)
            found.append(figure(key, parsed.expand(select({key: units}, {key: keep}), {key: layout[key]})))
        figures[key] = tuple(found)
    return Sensitivity(dense, shares, figures, {key: units.numel() for key, units in scores.items()})


def _checked(model: nn.Module, sparsities: Sequence[float], unit: str | Unit) -> tuple[tuple[float, ...], Unit]:
    given: Any = sparsities
    shares: list[float] = list(cast("Iterable[float]", given)) if isinstance(given, Iterable) else []
    good = bool(shares) and all(map(is_real, shares))
    if not good or shares != sorted(set(shares)) or not 0 < shares[0] <= shares[-1] <= 1:
        raise ValueError(
            f"sparsities={sparsities!r}: give shares that rise, above 0 and at most 1, like (0.3, 0.6, 0.9)"
        )
    parsed, window = parse_unit(unit)
    if isinstance(window, NM):
        raise ValueError(f"unit={unit!r} has one sparsity, so there is nothing to scan; take unit='weight'")
    if find_masks(unwrap(model)) is not None:
        raise ValueError("this model has masks already: call masks.undo(), or scan before pruning")
    return tuple(shares), parsed


def _evaluated(model: nn.Module, evaluate: Callable[[nn.Module], float], masks: Mapping[str, Tensor]) -> float:
    """The figure with some weights at zero; everything is put back."""
    root = unwrap(model)
    buffers = [(buffer, buffer.detach().clone()) for buffer in root.buffers()]
    modules: list[Any] = list(root.modules())
    homes = [(module, dict(module._buffers)) for module in modules]
    try:
        with quietly(root), masked(model, masks), torch.no_grad():
            figure = evaluate(model)
        try:
            return float(figure)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"evaluate gave a {type(figure).__name__}, and it has to return one number, higher is better, such as "
                "lambda m: sc.evaluate(m, valid).top1"
            ) from error
    finally:
        for module, own in homes:  # evaluate may have put other tensors in their place
            module._buffers.clear()
            module._buffers.update(own)
        for buffer, value in buffers:
            buffer.detach().copy_(value)
