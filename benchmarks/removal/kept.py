"""Which slices a library removed, found from the tensors alone: its own records are not asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from tests.oracles.removal import Slices

__all__ = ["kept_positions", "removed_slices"]


def removed_slices(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> tuple[list[Slices], list[str]]:
    """The slices of ``before`` that are not in ``after``.

    Args:
        before: name -> original parameter.
        after: name -> parameter of the smaller model.

    Returns:
        The removed slices, and the names of those whose values changed, so that nothing can be said of them.
    """
    gone: list[Slices] = []
    changed: list[str] = []
    for name in before.keys() & after.keys():
        kept = kept_positions(before[name], after[name])
        if kept is None:  # rescaled, or too many equal values: what reads or makes these channels tells
            changed.append(name)
            continue
        for dim, positions in enumerate(kept):
            lost = sorted(set(range(before[name].shape[dim])) - set(positions))
            if lost:
                gone.append((name, dim, lost))
    return sorted(gone), sorted(changed)


def kept_positions(original: Tensor, smaller: Tensor) -> list[list[int]] | None:
    """Per axis the positions with ``smaller == original[positions of axis 0][:, positions of axis 1]...``.

    Returns:
        None where there are no such positions, or they cannot be told apart.
    """
    if original.ndim != smaller.ndim or any(s > o for s, o in zip(smaller.shape, original.shape, strict=True)):
        return None
    if original.shape == smaller.shape:
        return [list(range(size)) for size in original.shape] if torch.equal(original, smaller) else None
    kept = [_along(original.movedim(dim, 0), smaller.movedim(dim, 0)) for dim in range(original.ndim)]
    found = original
    for dim, positions in enumerate(kept):
        if positions is None:
            return None
        found = found.index_select(dim, torch.tensor(positions))
    return cast("list[list[int]]", kept) if torch.equal(found, smaller) else None


def _along(original: Tensor, smaller: Tensor) -> list[int] | None:
    """For each slice along the first axis the one of the original that has all its values, as often at least."""
    if len(original) == len(smaller):
        return list(range(len(original)))
    values = original.unique()
    have = [torch.bincount(torch.searchsorted(values, s.flatten()), minlength=len(values)) for s in original]
    found: list[int] = []
    for part in smaller:
        places = torch.searchsorted(values, part.flatten()).clamp(max=len(values) - 1)
        need = torch.bincount(places, minlength=len(values))
        fits = [i for i, count in enumerate(have) if bool((count >= need).all())]
        if len(fits) != 1:
            return None
        found.append(fits[0])
    return found
