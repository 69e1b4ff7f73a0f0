"""Merging: what reads a removed unit reads a kept one instead, ``W_next[:, kept] += c W_next[:, removed]``.

Units are what batch norms in eval mode make of them (``model/norms``). Whether merging can be exact is tried on a
copy before anything is changed: there the removed units are made true multiples of their partners, and merging must
not move the output. A GELU or a layer norm in between shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.core import criterion_spec, needs, resolve_criterion
from secateur.core.asked import CriterionLike
from secateur.core.criteria import CRITERIA
from secateur.core.unit_channel import Channel
from secateur.core.unit_rows import unit_rows
from secateur.model.evidence import Source, collect
from secateur.model.graph.examples import as_examples
from secateur.model.graph.probe import Probes, difference, outputs_of
from secateur.model.graph.trace import tensor_names
from secateur.model.graph.twins import copied
from secateur.model.norms import other_rows, planted, with_norms
from secateur.model.reorder import places_of
from secateur.model.sharding import is_sharded
from secateur.types import CriterionEntry, KeyLayout, Layout, Member, Tensors, Unit

__all__ = ["check_merge", "merged_values"]

_SCALE = 2.0
"""Of the multiples on which the probe tries units that may be scaled."""


@dataclass(frozen=True, slots=True)
class _Heirs:
    """Of one group: which unit takes over from which, and with what factor."""

    key: KeyLayout
    removed: Tensor
    partner: Tensor
    factor: Tensor

    @property
    def probed(self) -> float:
        """The factor that the probe plants: another than 1 where units may be scaled."""
        return 1.0 if bool((self.factor == 1).all()) else _SCALE

    def places(self, member: Member) -> tuple[Tensor, Tensor]:
        """Positions of the removed units along a member's axis, and those of their partners, on the CPU."""
        positions = _positions(member, self.key.shape[0])
        return positions[self.removed].flatten(), positions[self.partner].flatten()


def check_merge(criterion: CriterionLike, unit: Unit) -> CriterionEntry:
    """The row of a criterion that knows how to merge.

    Args:
        criterion: as the user gave it.
        unit: what is removed together.

    Returns:
        Its row.

    Raises:
        ValueError: for criteria that do not, and for other units than ``channel``.

    Example:
        >>> check_merge("cosine", Channel()).level
        'unit'
    """
    able = ", ".join(repr(name) for name, row in CRITERIA.items() if row.merge is not None or row.fit is not None)
    entry = resolve_criterion(criterion)
    if not isinstance(entry, CriterionEntry) or (entry.merge is None and entry.fit is None):
        raise ValueError(
            f"merge=True: {_spec(criterion)} does not say which unit takes over from which; {able} do. Prune without "
            "merge=, or by one of these"
        )
    if not isinstance(unit, Channel):
        raise ValueError(
            f"merge=True gives the outgoing weights of removed units to others, and of a {unit.spec} nobody has seen "
            "who reads it; take unit='channel' with example_inputs="
        )
    return entry


def merged_values(
    root: nn.Module,
    entry: CriterionEntry,
    layout: Layout,
    unit_masks: Tensors,
    example_inputs: object,
    behind: Mapping[str, str],
) -> dict[str, Tensor]:
    """The weights that read the units, as they are after the merge; nothing is changed.

    Args:
        root: an unwrapped module, not masked yet.
        entry: a row with ``merge``.
        layout: group -> layout.
        unit_masks: group -> bool [units], what stays. What earlier masks took has zeros to hand on.
        example_inputs: for the probe.
        behind: batch norms behind layers, as ``norms_behind`` gives them.

    Returns:
        Parameter name -> float64 values.

    Raises:
        ValueError: for a group in which merging cannot be exact, with what the probe saw; for sharded models.
    """
    tensors = tensor_names(root)
    heirs = _find_heirs(root, entry, layout, unit_masks, behind)
    names = {member.name for one in heirs.values() for member in one.key.members if member.part == "in"}
    if sharded := [name for name in names if is_sharded(tensors[name])]:
        raise ValueError(f"merge=True: {sharded[0]!r} is sharded; merge before fully_shard")
    problem = _probed(root, heirs, behind, example_inputs)
    if problem:
        alone = {name: _probed(root, {name: one}, behind, example_inputs) for name, one in heirs.items()}
        name, said = next(((name, said) for name, said in alone.items() if said), (next(iter(heirs)), problem))
        raise ValueError(
            f"merge=True: the units of {name!r} cannot take over from each other exactly, even where one is a multiple "
            f"of another: {said}. Between what makes and what reads them has to be a positively homogeneous function "
            "that is the same for all of them, such as a ReLU, with or without batch norms that hold running "
            "statistics; a GELU, a layer norm, a batch norm by the statistics of the batch are not. "
            f"Leave it out with exclude=[{name!r}], or prune without merge="
        )
    values = {name: tensors[name].detach().to(torch.float64, copy=True) for name in names}
    for one in heirs.values():
        _take_over(values, one, None)
    return values


def _find_heirs(
    root: nn.Module, entry: CriterionEntry, layout: Layout, unit_masks: Tensors, behind: Mapping[str, str]
) -> dict[str, _Heirs]:
    assert entry.merge is not None  # check_merge
    unit, kinds = Channel(), needs(entry.merge)
    evidence = with_norms(root, layout, collect(root, kinds, layout, unit, Source()), behind)
    found: dict[str, _Heirs] = {}
    for name, key in layout.items():
        kept = unit_masks[name].cpu().bool()
        removed = (~kept).nonzero().squeeze(1)
        if not len(removed) or not bool(kept.any()):
            continue
        if not any(member.part == "in" for member in key.members):
            raise ValueError(f"merge=True: no weight reads the units of {name!r}; leave it out with exclude=[{name!r}]")
        rows = {kind: unit_rows(kind, evidence[kind], name, key, unit).cpu() for kind in kinds}
        if "bias" in rows:
            size = torch.cat([*rows.values()], 2)[0].double().square().sum(1).sqrt()
            rows["bias"] = torch.cat([rows["bias"], other_rows(root, key, behind, size)], 2)
        partner, factor = entry.merge(*rows.values(), kept=kept, removed=removed)
        some = factor != 0
        if bool(some.any()):
            found[name] = _Heirs(key, removed[some], partner[some], factor[some])
    return found


def _take_over(values: dict[str, Tensor], one: _Heirs, factor: float | None) -> None:
    """Add what reads the removed units to what reads their partners."""
    for member in one.key.members:
        if member.part != "in":
            continue
        tensor = values[member.name]
        gone, heir = (places.to(tensor.device) for places in one.places(member))
        moved = tensor.index_select(member.dim, gone)
        if factor is None:
            factors = one.factor.repeat_interleave(len(gone) // len(one.removed)).to(tensor)
            moved = moved * factors.reshape([-1 if axis == member.dim else 1 for axis in range(tensor.dim())])
        else:
            moved = moved * factor
        tensor.index_add_(member.dim, heir, moved)


@torch.no_grad()
def _probed(root: nn.Module, heirs: Mapping[str, _Heirs], behind: Mapping[str, str], example_inputs: object) -> str:
    """What merging changes where every removed unit is a multiple of its partner; nothing where it is exact."""
    multiples = copied(root)
    tensors = tensor_names(multiples)
    for one in heirs.values():
        for part in planted(root, one.key, behind, one.probed):
            tensor, dim = tensors[part.member.name].detach(), part.member.dim
            gone, heir = (places.to(tensor.device) for places in one.places(part.member))
            tensor.index_copy_(dim, gone, tensor.index_select(dim, heir) * part.scale + part.shift)
    merged = copied(multiples)
    values = {name: tensor.detach() for name, tensor in tensor_names(merged).items()}
    for one in heirs.values():
        _take_over(values, one, one.probed)
    for one in heirs.values():
        for member in one.key.members:
            gone = one.places(member)[0].to(values[member.name].device)
            values[member.name].index_fill_(member.dim, gone, 0)
    for example, outputs in Probes(multiples, as_examples(example_inputs), (2,)).expected(multiples):
        said = difference(outputs, outputs_of(merged, example), exact=True)
        if said:
            return said.replace("masked model", "whole model")
    return ""


def _positions(member: Member, units: int) -> Tensor:
    """[units, positions of each] along a member's axis."""
    places = places_of(member, units)
    if places is None:
        raise ValueError(
            f"merge=True: units have different numbers of positions in {member.name!r}, so none can take over from "
            "another"
        )
    return places


def _spec(criterion: CriterionLike) -> str:
    try:
        return f"criterion {criterion_spec(criterion)!r}"
    except ValueError:
        return "this criterion"
