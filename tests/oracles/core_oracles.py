"""Slow, independent definitions of units, selection and allocations: Python loops over single weights, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import product

import torch
from torch import Tensor

from secateur.types import KeyLayout

__all__ = [
    "as_list",
    "average_rank_list",
    "erk_counts",
    "expand_mask",
    "global_counts",
    "kept_by_sorting",
    "lamp_list",
    "members",
    "nm_mask",
    "pool_scores",
    "row_mask",
]


def coordinates(layout: KeyLayout) -> list[tuple[int, int, int, tuple[int, ...]]]:
    """For each flat weight: output channel, input channel in its group, input channel of the layer, kernel position."""
    found = []
    for index in product(*(range(size) for size in layout.shape)):
        if layout.kind == "conv_transpose":
            inputs_per_group = layout.shape[0] // layout.groups
            group, inside = divmod(index[0], inputs_per_group)
            found.append((group * layout.shape[1] + index[1], inside, index[0], index[2:]))
        else:
            group = index[0] // (layout.shape[0] // layout.groups)
            found.append((index[0], index[1], group * layout.shape[1] + index[1], index[2:]))
    return found


def members(unit: str, layout: KeyLayout, tile: tuple[int, int] = (1, 1)) -> dict[tuple[int, ...], list[int]]:
    """Unit index -> flat parameter indices, units in the order of their index."""
    found: dict[tuple[int, ...], list[int]] = {}
    every_index = list(product(*(range(size) for size in layout.shape)))
    kernel_sizes = layout.shape[2:]
    for flat, (o, i, i_all, k) in enumerate(coordinates(layout)):
        place = 0
        for size, position in zip(kernel_sizes, k, strict=True):
            place = place * size + position
        column = i * math.prod(kernel_sizes) + place
        key = {
            "weight": every_index[flat],
            "row": (o, i, *k[:-1]),
            "column": (o, i, *k[:-2], k[-1]) if len(k) >= 2 else (o, i, *k),
            "kernel": (o, i),
            "filter": (o,),
            "in_channel": (i_all,),
            "layer": (0,),
            "block": (o // tile[0], column // tile[1]),
        }[unit]
        found.setdefault(key, []).append(flat)
    return dict(sorted(found.items()))


def pool_scores(scores: Tensor, groups: Mapping[tuple[int, ...], Sequence[int]], reduce: str) -> list[float]:
    flat = [float(x) for x in scores.double().flatten()]
    pooled = []
    for inside in groups.values():
        values = [flat[index] for index in inside]
        pooled.append(
            {
                "sum": math.fsum(values),
                "mean": math.fsum(values) / len(values),
                "max": max(values),
                "l2": math.sqrt(math.fsum(v * v for v in values)),
                "rms": math.sqrt(math.fsum(v * v for v in values) / len(values)),
            }[reduce]
        )
    return pooled


def expand_mask(kept: Sequence[bool], groups: Mapping[tuple[int, ...], Sequence[int]], numel: int) -> list[bool]:
    flat = [False] * numel
    for keep, inside in zip(kept, groups.values(), strict=True):
        for index in inside:
            flat[index] = keep
    return flat


def kept_by_sorting(scores: Sequence[float], keep: int) -> list[bool]:
    """Order by (score, index), drop from the front."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    gone = set(order[: len(scores) - keep])
    return [index not in gone for index in range(len(scores))]


def row_mask(scores: Tensor, layout: KeyLayout, keep: int) -> list[bool]:
    """In each output row floor(S R + 1/2) of R weights go, S = 1 - keep / N."""
    flat = [float(x) for x in scores.double().flatten()]
    rows: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for index, (o, i, _, k) in enumerate(coordinates(layout)):
        rows.setdefault(o, []).append(((i, *k), index))
    kept = [True] * len(flat)
    for row in rows.values():
        inside = [index for _, index in sorted(row)]
        removed = math.floor((1 - Fraction(keep, len(flat))) * len(inside) + Fraction(1, 2))
        for index, stays in zip(
            inside, kept_by_sorting([flat[index] for index in inside], len(inside) - removed), strict=True
        ):
            kept[index] = stays
    return kept


def nm_mask(scores: Tensor, layout: KeyLayout, keep: int, of: int) -> list[bool]:
    """For each output and kernel position, groups of ``of`` along the input channels of the group."""
    flat = [float(x) for x in scores.double().flatten()]
    lines: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for index, (o, i, _, k) in enumerate(coordinates(layout)):
        lines.setdefault((o, *k), []).append((i, index))
    kept = [True] * len(flat)
    for line in lines.values():
        ordered = [index for _, index in sorted(line)]
        for start in range(0, len(ordered) - of + 1, of):
            inside = ordered[start : start + of]
            for index, stays in zip(inside, kept_by_sorting([flat[i] for i in inside], keep), strict=True):
                kept[index] = stays
    return kept


def erk_counts(raw: Sequence[float], sizes: Sequence[int], keep: int) -> list[float]:
    """Real counts min(1, eps raw) size of the given sum; eps by bisection."""
    low, high = 0.0, max(1.0 / value for value in raw)
    for _ in range(200):
        eps = (low + high) / 2
        total = math.fsum(min(1.0, eps * value) * size for value, size in zip(raw, sizes, strict=True))
        low, high = (eps, high) if total < keep else (low, eps)
    return [min(1.0, high * value) * size for value, size in zip(raw, sizes, strict=True)]


def lamp_list(scores: Sequence[float]) -> list[float]:
    """w^2 over the sum of all w^2 that are not before it in (w, index) order."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    found = [0.0] * len(scores)
    for rank, index in enumerate(order):
        rest = math.fsum(scores[other] ** 2 for other in order[rank:])
        found[index] = scores[index] ** 2 / rest if rest else 0.0
    return found


def global_counts(scores: Mapping[str, Sequence[float]], keep: int, floor: Mapping[str, int]) -> dict[str, int]:
    """Protect the top of each key, then let everything else go in one order until ``keep`` are left."""
    pool: list[tuple[float, int, str]] = []
    place = 0
    for key, values in scores.items():
        safe = kept_by_sorting(values, floor[key])
        for value, protected in zip(values, safe, strict=True):
            if not protected:
                pool.append((value, place, key))
            place += 1
    total = sum(len(values) for values in scores.values())
    counts = {key: len(values) for key, values in scores.items()}
    for _, _, key in sorted(pool)[: total - keep]:
        counts[key] -= 1
    return counts


def average_rank_list(values: Sequence[float]) -> list[float]:
    """(number below + half the number of other equals) / (n - 1)."""
    n = len(values)
    return [
        (sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2) / max(1, n - 1)
        for value in values
    ]


def as_list(mask: Tensor) -> list[bool]:
    assert mask.dtype == torch.bool
    return [bool(x) for x in mask.flatten()]
