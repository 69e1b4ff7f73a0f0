"""The unit ``channel``: slices of several tensors that only go together.

Its layouts are keyed by coupled group, its scores and masks of weights by parameter: ``pool`` reads the
scores of parameters and gives those of units, ``expand`` the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from secateur.core.canonical import wide
from secateur.core.reduce import MemberScores, check_shapes, known_reduce
from secateur.types import KeyLayout, Layout, Member, Reduce, Tensors, Unit

__all__ = ["Channel", "evidence_layout", "owned_rows", "parameter_layout", "producer_shape", "touching"]


@dataclass(frozen=True, slots=True)
class Channel:
    """What makes, carries and reads one channel: filter, bias, norm, the next layers' inputs; grid ``(units,)``.

    Args:
        scored: whose weights make a unit's score: ``"out"``, those of the producers (all where a group has
            none), or ``"all"``. Tensors with one axis (biases, norms) are masked along, but never scored. Criteria
            that score outputs (activations, gates) are of the producers in either case.
        over: ``"members"``: each of these tensors is reduced by itself, and the unit is their mean; ``"weights"``:
            all of their weights are reduced together. Criteria that compare whole units (``cosine``) read all weights
            in either case.

    Raises:
        ValueError: for other words.

    Example:
        >>> producer = Member("a", (2, 3), 0, "out", (0, 1))
        >>> consumer = Member("b", (1, 4), 1, "in", (0, 0, 1, 1))
        >>> layout = {"a": KeyLayout((2,), "group", members=(producer, consumer))}
        >>> Channel().pool({"a": torch.tensor([[1.0, 2.0, 3.0], [3.0, 3.0, 3.0]])}, layout)["a"].tolist()
        [2.0, 3.0]
        >>> masks = Channel().expand({"a": torch.tensor([True, False])}, layout)
        >>> masks["a"].tolist(), masks["b"].tolist()
        ([[True, True, True], [False, False, False]], [[True, True, False, False]])
    """

    scored: Literal["out", "all"] = "out"
    over: Literal["members", "weights"] = "members"

    def __post_init__(self) -> None:
        if self.scored not in ("out", "all"):
            raise ValueError(f"channel({self.scored}): take 'channel' (scored by the producers) or 'channel(all)'")
        if self.over not in ("members", "weights"):
            raise ValueError(
                f"channel({self.scored}, {self.over}): take 'members' (their mean) or 'weights' (all at once)"
            )

    @property
    def spec(self) -> str:
        """``"channel"``, ``"channel(all)"``, or these with ``weights``."""
        if self.over == "weights":
            return f"channel({self.scored}, weights)"
        return "channel" if self.scored == "out" else "channel(all)"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(units,)``."""
        _check_group(layout)
        return layout.shape

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Scores of parameters -> scores of units: the sum, norm or maximum in each member, then the mean of members.

        So a unit that several layers make is not larger for that (with ``over="weights"`` it is, by a sum). ``"mean"``
        and ``"rms"`` divide that mean by what ones would come to. A unit that only some members have,
        side by side in a group, is the mean of those. Bool tensors say for each unit whether anything of it, biases and
        norms too, is kept: a neighbouring group may have removed the rest.
        """
        parameters = parameter_layout(layout)
        check_shapes("scores", scores, parameters, lambda key: parameters[key].shape)
        if all(score.dtype == torch.bool for score in scores.values()):
            return {group: _any_kept(scores, group, key) for group, key in layout.items()}
        known_reduce(reduce)
        return {group: self._pool(scores, group, key, reduce) for group, key in layout.items()}

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Masks of units -> masks of parameters: an element stays if every unit that it belongs to stays."""
        check_shapes("unit masks", unit_masks, layout, lambda group: self.grid(layout[group]))
        masks: dict[str, Tensor] = {}
        for group, kept in unit_masks.items():
            lines, whole = _Lines(kept.bool()), bool(kept.all())
            for member in layout[group].members:
                if whole or member.part == "direction":
                    if member.name not in masks:
                        masks[member.name] = torch.ones(member.shape, dtype=torch.bool, device=kept.device)
                    continue
                along = [1] * len(member.shape)
                along[member.dim] = len(member.owner)
                line = lines.of(member.owner).view(along)
                if member.name in masks:
                    masks[member.name] &= line
                else:
                    masks[member.name] = line.expand(member.shape).clone(memory_format=torch.contiguous_format)
        return masks

    def members(self, layout: KeyLayout) -> tuple[Member, ...]:
        """The members whose weights score the units of a group."""
        _check_group(layout)
        weights = tuple(member for member in layout.members if len(member.shape) >= 2 and member.part != "direction")
        producers = tuple(member for member in weights if member.part == "out")
        return producers if self.scored == "out" and producers else weights

    def _pool(self, scores: Tensors, group: str, key: KeyLayout, reduce: Reduce) -> Tensor:
        """[units]."""
        members = self.members(key)
        if missing := [member.name for member in members if member.name not in scores]:
            raise ValueError(
                f"group {group!r} is scored by the weights of {missing[0]!r}, for which there are no scores"
            )
        found = MemberScores(key.shape[0], reduce, self.over == "weights")
        for member in members:
            found.add(*owned_rows(scores[member.name], member))
        if (unit := found.missing()) is not None:
            hint = "; with channel(all) those that read it score it, too" if self.scored == "out" else ""
            raise ValueError(f"group {group!r}: none of the weights that score units is of unit {unit}{hint}")
        return found.result(scores[member.name] for member in members)

    def add_up(self, outputs: Tensors, layout: Layout, reduce: Reduce = "sum") -> dict[str, Tensor]:
        """Scores of the outputs of producers -> scores of units: their sum or mean in each producer, the mean of these.

        With ``over="weights"`` the sum or mean over all outputs of all producers. Unlike in ``pool``, a mean is taken
        in each producer first: a rate is not larger in a layer that has more outputs of a unit.

        Args:
            outputs: producer -> [outputs]. Where a grouped transposed convolution has more outputs than its axis has
                positions, they follow each other group by group. Producers that are not there contribute nothing.
            layout: group -> layout.
            reduce: of several outputs of one producer: ``"mean"`` for what is a rate or a size per output, else the
                sum: contributions add.

        Returns:
            Group -> [units].

        Raises:
            ValueError: for a unit without any scored output.
        """
        pooled = self.over == "weights"
        return {group: _add_up(outputs, group, key, reduce, pooled) for group, key in layout.items()}


def parameter_layout(layout: Layout) -> dict[str, KeyLayout]:
    """The parameters behind the keys: of a group the tensors of its members, other keys as they are.

    Args:
        layout: key -> layout.

    Returns:
        Parameter name -> layout, in order of appearance.

    Raises:
        ValueError: if two members give one tensor different shapes.

    Example:
        >>> members = (Member("a", (2, 3), 0, "out", (0, 1)), Member("b", (2,), 0, "follows", (0, 1)))
        >>> list(parameter_layout({"a": KeyLayout((2,), "group", members=members), "c": KeyLayout((5, 2))}))
        ['a', 'b', 'c']
    """
    found: dict[str, KeyLayout] = {}
    for key, one in layout.items():
        if one.kind != "group":
            found[key] = one
        for member in one.members:
            known = found.setdefault(member.name, _by_shape(member.shape))
            if known.shape != member.shape:
                raise ValueError(
                    f"group {key!r}: its member {member.name!r} has shapes {known.shape} and {member.shape}"
                )
    return found


def evidence_layout(unit: Unit, layout: Layout) -> dict[str, KeyLayout]:
    """The parameters whose evidence the scores of a unit are made from.

    Example:
        >>> members = (Member("a", (2, 3), 0, "out", (0, 1)), Member("b", (2,), 0, "follows", (0, 1)))
        >>> list(evidence_layout(Channel(), {"a": KeyLayout((2,), "group", members=members)}))
        ['a']
    """
    if not isinstance(unit, Channel):
        return dict(layout)
    return {member.name: _by_shape(member.shape) for key in layout.values() for member in unit.members(key)}


def touching(layout: Layout, keys: Iterable[str]) -> tuple[dict[str, KeyLayout], dict[str, KeyLayout]]:
    """What a change of some keys reaches.

    Args:
        layout: key -> layout.
        keys: of them, those that change.

    Returns:
        The parameters of these keys, and all keys that have a part in those parameters.

    Example:
        >>> touching({"a": KeyLayout((2, 3)), "b": KeyLayout((2, 3))}, ["a"])[1].keys()
        dict_keys(['a'])
    """
    parameters = parameter_layout({key: layout[key] for key in keys})
    sharing = {
        key: one for key, one in layout.items() if not parameters.keys().isdisjoint(parameter_layout({key: one}))
    }
    return parameters, sharing


def producer_shape(layout: KeyLayout) -> tuple[int, ...]:
    """The shape by which allocations tell layers apart: the parameter's; of a group, its first producer's.

    Example:
        >>> producer_shape(KeyLayout((2,), "group", members=(Member("a", (2, 3), 0, "out", (0, 1)),)))
        (2, 3)
    """
    return Channel().members(layout)[0].shape if layout.kind == "group" else layout.shape


@final
class _Lines:
    """What stays along one axis, of a group whose members mostly have the same owners."""

    def __init__(self, kept: Tensor) -> None:
        self._kept = kept
        self._known: dict[int, tuple[tuple[int, ...], Tensor]] = {}

    def of(self, owner: tuple[int, ...]) -> Tensor:
        """For each position whether its unit, if it has one, stays."""
        found = self._known.get(id(owner))
        if found is None:
            units = torch.tensor(owner, device=self._kept.device)
            found = owner, self._kept[units.clamp(min=0)] | (units < 0)
            self._known[id(owner)] = found
        return found[1]


def _check_group(layout: KeyLayout) -> None:
    if layout.kind != "group" or len(layout.shape) != 1 or not any(len(member.shape) >= 2 for member in layout.members):
        raise ValueError(
            f"unit 'channel' goes over coupled groups, and this is the layout of one {layout.kind} weight of shape "
            f"{layout.shape} without members: sc.prune and sc.score find groups by themselves from example_inputs="
        )


def _by_shape(shape: tuple[int, ...]) -> KeyLayout:
    return KeyLayout(shape, "linear" if len(shape) <= 2 else "conv")


def _any_kept(masks: Tensors, group: str, key: KeyLayout) -> Tensor:
    members = [member for member in key.members if member.name in masks and member.part != "direction"]
    if not members:
        raise ValueError(f"group {group!r}: there is no mask of any of its {len(key.members)} members")
    kept = torch.zeros(key.shape, dtype=torch.int64)
    for member in members:
        rows, owner = owned_rows(masks[member.name], member)
        kept.index_add_(0, owner, rows.any(1).to(torch.int64).cpu())
    return (kept > 0).to(masks[members[0].name].device)


def _add_up(outputs: Tensors, group: str, key: KeyLayout, reduce: Reduce, pooled: bool) -> Tensor:
    producers = [member for member in key.members if member.part == "out" and member.name in outputs]
    how: Reduce = "mean" if reduce == "mean" else "sum"
    found = MemberScores(key.shape[0], how, pooled)
    for member in producers:
        score, positions = outputs[member.name], len(member.owner)
        if score.dim() != 1 or score.numel() % positions:
            raise ValueError(f"{member.name!r} has {positions} outputs, its scores have shape {tuple(score.shape)}")
        rows = owned_rows(wide(score).view(-1, positions).T, member, dim=0)
        found.add(*(rows if pooled or how == "sum" else _rates(*rows, key.shape[0])))
    if (unit := found.missing()) is not None:
        raise ValueError(f"group {group!r}: unit {unit} has no output that is scored")
    return found.result(outputs[member.name] for member in producers)


def _rates(rows: Tensor, owner: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """The mean of each unit that a member has, as one row for each."""
    own = MemberScores(units, "mean")
    own.add(rows, owner)
    there = torch.zeros(units, dtype=torch.bool).index_fill_(0, owner, True).nonzero()[:, 0]
    return own.scores()[there][:, None], there


def owned_rows(tensor: Tensor, member: Member, dim: int | None = None) -> tuple[Tensor, Tensor]:
    """The owned positions of a member as rows [positions, elements], and the unit of each [positions], on the CPU."""
    rows = tensor.movedim(member.dim if dim is None else dim, 0).flatten(1) if tensor.dim() > 1 else tensor[:, None]
    owner = torch.tensor(member.owner)
    if int(owner.min()) >= 0:
        return rows, owner
    owned = owner >= 0
    return rows[owned.to(rows.device)], owner[owned]
