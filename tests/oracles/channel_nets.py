"""Small networks, their coupled groups written down by hand, and slow definitions of pooling and expanding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.types import KeyLayout, Member

__all__ = [
    "CHAIN",
    "RESIDUAL",
    "Chain",
    "Residual",
    "elements",
    "expand_slowly",
    "member",
    "parameters_of",
    "pool_slowly",
    "put_groups",
]


def member(name: str, shape: tuple[int, ...], dim: int, part: Any, repeat: int = 1) -> Member:
    """The plain case: unit i at the positions i * repeat to (i + 1) * repeat - 1."""
    return Member(name, shape, dim, part, tuple(position // repeat for position in range(shape[dim])))


class Chain(nn.Module):
    """conv, batch norm, relu, conv, flatten, linear, linear; inputs [B, 2, 3, 3]."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.fc1 = nn.Linear(36, 8)
        self.fc2 = nn.Linear(8, 3)
        with torch.no_grad():
            self.bn.weight.uniform_(0.5, 1.5)
            self.bn.bias.uniform_(-1.0, 1.0)
            self.bn.running_mean.uniform_(-1.0, 1.0)
            self.bn.running_var.uniform_(0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.bn(self.conv1(x)))
        h = torch.relu(self.conv2(h)).flatten(1)
        return self.fc2(torch.relu(self.fc1(h)))


_CONV1 = (
    member("conv1.weight", (6, 2, 3, 3), 0, "out"),
    member("conv1.bias", (6,), 0, "follows"),
    member("bn.weight", (6,), 0, "follows"),
    member("bn.bias", (6,), 0, "follows"),
    member("bn.running_mean", (6,), 0, "follows"),
    member("bn.running_var", (6,), 0, "follows"),
    member("conv2.weight", (4, 6, 3, 3), 1, "in"),
)
_CONV2 = (member("conv2.weight", (4, 6, 3, 3), 0, "out"), member("fc1.weight", (8, 36), 1, "in", repeat=9))
_FC1 = (
    member("fc1.weight", (8, 36), 0, "out"),
    member("fc1.bias", (8,), 0, "follows"),
    member("fc2.weight", (3, 8), 1, "in"),
)
CHAIN = {
    "conv1.weight": KeyLayout((6,), "group", members=_CONV1),
    "conv2.weight": KeyLayout((4,), "group", members=_CONV2),
    "fc1.weight": KeyLayout((8,), "group", members=_FC1),
}


class Residual(nn.Module):
    """Two producers of one stream, one of them behind a batch norm, channels 2 i and 2 i + 1 of b joined to a's i."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a = nn.Linear(5, 4)
        self.b = nn.Linear(5, 8)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x) + self.b(x).view(-1, 4, 2).sum(2)))


RESIDUAL = {
    "a.weight": KeyLayout(
        (4,),
        "group",
        members=(
            member("a.weight", (4, 5), 0, "out"),
            member("a.bias", (4,), 0, "follows"),
            member("b.weight", (8, 5), 0, "out", repeat=2),
            member("b.bias", (8,), 0, "follows", repeat=2),
            member("head.weight", (3, 4), 1, "in"),
        ),
    )
}


def parameters_of(layout: Mapping[str, KeyLayout], model: nn.Module) -> dict[str, KeyLayout]:
    """The layout without the members that are buffers of the model."""
    names = dict(model.named_parameters())
    return {
        group: KeyLayout(key.shape, "group", 1, key.role, tuple(m for m in key.members if m.name in names))
        for group, key in layout.items()
    }


def elements(key: KeyLayout, unit: int, only: set[str] | None = None) -> list[tuple[str, tuple[int, ...]]]:
    """Every element (tensor, index) of a unit, once per member that it is in."""
    found = []
    for one in key.members:
        for index in product(*(range(size) for size in one.shape)):
            if one.owner[index[one.dim]] == unit and (only is None or one.part in only):
                found.append((one.name, index))
    return found


def pool_slowly(
    scores: Mapping[str, Tensor], key: KeyLayout, reduce: str, *, everything: bool = False, pooled: bool = False
) -> list[float]:
    """Scores of the units of one group, by Python's own arithmetic.

    The mean over members of their sums, norms or maxima; averages are this over the same of ones.
    """
    found = []
    total = {"mean": "sum", "rms": "l2"}.get(reduce, reduce)
    for unit in range(key.shape[0]):
        each, ones, together = [], [], list[float]()
        for one in key.members:
            alone = KeyLayout(key.shape, "group", members=(one,))
            places = elements(alone, unit, None if everything else {"out"})
            values = [float(scores[name][index]) for name, index in places if scores[name].dim() >= 2]
            together += values
            if values:
                each.append(reduced(values, total))
                ones.append(reduced([1.0] * len(values), total) if total != reduce else 1.0)
        found.append(reduced(together, reduce) if pooled else math.fsum(each) / math.fsum(ones))
    return found


def reduced(values: Sequence[float], reduce: str) -> float:
    """One number for several."""
    squares = math.fsum(value * value for value in values)
    return {
        "sum": math.fsum(values),
        "mean": math.fsum(values) / len(values),
        "max": max(values),
        "l2": math.sqrt(squares),
        "rms": math.sqrt(squares / len(values)),
    }[reduce]


def expand_slowly(unit_masks: Mapping[str, Tensor], layout: Mapping[str, KeyLayout]) -> dict[str, Tensor]:
    """Everything kept, then every element of every removed unit taken away."""
    masks = {m.name: torch.ones(m.shape, dtype=torch.bool) for key in layout.values() for m in key.members}
    for group, kept in unit_masks.items():
        for unit in range(len(kept)):
            for name, index in [] if kept[unit] else elements(layout[group], unit):
                masks[name][index] = False
    return masks


def put_groups(
    patch: pytest.MonkeyPatch, layout: Mapping[str, KeyLayout], frozen: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Let these groups be what tracing finds; the calls are recorded in the list that is returned."""
    calls: list[dict[str, Any]] = []

    class Group:
        def __init__(self, name: str) -> None:
            self.name = name

        def layout(self) -> KeyLayout:
            return layout[self.name]

    class Groups(dict[str, Group]):
        frozen: Mapping[str, str]

    def find_groups(model: nn.Module, example_inputs: Any, *, unit: str = "channel", exact: bool = True) -> Groups:
        calls.append({"model": model, "example_inputs": example_inputs, "unit": unit, "exact": exact})
        groups = Groups({name: Group(name) for name in layout})
        groups.frozen = frozen or {}
        return groups

    patch.setattr("secateur.model.group_targets.find_groups", find_groups)
    return calls
