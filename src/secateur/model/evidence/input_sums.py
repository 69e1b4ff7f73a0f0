"""Sums over the inputs of weights: one for all weights that always read the same (q, k, v)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.core.canonical import grouped_shape
from secateur.model.evidence.columns import columns_of
from secateur.model.evidence.grams import gram_of
from secateur.model.evidence.products import Product
from secateur.model.evidence.weight_sums import from_matrix, weight_sum
from secateur.model.ranks import Ranks
from secateur.types import Layout

__all__ = ["InputSums", "refuse_unread", "warn_of_idle"]

_Key = tuple[str, int, int]
_RECENT = 8
"""Inputs that are held for a while, to see that another layer reads the same."""


@final
class InputSums:
    """Sums over inputs, one for all layers that always read the same; a pass counts when ``commit`` is called.

    Args:
        layout: weights whose inputs are read.
        gram: sum up ``x x^T``; False: its diagonal alone.
        pairs: inputs come twice, side by side, as they are and as they were in the dense model; a 1 goes with them.
    """

    def __init__(self, layout: Layout, gram: bool, pairs: bool = False) -> None:
        self._layout, self._gram, self._pairs = layout, gram, pairs
        self._slots: dict[_Key, int] = {}
        self._totals: dict[int, Tensor] = {}
        self._uses: dict[_Key, list[int]] = {}
        self._made: list[Tensor] = []
        self._recent: list[tuple[int, Product, int]] = []

    def begin(self) -> None:
        """A pass begins."""
        self._uses, self._made, self._recent = {}, [], []

    def add(self, product: Product) -> None:
        """One product of the pass."""
        if product.values.numel() == 0:
            return
        key = product.name, product.start, product.stop
        self._uses.setdefault(key, []).append(self._sum_of(product))

    def commit(self) -> None:
        """Add the pass. Weights share a sum as long as they read the same inputs in every pass."""
        shared: dict[tuple[int | None, tuple[int, ...]], int] = {}
        totals: dict[int, Tensor] = {}
        for key in dict.fromkeys([*self._slots, *self._uses]):
            came = self._slots.get(key), tuple(self._uses.get(key, ()))
            if came not in shared:
                shared[came] = len(totals)
                parts = [self._made[at] for at in came[1]]
                parts += [] if came[0] is None else [self._totals[came[0]]]
                totals[shared[came]] = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            self._slots[key] = shared[came]
        self._totals = totals
        self.begin()

    def combine(self, ranks: Ranks) -> None:
        """Add what all ranks committed. Weights share a sum where they do so on every rank."""
        every = ranks.gathered(self._slots)
        shared: dict[tuple[int | None, ...], int] = {}
        slots: dict[_Key, int] = {}
        for key in dict.fromkeys(key for own in every for key in own):
            slots[key] = shared.setdefault(tuple(own.get(key) for own in every), len(shared))
        own = {str(slot): self._totals[self._slots[key]] for key, slot in slots.items() if key in self._slots}
        self._totals = {int(slot): total for slot, total in ranks.sums(own).items()}
        self._slots = slots

    def seen(self, name: str) -> bool:
        """Whether any input of a weight came by."""
        return any(owner == name for owner, _, _ in self._slots)

    def shared(self, name: str) -> frozenset[int]:
        """Which sums a weight reads; weights that read the same inputs read the same sums."""
        return frozenset(slot for (owner, _, _), slot in self._slots.items() if owner == name)

    def evidence(self, kind: str, name: str, device: torch.device) -> Tensor:
        """``input_norm`` or ``gram`` of a weight; inputs that never came count as equally large."""
        key = self._layout[name]
        if not self.seen(name):
            ones = torch.ones(key.shape, dtype=torch.float64, device=device)
            groups, _, *columns = grouped_shape(key)
            return ones if kind == "input_norm" else _eye(math.prod(columns), device).expand(groups, -1, -1)
        size, blocks = self.blocks(name)
        columns = next(block.shape[-1] for block in blocks if block is not None)
        if kind == "gram":
            filled = [(_eye(columns, device) if block is None else block).to(device) for block in blocks]
            return filled[0][None] if len(filled) == 1 else torch.stack(filled)
        one = torch.ones(columns, dtype=torch.float64)
        norms = [(one if b is None else (b.diagonal() if b.dim() == 2 else b).sqrt()).to(device) for b in blocks]
        return from_matrix(torch.stack(norms)[:, None].expand(-1, size, -1).reshape(-1, columns), key)

    def weight_sum(self, kind: str, name: str, weight: Tensor) -> Tensor:
        """``input_sum`` or ``output_sum`` of a weight, shaped like it."""
        key = self._layout[name]
        columns = self._width(name) if self.seen(name) else math.prod(grouped_shape(key)[2:])
        return weight_sum(kind, weight, key, columns, self.together(name))

    def together(self, name: str) -> list[tuple[int, int]]:
        """First row and the row behind the last, of rows that read the same inputs; rows without any, block by block.

        What decides is which rows went into one product, not whether two inputs happened to be equal.
        """
        if not self.seen(name):
            groups, outputs, *_ = grouped_shape(self._layout[name])
            return [(at * outputs, (at + 1) * outputs) for at in range(groups)]
        size, blocks = self.blocks(name)
        found: list[tuple[int, int]] = []
        behind = 0
        for first, last in sorted((start, stop) for owner, start, stop in self._slots if owner == name):
            found += [(gap, gap + size) for gap in range(behind, first, size)]
            found.append((found.pop()[0], max(behind, last)) if first < behind else (first, last))
            behind = max(behind, last)
        return found + [(gap, gap + size) for gap in range(behind, size * len(blocks), size)]

    def blocks(self, name: str) -> tuple[int, list[Tensor | None]]:
        """Rows per block of a weight, and the sum of each block (None: it got no inputs); equal sums are one tensor."""
        rows = math.prod(self._layout[name].shape) // self._width(name)
        ranges = {(start, stop): slot for (owner, start, stop), slot in self._slots.items() if owner == name}
        size = math.gcd(rows, *[edge for both in ranges for edge in both])
        made: dict[tuple[int, ...], Tensor | None] = {(): None}
        found: list[Tensor | None] = []
        for first in range(0, rows, size):
            slots = tuple(slot for (start, stop), slot in ranges.items() if start <= first < stop)
            if slots not in made:
                parts = [self._totals[slot] for slot in slots]
                made[slots] = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
            found.append(made[slots])
        return size, found

    def state_dict(self) -> dict[str, Any]:
        """What was committed."""
        return {"slots": dict(self._slots), "totals": copy.deepcopy(self._totals)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._slots, self._totals = dict(state["slots"]), copy.deepcopy(state["totals"])

    def _columns(self, name: str) -> int:
        sizes = {self._totals[slot].shape[-1] for (owner, _, _), slot in self._slots.items() if owner == name}
        if len(sizes) != 1:
            raise ValueError(
                f"{name!r} is read as matrices of {sorted(sizes)} columns in one model; exclude=[{name!r}]"
            )
        return sizes.pop()

    def _width(self, name: str) -> int:
        """Columns of the weight itself."""
        columns = self._columns(name)
        return (columns - 1) // 2 if self._pairs else columns

    def _sum_of(self, product: Product) -> int:
        version = 0 if product.values.is_inference() else product.values._version
        for seen, other, at in self._recent:
            if seen == version and _same(product, other):
                return at
        parts = columns_of(product.values, product.valid, product.windows)
        if self._pairs:
            parts = (F.pad(part, (0, 0, 0, 1), value=1.0) for part in parts)
        total = gram_of(parts) if self._gram else torch.stack([part.square().sum(1) for part in parts]).sum(0)
        self._made.append(total)
        self._recent = [*self._recent[1 - _RECENT :], (version, product, len(self._made) - 1)]
        return len(self._made) - 1


def refuse_unread(sums: InputSums, names: Iterable[str], unread: Mapping[str, str], misread: Mapping[str, str]) -> None:
    """Weights whose inputs could not be read: weight -> what it goes into."""
    idle = {name: how for name, how in unread.items() if name in set(names) and not sums.seen(name)}
    for name, how in {**idle, **misread}.items():
        raise ValueError(
            f"the inputs of {name!r} were not seen: it goes into {how}, not whole rows of it into a product with "
            f"them. exclude=[{name!r}], or take a criterion that reads weights or gradients"
        )


def warn_of_idle(sums: InputSums, names: Iterable[str]) -> None:
    """Say which weights, or parts of weights, no input reached."""
    idle = [name for name in names if not sums.seen(name) or any(part is None for part in sums.blocks(name)[1])]
    if idle:
        warnings.warn(
            f"no input reached {_some(idle)} (experts without tokens?); their inputs count as equally large. Give "
            "more batches with batches=",
            stacklevel=2,
        )


def _eye(columns: int, device: torch.device) -> Tensor:
    return torch.eye(columns, dtype=torch.float64, device=device)


def _same(one: Product, other: Product) -> bool:
    """The same memory, or equal values: layers that read a transposed tensor get a copy of it each."""
    a, b = one.values, other.values
    if a.shape != b.shape or a.dtype != b.dtype or one.windows != other.windows:
        return False
    if (one.valid is None) != (other.valid is None):
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(a[:1], b[:1]) and torch.equal(a, b)


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} others" if names[5:] else "")
