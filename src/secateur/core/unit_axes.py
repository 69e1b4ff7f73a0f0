"""Units that cover whole axes of ``[g, O/g, I/g, *k]``: weight, vectors, kernel, filter, in-channel, layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from secateur.core.canonical import grouped_shape, to_grouped, to_parameter
from secateur.core.reduce import check_shapes, reduce_axes
from secateur.types import KeyLayout, Layout, Reduce, Tensors

__all__ = ["Column", "Filter", "InChannel", "Kernel", "Layer", "Row", "Weight"]

_Axes: TypeAlias = Callable[[int], tuple[int, ...]]
"""Number of axes of ``[g, O/g, I/g, *k]`` -> the axes that one unit covers."""


@dataclass(frozen=True, slots=True)
class Weight:
    """Every single weight; the grid is the parameter itself."""

    @property
    def spec(self) -> str:
        """``"weight"``."""
        return "weight"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """The parameter's shape."""
        grouped_shape(layout)  # refuses shapes that no weight has
        return layout.shape

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """The scores themselves: every unit has one member."""
        check_shapes("scores", scores, layout, lambda key: layout[key].shape)
        return {key: reduce_axes(score, (), reduce) for key, score in scores.items()}

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """The masks themselves."""
        check_shapes("unit masks", unit_masks, layout, lambda key: layout[key].shape)
        return dict(unit_masks)


@dataclass(frozen=True, slots=True)
class Row:
    """Vectors along the last kernel axis, ``(o, i, y, :)``; grid ``[O, I/g, kh]``, single weights in a linear layer."""

    @property
    def spec(self) -> str:
        """``"row"``."""
        return "row"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(O, I/g, *k[:-1])``."""
        return _grid_over(layout, _row_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over the last kernel axis."""
        return _pool_over(scores, layout, _row_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over the last kernel axis."""
        return _expand_over(unit_masks, layout, _row_axes)


@dataclass(frozen=True, slots=True)
class Column:
    """Vectors along the last kernel axis but one, ``(o, i, :, x)``; single weights where there is none."""

    @property
    def spec(self) -> str:
        """``"column"``."""
        return "column"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(O, I/g, kw)`` in two dimensions."""
        return _grid_over(layout, _column_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over the last kernel axis but one."""
        return _pool_over(scores, layout, _column_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over the last kernel axis but one."""
        return _expand_over(unit_masks, layout, _column_axes)


@dataclass(frozen=True, slots=True)
class Kernel:
    """One input channel of one filter, ``(o, i, :, :)``; grid ``[O, I/g]``."""

    @property
    def spec(self) -> str:
        """``"kernel"``."""
        return "kernel"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(O, I/g)``."""
        return _grid_over(layout, _kernel_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over the kernel axes."""
        return _pool_over(scores, layout, _kernel_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over the kernel axes."""
        return _expand_over(unit_masks, layout, _kernel_axes)


@dataclass(frozen=True, slots=True)
class Filter:
    """Everything that makes one output, ``(o, :, :, :)``: filter, neuron, or row of an embedding table."""

    @property
    def spec(self) -> str:
        """``"filter"``."""
        return "filter"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(O,)``."""
        return _grid_over(layout, _filter_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over inputs and kernel."""
        return _pool_over(scores, layout, _filter_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over inputs and kernel."""
        return _expand_over(unit_masks, layout, _filter_axes)


@dataclass(frozen=True, slots=True)
class InChannel:
    """Everything that reads one input, ``(:, i, :, :)``; ``i`` counts over all groups."""

    @property
    def spec(self) -> str:
        """``"in_channel"``."""
        return "in_channel"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(I,)``."""
        return _grid_over(layout, _in_channel_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over the outputs of the channel's group and the kernel."""
        return _pool_over(scores, layout, _in_channel_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over the outputs of the channel's group and the kernel."""
        return _expand_over(unit_masks, layout, _in_channel_axes)


@dataclass(frozen=True, slots=True)
class Layer:
    """The whole parameter; grid ``[1]``."""

    @property
    def spec(self) -> str:
        """``"layer"``."""
        return "layer"

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """``(1,)``."""
        return _grid_over(layout, _layer_axes)

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Reduce over everything."""
        return _pool_over(scores, layout, _layer_axes, reduce)

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Repeat over everything."""
        return _expand_over(unit_masks, layout, _layer_axes)


def _row_axes(axes: int) -> tuple[int, ...]:
    return (axes - 1,) if axes > 3 else ()


def _column_axes(axes: int) -> tuple[int, ...]:
    return (axes - 2,) if axes > 4 else ()


def _kernel_axes(axes: int) -> tuple[int, ...]:
    return tuple(range(3, axes))


def _filter_axes(axes: int) -> tuple[int, ...]:
    return tuple(range(2, axes))


def _in_channel_axes(axes: int) -> tuple[int, ...]:
    return (1, *range(3, axes))


def _layer_axes(axes: int) -> tuple[int, ...]:
    return tuple(range(axes))


def _grid_over(layout: KeyLayout, axes: _Axes) -> tuple[int, ...]:
    """Shape left over when a unit covers ``axes``; the group axis joins the channel axis that is left."""
    shape = grouped_shape(layout)
    covered = axes(len(shape))
    left = [size for axis, size in enumerate(shape) if axis > 0 and axis not in covered]
    return (shape[0] * left[0], *left[1:]) if left else (1,)


def _pool_over(scores: Tensors, layout: Layout, axes: _Axes, reduce: Reduce) -> dict[str, Tensor]:
    """Reduce parameter-shaped scores over ``axes``; bool tensors by "all members kept"."""
    check_shapes("scores", scores, layout, lambda key: layout[key].shape)
    pooled: dict[str, Tensor] = {}
    for key, score in scores.items():
        grouped = to_grouped(score, layout[key])
        pooled[key] = reduce_axes(grouped, axes(grouped.dim()), reduce).reshape(_grid_over(layout[key], axes))
    return pooled


def _expand_over(unit_masks: Tensors, layout: Layout, axes: _Axes) -> dict[str, Tensor]:
    """Repeat unit masks over ``axes`` into parameter shape."""
    check_shapes("unit masks", unit_masks, layout, lambda key: _grid_over(layout[key], axes))
    masks: dict[str, Tensor] = {}
    for key, mask in unit_masks.items():
        shape = grouped_shape(layout[key])
        covered = axes(len(shape))
        once = [1 if axis in covered else size for axis, size in enumerate(shape)]
        masks[key] = to_parameter(mask.reshape(once).expand(shape), layout[key])
    return masks
