"""A sparse weight, packed for one kernel."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from secateur.native.gates import gate_for
from secateur.native.loading import core, never_traced
from secateur.runtime.canonical import check_blocks
from secateur.runtime.columns import Array
from secateur.runtime.layouts import Pieces, pack_streams, unpack_streams
from secateur.runtime.nm import check_nm
from secateur.runtime.pairs import from_words, to_words, word_mask
from secateur.runtime.quads import LONGEST, from_quads, quantised, to_quads
from secateur.runtime.words import KNOWN

__all__ = ["Packed", "pack", "pieces_of"]

_NAMES = ("counts", "index", "values")


@final
class Packed:
    """A weight in one of the packed layouts, checked once, ready for `secateur.runtime.linear`.

    It holds copies: later changes of the dense weight do not reach it. `pack` makes one.

    Args:
        layout: a name of ``LAYOUTS``, ``PAIR_LAYOUTS`` or ``QUAD_LAYOUTS``.
        shape: of the weight, ``(M, K)``.
        pieces: how it was cut.
        streams: the tensors ``counts``, ``index`` and ``values`` of the layout; in int8 also ``scales`` and ``sums`` of
            each output.

    Raises:
        ValueError: a kernel would read these streams out of bounds.
    """

    __slots__ = ("_nnz", "_reference", "_streams", "gate", "layout", "native", "pieces", "shape")

    def __init__(self, layout: str, shape: tuple[int, int], pieces: Pieces, streams: dict[str, Tensor]) -> None:
        _known(layout)
        if len(shape) != 2 or min(shape) < 0:
            raise ValueError(f"shape: expected two lengths (outputs, inputs), got {shape}")
        self.layout, self.shape, self.pieces = layout, shape, pieces
        self._streams = {name: _owned(streams, name, dtype) for name, dtype in _dtypes(layout, pieces).items()}
        for name in ("scales", "sums"):
            if name in self._streams and len(self._streams[name]) != shape[0]:
                raise ValueError(
                    f"packed weights: {name} has {len(self._streams[name])} numbers for {shape[0]} outputs"
                )
        self._reference: tuple[Tensor, Tensor] | None = None
        self._nnz: int | None = None
        self.native: Any = None if core is None else self.handle(core.active)
        if self.native is None:
            self._check()
        self.gate: Any = None if self.native is None else gate_for(shape[1:])

    def _check(self) -> None:
        """What the core checks at creation, where it is absent: these are the streams that packing would make."""
        try:
            if KNOWN[self.layout].inputs == 4:
                again = _quad_streams(*self.integers(), self._streams["scales"], self.layout, self.pieces)
            else:
                again = _streams_of(*self.reference(), self.layout, self.pieces)
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
            KNOWN[self.layout].inputs,
            *(self._streams[name].data_ptr() if name in self._streams else 0 for name in ("scales", "sums")),
        )

    @property
    def nnz(self) -> int:
        """How many weights are kept; of a kept word all, unless this was just packed."""
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
        layout, cols = KNOWN[self.layout], self.shape[1]
        if layout.inputs == 4:
            numbers, mask = self.integers()
            return torch.where(mask, numbers * self.scales[:, None], 0.0), mask
        weight, mask = self._words()
        return (
            from_words(weight, mask, cols) if layout.inputs == 2 else (torch.from_numpy(weight), torch.from_numpy(mask))
        )

    def integers(self) -> tuple[Tensor, Tensor]:
        """Of a layout in int8: the weight ``[M, K]`` on its grid, and its mask."""
        return from_quads(*self._words(), self.shape[1])

    @property
    def scales(self) -> Tensor:
        """Of a layout in int8: what 1 is worth in each row of `integers`."""
        return self._streams["scales"]

    def _words(self) -> tuple[Array, Array]:
        layout, (rows, cols) = KNOWN[self.layout], self.shape
        counts, index = (_unsigned(self._streams[name].numpy()) for name in ("counts", "index"))
        values = self._streams["values"].view(torch.float32).numpy()
        shape = (rows, -(-cols // layout.inputs))
        return unpack_streams((counts, index, values), shape, layout, self.pieces)

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
            remove 4, 8 or 16 neighbouring outputs of an input together, ``nm`` masks that keep 1, 2, 4 or 8 of every 16
            inputs in every row. Or a name of ``PAIR_LAYOUTS``: weights are
            rounded to bf16, and those of two neighbouring inputs are kept if one of them is: a removed one is a 0 there
            that meets its input, NaN and infinity too. Or one of ``QUAD_LAYOUTS``: weights lie on a grid of int8 per
            output, of four neighbouring inputs, and what they multiply is put on one of 8 bits per sample.
        pieces: how to cut the matrix; by default by its shape and density.

    Returns:
        The packed weight; it shares no memory with the dense one.

    Raises:
        ValueError: wrong dtype, shape or device, a layout that does not exist, a mask that cuts blocks, or for int8
            kept weights that are not finite, or more inputs than 32 bits can sum.

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
        check_blocks(word_mask(mask, table.inputs), table.unit)
    if table.kernel == "nm":
        check_nm(mask)
    if table.inputs == 4:
        _check_quads(weight, mask)
    pieces = pieces or pieces_of(layout, mask)
    if table.kernel in {"csr", "ell", "nm"} and pieces.bits != 16:
        raise ValueError(f"pieces: layout {layout} has indices of 16 bits, got {pieces}")
    packed = Packed(layout, (len(weight), weight.shape[1]), pieces, _streams_of(weight.detach(), mask, layout, pieces))
    packed._nnz = int(mask.count_nonzero())
    return packed


def pieces_of(layout: str, mask: Tensor) -> Pieces:
    """How a weight with this mask is cut for a layout, by its shape and density."""
    kept = word_mask(mask, KNOWN[layout].inputs)
    rows, cols = kept.shape
    return KNOWN[layout].cut(rows, cols, int(kept.sum()) / max(kept.numel(), 1))


def _streams_of(weight: Tensor, mask: Tensor, layout: str, pieces: Pieces) -> dict[str, Tensor]:
    table = KNOWN[layout]
    if table.inputs == 4:
        numbers, scales = quantised(weight, mask)
        return _quad_streams(numbers, mask, scales, layout, pieces)
    dense, kept = (
        to_words(weight, mask) if table.inputs == 2 else (weight.contiguous().numpy(), mask.contiguous().numpy())
    )
    counts, index, values = _packed_streams(dense, kept, layout, pieces)
    halves = torch.from_numpy(values.view("i2")).view(torch.bfloat16) if table.inputs == 2 else torch.from_numpy(values)
    return {"counts": counts, "index": index, "values": halves}


def _quad_streams(numbers: Tensor, mask: Tensor, scales: Tensor, layout: str, pieces: Pieces) -> dict[str, Tensor]:
    counts, index, values = _packed_streams(*to_quads(numbers, mask), layout, pieces)
    bytes_ = torch.from_numpy(values.view("i1"))
    sums = numbers.sum(1, dtype=torch.int32)
    return {"counts": counts, "index": index, "values": bytes_, "scales": scales, "sums": sums}


def _packed_streams(words: Array, kept: Array, layout: str, pieces: Pieces) -> tuple[Tensor, Tensor, Array]:
    counts, index, values = (_signed(stream) for stream in pack_streams(words, kept, KNOWN[layout], pieces))
    return torch.from_numpy(counts), torch.from_numpy(index), values


def _check_quads(weight: Tensor, mask: Tensor) -> None:
    if weight.shape[1] > LONGEST:
        raise ValueError(f"weight: int8 sums at most {LONGEST:,} inputs in 32 bits, got {weight.shape[1]:,}; try bf16")
    if not bool(torch.isfinite(weight[mask]).all()):
        raise ValueError("weight: int8 has no NaN and no infinity, but kept weights are such; try float32")


def _known(layout: str) -> None:
    if layout not in KNOWN:
        raise ValueError(f"layout {layout!r}: allowed are {', '.join(KNOWN)}")


def _dtypes(layout: str, pieces: Pieces) -> dict[str, torch.dtype]:
    """Of each stream. Torch reads and writes signed integers of 16 and 32 bits everywhere, unsigned ones not."""
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    kernel, size = KNOWN[layout].kernel, pieces.bits // 8
    counts, index = {"even": (2, size), "ell": (4, 1), "nm": (2, 4)}.get(kernel, (size, size))
    values = {1: torch.float32, 2: torch.bfloat16, 4: torch.int8}[KNOWN[layout].inputs]
    rows = {"scales": torch.float32, "sums": torch.int32} if values == torch.int8 else {}
    return {"counts": integer[counts], "index": integer[index], "values": values, **rows}


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
    word = {torch.bfloat16: 2, torch.int8: 4}.get(dtype, 1)
    if len(stream) % word:
        raise ValueError(f"packed weights: {name} come in words of {word}, got {len(stream)} numbers")
    # A copy, in torch's own memory: NumPy's is not aligned to cache lines, and nobody else can change this one.
    return stream.detach().clone(memory_format=torch.contiguous_format)
