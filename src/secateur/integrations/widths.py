"""Which units of which groups go, and how many: the same number in every layer, or as the scores have it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, evidence_needed, parse_unit, resolve_criterion, settings_needed
from secateur.core import score as score_units
from secateur.model.evidence import Source, collect
from secateur.model.graph.group import Group
from secateur.model.names import parameters_by_name
from secateur.types import KeyLayout

__all__ = ["Amount", "Wish", "checked_amount", "default_multiple", "kept_count", "numbers_to_remove", "place_of"]

Amount: TypeAlias = "float | int"
"""A float is the share that goes, between 0 and 1; an integer is what stays, as the configuration counts it."""

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_LARGEST = 64


@dataclass(frozen=True)
class Wish:
    """What all widths are chosen by.

    Attributes:
        criterion: what scores the units, or the scores themselves by group name.
        source: data and loss for criteria that read them.
        multiple: widths that stay are multiples of it; None: ``default_multiple``.
    """

    criterion: CriterionLike | Mapping[str, Tensor]
    source: Source
    multiple: int | None = None

    def scores(self, root: nn.Module, groups: Mapping[str, Group]) -> dict[str, Tensor]:
        """The scores of all units of some groups; low ones go first.

        Raises:
            ValueError: if scores are given, and those of a group are missing or too few.
        """
        if isinstance(self.criterion, Mapping):
            for name, group in groups.items():
                given = self.criterion.get(name)
                if given is None or tuple(given.shape) != (group.units,):
                    raise ValueError(
                        f"criterion= holds scores of {list(self.criterion)[:8]}, and not {group.units} of {name!r}, "
                        "as secateur.groups names and counts them"
                    )
            return {name: self.criterion[name].detach().double().cpu() for name in groups}
        unit, _ = parse_unit("channel")
        own = parameters_by_name(root)
        layout = {
            name: KeyLayout((group.units,), kind="group", members=tuple(m for m in group.members if m.name in own))
            for name, group in groups.items()
        }
        entry = resolve_criterion(self.criterion)
        evidence = collect(root, evidence_needed(entry), layout, unit, self.source, settings_needed(entry))
        return {name: one.double().cpu() for name, one in score_units(entry, evidence, layout, unit).items()}


def place_of(group: Group) -> Literal["mlp", "hidden", "other"]:
    """What a channel group is, by where its tensors are.

    Returns:
        ``"mlp"``: all inside one layer, not in its attention; ``"hidden"``: it runs through layers; else ``"other"``
        (a pooler).
    """
    layers = {_layer(member.name) for member in group.members}
    if len(layers) > 1:
        return "hidden"
    inside = layers != {""} and not any(_ATTENTION.search(member.name) for member in group.members)
    return "mlp" if inside else "other"


def _layer(name: str) -> str:
    found = re.match(r"(?:.*?\.)?\d+\.", name)
    return found.group() if found else ""


def checked_amount(amount: Any, what: str) -> Amount:
    """A share or a width.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> checked_amount(0.5, "mlp")
        0.5
    """
    share = isinstance(amount, float) and 0.0 < amount < 1.0
    if not share and (type(amount) is not int or amount < 1):
        raise ValueError(
            f"{what}={amount!r}: give the share to remove, a float between 0 and 1, or the width that stays, an int"
        )
    return amount


def default_multiple(width: int, *, stacked: bool = False) -> int:
    """64; for widths under 512 the largest power of two that is at most an eighth of the width.

    Of experts that lie in one 3-D parameter at least 8: ``grouped_mm`` reads rows of whole 16 bytes.

    Args:
        width: before anything is removed.
        stacked: whether the width is that of such experts.

    Example:
        >>> [default_multiple(width) for width in (11008, 512, 300, 48, 6)], default_multiple(24, stacked=True)
        ([64, 64, 32, 4, 1], 8)
    """
    found = 1
    while found < _LARGEST and found * 2 <= width // 8:
        found *= 2
    return max(found, 8) if stacked else found


def kept_count(width: int, amount: Amount, multiple: int, what: str) -> int:
    """How many units stay.

    A share is rounded to the nearest multiple, at least one of them; a width is taken as it is.

    Args:
        width: before.
        amount: share to remove, or width that stays.
        multiple: what the width that stays is a multiple of.
        what: for messages.

    Raises:
        ValueError: if a given width is larger, or a share rounds to nothing.

    Example:
        >>> kept_count(11008, 0.3, 64, "mlp"), kept_count(48, 20, 4, "mlp")
        (7680, 20)
    """
    if isinstance(amount, int):
        if amount > width:
            raise ValueError(f"{what}={amount}: there are {width}; an int is what stays, a float the share that goes")
        return amount
    stays = _rounded(width - int(amount * width + 0.5), width, multiple)
    if stays == width:
        raise ValueError(
            f"{what}={amount}: of {width} all would stay, by multiples of {multiple}; give a larger share, "
            "or a smaller multiple="
        )
    return stays


def _rounded(stays: int, width: int, multiple: int) -> int:
    return min(width, max(multiple, (stays + multiple // 2) // multiple * multiple))


def numbers_to_remove(
    scores: Mapping[str, Tensor], amount: Amount, multiple: int, what: str, *, uniform: bool
) -> dict[str, list[int]]:
    """The units that go, of groups of one width.

    Args:
        scores: group -> scores.
        amount: share to remove, or width that stays.
        multiple: of the widths that stay.
        what: for messages.
        uniform: the same number of each group; else the lowest of all, and each group's number rounded.

    Example:
        >>> scores = {"a": torch.tensor([3.0, 1.0, 4.0]), "b": torch.tensor([9.0, 8.0, 7.0])}
        >>> numbers_to_remove(scores, 1, 1, "mlp", uniform=True)
        {'a': [0, 1], 'b': [1, 2]}
        >>> numbers_to_remove(scores, 2, 1, "mlp", uniform=False)
        {'a': [0, 1], 'b': []}
    """
    width = len(next(iter(scores.values())))
    kept = dict.fromkeys(scores, kept_count(width, amount, multiple, what))
    if not uniform:
        total = width * len(scores)
        gone = int(amount * total + 0.5) if isinstance(amount, float) else total - amount * len(scores)
        everything = torch.cat(list(scores.values()))
        lowest = torch.argsort(everything, stable=True)[:gone] // width
        for place, name in enumerate(scores):
            stays = width - int((lowest == place).sum())
            kept[name] = _rounded(stays, width, multiple)
    return {
        name: sorted(torch.argsort(one, stable=True)[: width - kept[name]].tolist()) for name, one in scores.items()
    }
