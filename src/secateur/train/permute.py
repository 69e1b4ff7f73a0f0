"""Channels in an order in which n:m patterns lose less; the model computes what it did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core import CriterionLike, batches_needed, evidence_needed, parse_unit, settings_needed
from secateur.core import score as score_units
from secateur.core.nm_readers import kept_by_pattern, order_for, readers_of, stood_anew
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.evidence import Source, collect
from secateur.model.names import unwrap
from secateur.model.removal import Removal, tensor_shapes
from secateur.model.reorder import Reordering, carry_out, places_of, refuse_unmovable, reordered, turned_back
from secateur.model.selectors import Selector
from secateur.model.targets import find_targets
from secateur.text import MISSING
from secateur.types import NM, Layout

__all__ = ["LayerKept", "Permutation", "permute_channels"]

_STANDING: WeakKeyDictionary[nn.Module, list[Permutation]] = WeakKeyDictionary()
"""What was not undone yet, first to last."""


@dataclass(frozen=True, slots=True)
class LayerKept:
    """What n:m keeps of the scores of one layer.

    Attributes:
        name: the weight.
        total: the sum of all its scores.
        before: of that, what was kept in the old order.
        after: what is kept in the new one.
    """

    name: str
    total: float
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Permutation:
    """What became of the order of the channels.

    Attributes:
        within: the pattern.
        orders: group -> for each place the unit that stands there now; groups that kept their order are not there.
        layers: of all layers that were scored.
        left: group, or axis of a tensor, that has its old order -> why.
    """

    within: NM
    orders: Mapping[str, tuple[int, ...]]
    layers: tuple[LayerKept, ...]
    left: Mapping[str, str]
    _removal: Removal = field(repr=False)
    _model: Callable[[], nn.Module | None] = field(repr=False)

    @property
    def before(self) -> float:
        """The sum of all scores that the pattern kept in the old order."""
        return sum(one.before for one in self.layers)

    @property
    def after(self) -> float:
        """The sum that it keeps now; never less."""
        return sum(one.after for one in self.layers)

    def undo(self, *, optimizer: Optimizer | None = None) -> None:
        """Put every channel back where it was, bit by bit; what was trained since goes along.

        Args:
            optimizer: whose state goes along too.

        Raises:
            ValueError: if the model is gone, has masks, or lost channels since, if this was undone already, or if a
                later permutation still stands; nothing is changed then.
        """
        root = self._model()
        if root is None:
            raise ValueError("the model of this permutation has been deleted; it is held weakly")
        refuse_unmovable(root, root, "put its channels back")
        standing = _STANDING[root]
        if self not in standing:
            raise ValueError("this permutation was undone already: every channel is back where it was")
        if later := len(standing) - 1 - standing.index(self):
            raise ValueError(f"{later} later permute_channels of this model still stand: undo the last one first")
        shapes = tensor_shapes(root)
        for name, axes in self._removal.kept.items():
            for dim, positions in axes.items():
                now = shapes[name][dim] if name in shapes else 0
                if now != len(positions):
                    raise ValueError(
                        f"axis {dim} of {name!r} had {len(positions)} positions when channels were permuted and has "
                        f"{now} now, so they cannot go back: undo before shrinking"
                    )
        carry_out(root, turned_back(self._removal), _given(optimizer))
        standing.remove(self)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "within": {"keep": self.within.keep, "of": self.within.of},
            "orders": {name: list(order) for name, order in self.orders.items()},
            "layers": [asdict(one) for one in self.layers],
            "left": dict(self.left),
        }

    def __str__(self) -> str:
        width = max(len(one.name) for one in self.layers)
        lines = [f"{self.within} keeps of the scores of"]
        lines += [
            f"  {one.name:<{width}}  {_share(one.before, one.total)} -> {_share(one.after, one.total)}"
            for one in self.layers
        ]
        lines += ["left as they were:"] if self.left else []
        return "\n".join([*lines, *(f"  {name}: {why}" for name, why in self.left.items())])


def permute_channels(
    model: nn.Module,
    within: NM | str = NM(keep=2, of=4),  # noqa: B008 - frozen
    *,
    example_inputs: Any,
    criterion: CriterionLike = "magnitude",
    targets: Selector | None = None,
    exclude: Selector | None = None,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
    mode: Literal["eval", "train"] = "eval",
    seed: int = 0,
    sweeps: int = 10,
    optimizer: Optimizer | None = None,
) -> Permutation:
    """Bring channels into an order in which n:m groups keep more of the scores; the model computes what it did.

    ``max_order sum_layers sum_rows sum_groups (n largest scores of m neighbours)``. The order of channels is free
    wherever all that makes, carries and reads them follows: hidden layers, behind batch norms, whole residual
    streams. Each such group is first spread (by falling total score over the blocks in turn) and then improved by
    assignments; an order that is not better is not taken. Tried on a copy before the model is touched, and carried out
    on all tensors at once, gradients too. Call it before ``sc.prune(model, within=within, ...)`` with the same
    criterion, data and targets.

    Args:
        model: any module; wrappers are looked through. It is changed in place.
        within: ``NM(keep=2, of=4)`` or ``"2 of 4"``.
        example_inputs: to trace the model and to see that its output stays: a tensor, a tuple of arguments, or a
            mapping of keyword arguments.
        criterion: what scores the weights; one whose scores move along with them, so none by noise or by the weights
            before training.
        targets: which layers will be pruned, as in ``prune``; other layers follow, but do not count.
        exclude: what of that stays dense.
        data: an iterable of batches, or one; for criteria that read it.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        batches: how many to read; None: as the criterion's table says.
        mode: train or eval mode of the passes over data.
        seed: of what estimates draw.
        sweeps: of the search, at most; one takes 40 seconds on one core for 4,096 channels read by 4,096 rows.
        optimizer: whose state goes along; the state of one that is not given stays behind and is of no use any more,
            and so are copies of the weights by name (of an average, of an earlier state dict).

    Returns:
        A ``Permutation``: orders, what is kept per layer, what was left and why; ``undo()`` puts everything back.

    Raises:
        ValueError: for a model with masks or inside ``DistributedDataParallel``, for what ``score`` refuses, for scores
            that stay where they are, and if the output would change; the model is then as it was.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(5, 4)
        >>> with torch.no_grad():
        ...     _ = net[2].weight.copy_(torch.tensor([4.0, 4, 4, 4, 1, 1, 1, 1]).expand(2, 8))
        >>> y = net(x)
        >>> done = permute_channels(net, example_inputs=x, targets="2.weight")
        >>> done.before, done.after, torch.allclose(net(x), y)
        (20.0, 32.0, True)

    Reference:
        Zhang, Bai, Lin, Zhao, Hou, Cannistraci 2024, ICLR; Pool, Yu 2021, NeurIPS (from memory, not verified).
    """
    pattern = parse_unit(within)[1]
    if not isinstance(pattern, NM):
        raise ValueError(f"within={within!r}: give a pattern, NM(keep=2, of=4) or '2 of 4'")
    if type(sweeps) is not int or sweeps < 0:
        raise ValueError(f"sweeps={sweeps!r}: how often the search goes over all places, a whole number from 0")
    root = unwrap(model)
    refuse_unmovable(model, root, "permute channels")
    layout = find_targets(model, targets, exclude)
    count = batches_needed(criterion) if batches is None else batches
    source = Source(data, loss, step, count, None, seed, mode, example=example_inputs)
    unit, _ = parse_unit("weight")
    kinds = evidence_needed(criterion)
    if staying := {"init", "noise"} & set(kinds):
        raise ValueError(
            f"criterion={criterion!r} reads {' and '.join(sorted(staying))}, which do not move along with the weights, "
            "so its scores would be others in the new order: take one by the weights or the data, such as 'magnitude' "
            "or 'ria'"
        )
    evidence = collect(model, kinds, layout, unit, source, settings_needed(criterion))
    scores = score_units(criterion, evidence, layout, unit)
    free = Reordering(root, example_inputs)
    orders, kept = _orders(free, scores, layout, pattern, sweeps)
    removal = reordered(free.groups, orders)
    if problem := free.problem(orders):
        raise ValueError(f"nothing was changed: in the new order of its channels {problem}")
    carry_out(root, removal, _given(optimizer))
    layers = tuple(
        LayerKept(name, float(score.sum(dtype=torch.float64)), *kept[name]) for name, score in scores.items()
    )
    done = Permutation(pattern, orders, layers, dict(free.left), removal, ref(root))
    _STANDING.setdefault(root, []).append(done)
    return done


def _orders(
    free: Reordering, scores: Mapping[str, Tensor], layout: Layout, pattern: NM, sweeps: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[float, float]]]:
    """The new orders, and weight -> what the pattern keeps of it before and after.

    Groups that keep their order are noted among those that were left.
    """
    now, orders = dict(scores), dict[str, tuple[int, ...]]()
    first = {name: kept_by_pattern(score, layout[name], pattern) for name, score in scores.items()}
    for name, group in free.groups.items():
        members = {(member.name, member.dim): places_of(member, group.units) for member in group.members}
        readers = readers_of(members, layout)
        order, why = order_for(readers, now, layout, pattern, sweeps=sweeps)
        if order is None:
            free.left[name] = why
            continue
        orders[name] = tuple(int(unit) for unit in order)
        for reader in readers:  # one weight may read several groups side by side
            now[reader.name] = stood_anew(now[reader.name], layout[reader.name], reader.places, order)
    then = {name: kept_by_pattern(score, layout[name], pattern) for name, score in now.items()}
    return orders, {name: (first[name], then[name]) for name in first}


def _share(part: float, whole: float) -> str:
    return f"{part / whole:7.2%}" if whole > 0.0 else MISSING


def _given(optimizer: Optimizer | None) -> Sequence[Optimizer]:
    return () if optimizer is None else (optimizer,)
