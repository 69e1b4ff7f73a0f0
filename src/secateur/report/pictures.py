"""Masks as small PNG files: black is kept, white is removed, grey is a density where a pixel is a block."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from secateur.records import Report

__all__ = ["Masks", "Picture", "data_uri", "density", "encode_png", "pictures"]

Masks: TypeAlias = Mapping[str, Mapping[str, NDArray[np.bool_]]]
"""Record name -> parameter name -> mask, True = kept."""

LARGEST = 192  # pixels along either side; more are averaged in blocks
PER_RECORD = 5
BOX = 200  # CSS pixels that the longer side is shown at


@dataclass(frozen=True)
class Picture:
    """One mask, drawn: ``block`` is how many (rows, columns) of the mask one pixel averages."""

    parameter: str
    shape: tuple[int, ...]
    kept: int
    of: int
    block: tuple[int, int]
    uri: str
    width: int
    height: int


def density(mask: NDArray[np.bool_], largest: int = LARGEST) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """A mask as a plane of densities of at most ``largest`` x ``largest`` pixels.

    A convolution's [out, in, height, width] becomes [out, in * height * width]; a pixel is the
    mean over a block of ``ceil(side / largest)`` rows and columns (fewer at the far edges).

    Args:
        mask: bool, of two or four dimensions, True = kept.
        largest: pixels allowed along either side.

    Returns:
        Densities in [0, 1], shape [rows, columns], and the block (rows, columns).

    Raises:
        ValueError: for another dtype, another number of dimensions or an empty mask.

    Example:
        >>> plane, block = density(np.eye(4, dtype=bool), largest=2)
        >>> plane.tolist(), block
        ([[0.5, 0.0], [0.0, 0.5]], (2, 2))
    """
    if mask.dtype != np.bool_ or mask.ndim not in (2, 4) or mask.size == 0:
        raise ValueError(
            f"a mask picture needs a bool mask of 2 or 4 dimensions with at least one weight, not {mask.dtype} of "
            f"shape {mask.shape}"
        )
    plane = mask.reshape(mask.shape[0], -1).astype(np.float64)
    rows, columns = (math.ceil(side / largest) for side in plane.shape)
    starts = [np.arange(0, side, step) for side, step in zip(plane.shape, (rows, columns), strict=True)]
    sums = np.add.reduceat(np.add.reduceat(plane, starts[0], axis=0), starts[1], axis=1)
    counts = [np.diff(np.append(start, side)) for start, side in zip(starts, plane.shape, strict=True)]
    return sums / np.outer(counts[0], counts[1]), (rows, columns)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    r"""An 8-bit greyscale PNG (ISO/IEC 15948), zlib-compressed, no filter.

    Args:
        pixels: uint8 [height, width], 0 black.

    Example:
        >>> encode_png(np.zeros((2, 3), dtype=np.uint8))[:8]
        b'\x89PNG\r\n\x1a\n'
    """
    assert (pixels.dtype, pixels.ndim) == (np.uint8, 2), (pixels.dtype, pixels.shape)
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), dtype=np.uint8)  # each line starts with its filter, 0 = none
    lines[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(png: bytes) -> str:
    """A PNG as the ``src`` of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def pictures(report: Report, masks: Masks | None) -> list[tuple[int, str, int, list[Picture]]]:
    """(record, its name, number of its masks, pictures of up to five of them), from the first layer to the last.

    Raises:
        ValueError: where a name is not one of the report's records.
    """
    if masks is None:
        return []
    unknown = sorted(set(masks) - set(report.names))
    if unknown:
        raise ValueError(f"masks of {unknown} belong to no record; the records are {list(report.names)}")
    drawn: list[tuple[int, str, int, list[Picture]]] = []
    for index, name in enumerate(report.names):
        own = list(masks.get(name, {}).items())
        if own:
            places = sorted({round(i) for i in np.linspace(0, len(own) - 1, PER_RECORD)})
            drawn.append((index, name, len(own), [_picture(*own[i]) for i in places]))
    return drawn


def _picture(parameter: str, mask: NDArray[np.bool_]) -> Picture:
    mask = np.asarray(mask)
    try:
        plane, block = density(mask)
    except ValueError as error:
        raise ValueError(f"mask {parameter!r}: {error}") from error
    pixels = np.rint(255 * (1 - plane)).astype(np.uint8)
    height, width = pixels.shape
    scale = BOX / max(height, width)
    size = max(10, round(width * scale)), max(10, round(height * scale))
    return Picture(parameter, mask.shape, int(mask.sum()), mask.size, block, data_uri(encode_png(pixels)), *size)
