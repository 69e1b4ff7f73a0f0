"""What masks must satisfy before they are taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from secateur.model.names import canonical_names
from secateur.types import KeyLayout, Layout, Unit

__all__ = ["check_shapes", "numel", "untie"]


def numel(shape: Iterable[int]) -> int:
    """Number of elements."""
    count = 1
    for size in shape:
        count *= int(size)
    return count


def untie(
    root: nn.Module, unit_masks: Mapping[str, Tensor], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, KeyLayout]]:
    """Masks and layouts under the first name of each parameter; tied names must agree."""
    first = canonical_names(root)
    masks: dict[str, Tensor] = {}
    layouts: dict[str, KeyLayout] = {}
    given: dict[str, str] = {}
    for name, mask in unit_masks.items():
        if name not in first:
            raise ValueError(f"mask for {name!r}: {type(root).__name__} has no such parameter; it has {list(first)}")
        key = first[name]
        if key in masks and not torch.equal(masks[key], mask.to(torch.bool).cpu()):
            raise ValueError(
                f"{given[key]!r} and {name!r} are the same tensor (tied) but come with different masks; give one mask"
            )
        masks[key] = mask.to(torch.bool).cpu().clone()
        layouts[key] = layout[name]
        given[key] = name
    return masks, layouts


def check_shapes(unit_masks: Mapping[str, Tensor], unit: Unit, layout: Layout) -> None:
    """Refuse masks of unknown names or of the wrong grid.

    Raises:
        ValueError: with the name, the shape given and the shape needed.
    """
    for name, mask in unit_masks.items():
        if name not in layout:
            raise ValueError(f"mask for {name!r}: these masks are of {list(layout)}")
        if tuple(mask.shape) != unit.grid(layout[name]):
            raise ValueError(
                f"mask for {name!r} has shape {tuple(mask.shape)}; unit {unit.spec!r} of a parameter of shape "
                f"{layout[name].shape} needs {unit.grid(layout[name])}"
            )
