"""The inputs of a layer as columns of a matrix: tokens as they are, convolutions window by window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Windows", "columns_of"]

_NUMBERS = 1 << 21
"""At most so many at once: 16 MB in float64."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a convolution; one number per spatial axis.

    Attributes:
        kernel: sizes.
        stride: steps of the outputs; of a transposed convolution, of the inputs.
        padding: zeros on both sides.
        dilation: steps inside a window.
        transposed: whether it is a transposed convolution.
        extra: output padding of a transposed convolution.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    extra: tuple[int, ...]

    def outputs(self, sizes: Sequence[int]) -> list[int]:
        """How many there are along each spatial axis, of inputs of these sizes.

        Example:
            >>> (
            ...     Windows((3,), (2,), (1,), (1,), False, (0,)).outputs([9]),
            ...     Windows((3,), (2,), (1,), (1,), True, (1,)).outputs([5]),
            ... )
            ([5], [10])
        """
        every = zip(sizes, self.kernel, self.stride, self.padding, self.dilation, self.extra, strict=True)
        if self.transposed:
            return [(size - 1) * s - 2 * p + d * (k - 1) + more + 1 for size, k, s, p, d, more in every]
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d, _ in every]


def columns_of(values: Tensor, valid: Tensor | None, windows: Windows | None) -> Iterator[Tensor]:
    """The inputs of a layer, some places at a time, in float64.

    Args:
        values: ``[n, I]``, or ``[N, C, *spatial]`` where there are windows.
        valid: bool ``[n]``, False at padding; None where all counts.
        windows: of a convolution.

    Yields:
        ``[columns, places]``; the columns are ``I``, or ``C * kernel`` in the order of the weight. Convolutions are
        copied window by window, with the images one behind the other.

    Example:
        >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> windows = Windows((2, 2), (1, 1), (0, 0), (1, 1), False, (0, 0))
        >>> [columns[:, 0].tolist() for columns in columns_of(image, None, windows)]
        [[0.0, 1.0, 3.0, 4.0]]
    """
    if windows is None:
        kept = values if valid is None else values[valid]
        for part in kept.split(_at_once(kept.shape[1])):
            yield part.double().t()
        return
    per_image = values.shape[1] * math.prod(windows.kernel) * math.prod(windows.outputs(values.shape[2:]))
    for images in values.split(_at_once(per_image)):
        yield _unfolded(images.double(), windows)


def _at_once(numbers: int) -> int:
    """How many things of so many numbers."""
    return max(1, _NUMBERS // max(1, numbers))


def _unfolded(x: Tensor, windows: Windows) -> Tensor:
    spatial, stride = len(windows.kernel), windows.stride
    outputs = windows.outputs(x.shape[2:])
    if windows.transposed:
        x, stride = _stuffed(x, windows), (1,) * spatial
    else:
        x = F.pad(x, [size for size in reversed(windows.padding) for _ in range(2)])
    x = x.contiguous()
    images, channels, *steps = x.stride()
    views = x.as_strided(
        (x.shape[1], *windows.kernel, x.shape[0], *outputs),
        (
            channels,
            *[step * d for step, d in zip(steps, windows.dilation, strict=True)],
            images,
            *[step * s for step, s in zip(steps, stride, strict=True)],
        ),
    )
    if windows.transposed:
        views = views.flip(list(range(1, 1 + spatial)))
    return views.reshape(x.shape[1] * math.prod(windows.kernel), -1)


def _stuffed(x: Tensor, windows: Windows) -> Tensor:
    """A transposed convolution is a convolution of its input with zeros between, by the kernel turned round."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], windows.stride, strict=True)]
    wide = torch.zeros(*x.shape[:2], *sizes, dtype=x.dtype, device=x.device)
    wide[(slice(None), slice(None), *[slice(None, None, s) for s in windows.stride])] = x
    pads: list[int] = []
    for k, d, p, more in zip(windows.kernel, windows.dilation, windows.padding, windows.extra, strict=True):
        pads = [d * (k - 1) - p, d * (k - 1) - p + more, *pads]
    return F.pad(wide, pads)
