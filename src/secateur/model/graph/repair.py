"""Numbers that a module keeps beside its weights: its heads, its width, the sizes of a split.

A forward such as ``x.view(batch, tokens, self.heads, -1)`` needs ``self.heads`` to follow. Which attributes do is not
written anywhere; every hypothesis here is tried, and taken only if the probes pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

from torch import nn

from secateur.model.graph.cutting import Keep
from secateur.model.graph.group import Group
from secateur.model.graph.trace import tensor_names
from secateur.model.removal import Removal
from secateur.model.removal.attributes import derivation

__all__ = ["hypotheses"]

_Edit: TypeAlias = tuple[str, str, "int | tuple[int, ...]"]
_MOST = 24
"""Hypotheses tried before a plan is given up."""


def hypotheses(root: nn.Module, removal: Removal, groups: Mapping[str, Group], keep: Keep) -> Iterator[Removal]:
    """Removals with more and more attributes edited, the plain one first."""
    yield removal
    sure, doubtful = _edits(root, removal, groups, keep)
    families: dict[tuple[str, str], list[_Edit]] = defaultdict(list)
    modules = dict(root.named_modules())
    for edit in [*sure, *doubtful]:
        families[type(modules[edit[0]]).__name__, edit[1]].append(edit)
    tried: set[frozenset[_Edit]] = {frozenset()}
    names = list(families)
    wholes = [sure, [*sure, *doubtful]]
    singles = [families[name] for name in names]
    pairs = [families[a] + families[b] for i, a in enumerate(names) for b in names[i + 1 :]]
    without = [[e for other in names if other != name for e in families[other]] for name in names]
    softer = _kept_temperature(groups, keep)
    for edits in [list[_Edit](), *wholes, *singles, *without, *pairs][:_MOST]:
        if frozenset(edits) not in tried:
            tried.add(frozenset(edits))
            yield _with(removal, edits)
        if softer:
            yield replace(_with(removal, edits), scales={**removal.scales, **softer})


def _kept_temperature(groups: Mapping[str, Group], keep: Keep) -> dict[str, float]:
    """Factors that keep the old temperature where attention divides by the root of the width it finds.

    With ``d'`` of ``d`` places ``1/sqrt(d')`` takes the place of ``1/sqrt(d)``: queries times ``sqrt(d'/d)`` undo it.
    """
    factors: dict[str, float] = {}
    for name, mask in keep.items():
        group = groups[name]
        met = [m for m in group.members if m.part == "out"]
        if group.kind != "head_dim" or bool(mask.all()) or len(met) < 2:
            continue
        query = met[0].name
        layer = query.rpartition(".")[0]
        share = int(mask.sum()) / group.units
        for member in group.members:
            if member.name == query or (member.part == "follows" and member.name == f"{layer}.bias"):
                factors[member.name] = share**0.5
    return factors


def _with(removal: Removal, edits: list[_Edit]) -> Removal:
    attributes = {name: dict(values) for name, values in removal.attributes.items()}
    for module, attribute, value in edits:
        attributes.setdefault(module, {})[attribute] = value
    return replace(removal, attributes=attributes)


def _edits(
    root: nn.Module, removal: Removal, groups: Mapping[str, Group], keep: Keep
) -> tuple[list[_Edit], list[_Edit]]:
    """Integers that equal a width that changes nearby; doubtful where the same width also stays nearby."""
    changed, stays = _widths(root, removal)
    sure, doubtful = list[_Edit](), list[_Edit]()
    counts = _counts(groups, keep)
    for name, module in root.named_modules():
        if name not in changed or derivation(module) is not None:
            continue
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or isinstance(value, bool):
                continue
            new = _new_value(value, changed[name])
            if new is not None and new != value:
                old = set(value) if isinstance(value, (tuple, list)) else {value}
                (doubtful if old & stays[name] else sure).append((name, attribute, new))
            elif isinstance(value, int):
                doubtful += [
                    (name, attribute, value * kept // units)
                    for units, kept in counts.get(name, ())
                    if value > 1 and value % units == 0
                ]
    return sure, doubtful


def _new_value(value: object, pairs: Mapping[int, int]) -> int | tuple[int, ...] | None:
    if isinstance(value, int):
        return pairs.get(value)
    if isinstance(value, (tuple, list)) and value and all(type(one) is int for one in value):
        return tuple(pairs.get(one, one) for one in value)
    return None


def _widths(root: nn.Module, removal: Removal) -> tuple[dict[str, dict[int, int]], dict[str, set[int]]]:
    """Module -> widths in it that change (old -> new), and widths that stay."""
    changed: dict[str, dict[int, int]] = defaultdict(dict)
    stays: dict[str, set[int]] = defaultdict(set)
    for name, tensor in tensor_names(root).items():
        for owner in _owners(name):
            for dim, size in enumerate(tensor.shape):
                kept = removal.kept.get(name, {}).get(dim)
                if kept is None:
                    stays[owner].add(size)
                else:
                    changed[owner][size] = len(kept)
    return changed, stays


def _counts(groups: Mapping[str, Group], keep: Keep) -> dict[str, set[tuple[int, int]]]:
    """Module -> (units, units that stay) of the groups that it has a part in."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for name, mask in keep.items():
        if not bool(mask.all()):
            for member in groups[name].members:
                for owner in _owners(member.name):
                    found[owner].add((groups[name].units, int(mask.sum())))
    return found


def _owners(name: str) -> Iterator[str]:
    parts = name.split(".")[:-1]
    for length in range(len(parts), -1, -1):
        yield ".".join(parts[:length])
