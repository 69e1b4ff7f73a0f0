"""The inputs of a layer as rows of a matrix: tokens as they are, convolutions window by window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Windows", "rows_of"]

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


def rows_of(values: Tensor, valid: Tensor | None, windows: Windows | None) -> Iterator[Tensor]:
    """The inputs of a layer, some rows at a time, in float64.

    Args:
        values: ``[n, I]``, or ``[N, C, *spatial]`` where there are windows.
        valid: bool ``[n]``, False at padding; None where all counts.
        windows: of a convolution.

    Yields:
        ``[rows, columns]``; the columns are ``I``, or ``C * kernel`` in the order of the weight.

    Example:
        >>> image = torch.arange(9.0).reshape(1, 1, 3, 3)
        >>> windows = Windows((2, 2), (1, 1), (0, 0), (1, 1), False, (0, 0))
        >>> [rows.tolist()[0] for rows in rows_of(image, None, windows)]
        [[0.0, 1.0, 3.0, 4.0]]
    """
    if windows is None:
        kept = values if valid is None else values[valid]
        for part in kept.split(max(1, _NUMBERS // max(1, kept.shape[1]))):
            yield part.double()
        return
    for image in values.split(1):
        yield _unfolded(image.double(), windows)


def _unfolded(x: Tensor, windows: Windows) -> Tensor:
    spatial = len(windows.kernel)
    stride = windows.stride
    if windows.transposed:
        x, stride = _stuffed(x, windows), (1,) * spatial
    else:
        x = F.pad(x, [size for size in reversed(windows.padding) for _ in range(2)])
    x = x.contiguous()
    reach = [d * (k - 1) + 1 for d, k in zip(windows.dilation, windows.kernel, strict=True)]
    outputs = [(size - r) // s + 1 for size, r, s in zip(x.shape[2:], reach, stride, strict=True)]
    steps = x.stride()[2:]
    views = x.as_strided(
        (x.shape[0], *outputs, x.shape[1], *windows.kernel),
        (
            x.stride(0),
            *[step * s for step, s in zip(steps, stride, strict=True)],
            x.stride(1),
            *[step * d for step, d in zip(steps, windows.dilation, strict=True)],
        ),
    )
    if windows.transposed:
        views = views.flip(list(range(2 + spatial, 2 + 2 * spatial)))
    columns = x.shape[1]
    for size in windows.kernel:
        columns *= size
    return views.reshape(-1, columns)


def _stuffed(x: Tensor, windows: Windows) -> Tensor:
    """A transposed convolution is a convolution of its input with zeros between, by the kernel turned round."""
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], windows.stride, strict=True)]
    wide = torch.zeros(*x.shape[:2], *sizes, dtype=x.dtype, device=x.device)
    wide[(slice(None), slice(None), *[slice(None, None, s) for s in windows.stride])] = x
    pads: list[int] = []
    for k, d, p, more in zip(windows.kernel, windows.dilation, windows.padding, windows.extra, strict=True):
        pads = [d * (k - 1) - p, d * (k - 1) - p + more, *pads]
    return F.pad(wide, pads)
