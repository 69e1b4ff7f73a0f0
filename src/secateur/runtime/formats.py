"""A sparse weight, packed for one kernel."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from secateur.native.loading import core, never_traced
from secateur.runtime.canonical import check_blocks
from secateur.runtime.columns import Array
from secateur.runtime.layouts import Pieces, pack_streams, unpack_streams
from secateur.runtime.pairs import KNOWN, from_words, pair_mask, to_words

__all__ = ["Packed", "pack", "pieces_of"]

_NAMES = ("counts", "index", "values")


@final
class Packed:
    """A weight in one of the packed layouts, checked once, ready for `secateur.runtime.linear`.

    It holds copies: later changes of the dense weight do not reach it. `pack` makes one.

    Args:
        layout: a name of ``LAYOUTS`` or of ``PAIR_LAYOUTS``.
        shape: of the weight, ``(M, K)``.
        pieces: how it was cut.
        streams: the tensors ``counts``, ``index`` and ``values`` of the layout.

    Raises:
        ValueError: a kernel would read these streams out of bounds.
    """

    __slots__ = ("_nnz", "_reference", "_streams", "layout", "native", "pieces", "shape")

    def __init__(self, layout: str, shape: tuple[int, int], pieces: Pieces, streams: dict[str, Tensor]) -> None:
        _known(layout)
        if len(shape) != 2 or min(shape) < 0:
            raise ValueError(f"shape: expected two lengths (outputs, inputs), got {shape}")
        self.layout, self.shape, self.pieces = layout, shape, pieces
        self._streams = {name: _owned(streams, name, dtype) for name, dtype in _dtypes(layout, pieces).items()}
        self._reference: tuple[Tensor, Tensor] | None = None
        self._nnz: int | None = None
        self.native: Any = None if core is None else self.handle(core.active)
        if self.native is None:
            self._check()

    def _check(self) -> None:
        """What the core checks at creation, where it is absent: these are the streams that packing would make."""
        try:
            weight, mask = self.reference()
            again = _streams_of(weight, mask, self.layout, self.pieces)
        except (IndexError, ValueError) as error:
            raise ValueError(f"packed weights: the streams do not fit a weight of shape {self.shape}") from error
        for name, wanted in again.items():
            if _bytes(self._streams[name]) != _bytes(wanted):
                raise ValueError(f"packed weights: {name} does not fit the other streams")

    def handle(self, table: Any) -> Any:
        """The core's view of this weight, for the kernels of one instruction set."""
        rows, cols = self.shape
        counts, index, values = (self._streams[name] for name in _NAMES)
        return core.Packed(
            table,
            (counts, index, values),
            KNOWN[self.layout].kernel,
            rows,
            cols,
            KNOWN[self.layout].unit,
            self.pieces.chunk,
            self.pieces.block,
            self.pieces.bits,
            counts.data_ptr(),
            counts.nbytes,
            index.data_ptr(),
            index.nbytes,
            values.data_ptr(),
            values.nbytes // 4,
            KNOWN[self.layout].pairs,
        )

    @property
    def nnz(self) -> int:
        """How many weights are kept; of a kept pair both, unless this was just packed."""
        if self._nnz is None:
            self._nnz = int(self.dense()[1].sum())
        return self._nnz

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return sum(stream.nbytes for stream in self._streams.values())

    @property
    def overhead(self) -> float:
        """Bytes against values and one byte of index for each kept weight."""
        return self.nbytes / max(5 * self.nnz, 1)

    def dense(self) -> tuple[Tensor, Tensor]:
        """The weight ``[M, K]``, +0 where it was removed, and its mask."""
        layout, (rows, cols) = KNOWN[self.layout], self.shape
        counts, index = (_unsigned(self._streams[name].numpy()) for name in ("counts", "index"))
        values = self._streams["values"].view(torch.float32).numpy()
        shape = (rows, -(-cols // 2) if layout.pairs else cols)
        weight, mask = unpack_streams((counts, index, values), shape, layout, self.pieces)
        return from_words(weight, mask, cols) if layout.pairs else (torch.from_numpy(weight), torch.from_numpy(mask))

    def reference(self) -> tuple[Tensor, Tensor]:
        """As `dense`, kept for the next time: what runs where the core does not."""
        if self._reference is None:
            self._reference = self.dense()
        return self._reference

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the streams, for a file."""
        return {name: stream.clone() for name, stream in self._streams.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.layout, self.shape, self.pieces, self._streams)

    def __repr__(self) -> str:
        rows, cols = self.shape
        share = self.nnz / max(rows * cols, 1)
        return f"Packed({self.layout}, {rows} x {cols}, {share:.1%} kept, {self.nbytes:,} bytes)"


@never_traced
def pack(weight: Tensor, mask: Tensor | None = None, layout: str = "rows", pieces: Pieces | None = None) -> Packed:
    """Pack a dense weight for a sparse kernel.

    Args:
        weight: float32 ``[M, K]`` on the CPU: M outputs by K inputs, as in ``nn.Linear``.
        mask: bool ``[M, K]``, True is kept; by default what is not 0.
        layout: a name of ``secateur.runtime.LAYOUTS``. ``block4``, ``block8`` and ``block16`` need masks that keep or
            remove 4, 8 or 16 neighbouring outputs of an input together. Or a name of ``PAIR_LAYOUTS``: weights are
            rounded to bf16, and those of two neighbouring inputs are kept if one of them is: a removed one is a 0 there
            that meets its input, NaN and infinity too.
        pieces: how to cut the matrix; by default by its shape and density.

    Returns:
        The packed weight; it shares no memory with the dense one.

    Raises:
        ValueError: wrong dtype, shape or device, a layout that does not exist, or a mask that cuts blocks.

    Example:
        >>> weight = torch.tensor([[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
        >>> packed = pack(weight, layout="csr")
        >>> packed.nnz, packed.dense()[0].tolist()
        (2, [[0.0, 1.0, 0.0], [2.0, 0.0, 0.0]])
    """
    _known(layout)
    if weight.ndim != 2 or weight.dtype != torch.float32 or not weight.is_cpu or weight.layout != torch.strided:
        raise ValueError(
            f"weight: expected a dense float32 matrix [outputs, inputs] on the CPU, got {weight.dtype} of shape "
            f"{tuple(weight.shape)} on {weight.device}"
        )
    mask = weight != 0 if mask is None else mask
    if mask.dtype != torch.bool or mask.shape != weight.shape or not mask.is_cpu:
        raise ValueError(
            f"mask: expected bool of shape {tuple(weight.shape)} on the CPU, as the weight, got {mask.dtype} of shape "
            f"{tuple(mask.shape)} on {mask.device}"
        )
    table = KNOWN[layout]
    if table.kernel == "blocks":
        check_blocks(pair_mask(mask) if table.pairs else mask, table.unit)
    pieces = pieces or pieces_of(layout, mask)
    if table.kernel in {"csr", "ell"} and pieces.bits != 16:
        raise ValueError(f"pieces: layout {layout} has indices of 16 bits, got {pieces}")
    packed = Packed(layout, (len(weight), weight.shape[1]), pieces, _streams_of(weight.detach(), mask, layout, pieces))
    packed._nnz = int(mask.count_nonzero())
    return packed


def pieces_of(layout: str, mask: Tensor) -> Pieces:
    """How a weight with this mask is cut for a layout, by its shape and density."""
    kept = pair_mask(mask) if KNOWN[layout].pairs else mask
    rows, cols = kept.shape
    return KNOWN[layout].cut(rows, cols, int(kept.sum()) / max(kept.numel(), 1))


def _streams_of(weight: Tensor, mask: Tensor, layout: str, pieces: Pieces) -> dict[str, Tensor]:
    table = KNOWN[layout]
    dense, kept = to_words(weight, mask) if table.pairs else (weight.contiguous().numpy(), mask.contiguous().numpy())
    streams = pack_streams(dense, kept, table, pieces)
    counts, index, values = (_signed(stream) for stream in streams)
    halves = torch.from_numpy(values.view("i2")).view(torch.bfloat16) if table.pairs else torch.from_numpy(values)
    return {"counts": torch.from_numpy(counts), "index": torch.from_numpy(index), "values": halves}


def _known(layout: str) -> None:
    if layout not in KNOWN:
        raise ValueError(f"layout {layout!r}: allowed are {', '.join(KNOWN)}")


def _dtypes(layout: str, pieces: Pieces) -> dict[str, torch.dtype]:
    """Of each stream. Torch reads and writes signed integers of 16 and 32 bits everywhere, unsigned ones not."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    kernel, size = KNOWN[layout].kernel, pieces.bits // 8
    counts, index = {"even": (2, size), "ell": (4, 1)}.get(kernel, (size, size))
    values = torch.bfloat16 if KNOWN[layout].pairs else torch.float32
    return {"counts": integer[counts], "index": integer[index], "values": values}


def _signed(stream: Array) -> Array:
    return stream.view(f"i{stream.itemsize}") if stream.dtype.kind == "u" and stream.itemsize > 1 else stream


def _unsigned(stream: Array) -> Array:
    return stream.view(f"u{stream.itemsize}")


def _bytes(stream: Tensor) -> bytes:
    return (stream.view(torch.int16) if stream.dtype == torch.bfloat16 else stream).numpy().tobytes()


def _owned(streams: dict[str, Tensor], name: str, dtype: torch.dtype) -> Tensor:
    if name not in streams:
        raise ValueError(f"streams of a packed weight: {name!r} is missing, got {sorted(streams)}")
    stream = streams[name]
    if not stream.is_cpu or stream.ndim != 1 or stream.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} with one axis on the CPU, got {stream.dtype} of shape {tuple(stream.shape)} on "
            f"{stream.device}"
        )
    if dtype == torch.bfloat16 and len(stream) % 2:
        raise ValueError(f"packed weights: {name} are pairs, got {len(stream)} numbers")
    # A copy, in torch's own memory: NumPy's is not aligned to cache lines, and nobody else can change this one.
    return stream.detach().clone(memory_format=torch.contiguous_format)
