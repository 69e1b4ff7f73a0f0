"""A mask as few bytes: the smallest of packed bits, gaps and indices.

    bits     one bit per element                       ceil(n / 8) bytes
    gap8     distance to the next position, one byte   about one byte per position
    gap16    the same in two bytes
    index32  the positions themselves                  four bytes per position

Gaps and indices list the kept or the removed positions, whichever are fewer. A gap code of all
ones (255, 65535) means "skip that many elements and go on"; so 99 % sparsity costs about 1.08
bytes per kept element.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from secateur import native

__all__ = ["Coding", "PositionCode", "Side", "decode", "encode"]

Coding: TypeAlias = Literal["bits", "gap8", "gap16", "index32"]
Side: TypeAlias = Literal["kept", "removed"]

_DTYPE: dict[str, torch.dtype] = {
    "bits": torch.uint8,
    "gap8": torch.uint8,
    "gap16": torch.uint16,
    "index32": torch.int32,
}
_SKIP: dict[str, int] = {"gap8": 0xFF, "gap16": 0xFFFF}


@dataclass(frozen=True, slots=True)
class PositionCode:
    """How a mask of ``shape`` is stored: the coding, and that it lists ``count`` positions of ``side``."""

    shape: tuple[int, ...]
    coding: Coding
    side: Side
    count: int

    @property
    def numel(self) -> int:
        """Elements of the mask."""
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def kept(self) -> int:
        """True elements of the mask."""
        return self.count if self.side == "kept" else self.numel - self.count


def encode(mask: Tensor) -> tuple[PositionCode, Tensor]:
    """A boolean mask in its smallest coding.

    Args:
        mask: bool, any shape, CPU; True = kept.

    Returns:
        The code and a 1-D tensor: uint8 for bits and gap8, uint16 for gap16, int32 for index32.

    Example:
        >>> mask = torch.zeros(1000, dtype=torch.bool)
        >>> mask[[3, 400]] = True
        >>> code, stored = encode(mask)
        >>> code.coding, stored.tolist()
        ('gap8', [3, 255, 141])
        >>> torch.equal(decode(code, stored), mask)
        True
    """
    shape, flat = tuple(mask.shape), mask.reshape(-1).contiguous()
    n = flat.numel()
    kept = int(flat.sum())
    side: Side = "kept" if 2 * kept <= n else "removed"
    count = kept if side == "kept" else n - kept
    bits_bytes = (n + 7) // 8
    if count < bits_bytes or n == 0:
        positions = (flat if side == "kept" else ~flat).nonzero().reshape(-1)
        gaps = torch.diff(positions, prepend=positions.new_tensor([-1])) - 1
        sizes: dict[Coding, int] = {
            "gap8": count + int((gaps // _SKIP["gap8"]).sum()),
            "gap16": 2 * (count + int((gaps // _SKIP["gap16"]).sum())),
        }
        if n <= 1 << 31:
            sizes["index32"] = 4 * count
        coding = min(sizes, key=lambda name: sizes[name])
        if sizes[coding] < bits_bytes or n == 0:
            stored = positions.to(torch.int32) if coding == "index32" else _encode_gaps(gaps, coding)
            return PositionCode(shape, coding, side, count), stored
    return PositionCode(shape, "bits", "kept", kept), native.pack_bits(flat)


def decode(code: PositionCode, stored: Tensor) -> Tensor:
    """The mask again, every byte of ``stored`` checked.

    Args:
        code: as ``encode`` gave it, or as a file claims.
        stored: 1-D tensor from the file.

    Returns:
        Bool tensor of ``code.shape``. Memory: the mask, and at most 16 bytes per stored byte.

    Raises:
        ValueError: if the stored tensor is not what ``encode`` makes.
    """
    if stored.dtype is not _DTYPE[code.coding] or stored.dim() != 1:
        raise ValueError(
            f"mask in {code.coding} must be 1-D {_DTYPE[code.coding]}, found {stored.dtype} {tuple(stored.shape)}"
        )
    if code.coding == "bits":
        return _decode_bits(code, stored).reshape(code.shape)
    positions = stored.long() if code.coding == "index32" else _decode_gaps(stored, code.coding)
    if positions.numel() != code.count:
        raise ValueError(f"mask lists {positions.numel()} positions, its record says {code.count}")
    mask = torch.full((code.numel,), code.side == "removed", dtype=torch.bool)
    if code.count:
        if int(positions.min()) < 0 or int(positions.max()) >= code.numel:
            wrong = int(positions.min()) if int(positions.min()) < 0 else int(positions.max())
            raise ValueError(f"index {wrong} out of range for {code.numel} elements")
        if not bool((positions.diff() > 0).all()):
            raise ValueError("mask positions do not increase")
        mask[positions] = code.side == "kept"
    return mask.reshape(code.shape)


def is_coding(value: object) -> bool:
    """Whether a file's word names a coding."""
    return value in get_args(Coding)


def _encode_gaps(gaps: Tensor, coding: Coding) -> Tensor:
    skip = _SKIP[coding]
    ends = (gaps // skip + 1).cumsum(0)
    codes = torch.full((int(ends[-1]) if ends.numel() else 0,), skip, dtype=torch.int64)
    codes[ends - 1] = gaps % skip
    if coding == "gap8":
        return codes.to(torch.uint8)
    return (codes - (codes >> 15 << 16)).to(torch.int16).view(torch.uint16)  # torch has no cast to uint16 everywhere


def _decode_gaps(stored: Tensor, coding: Coding) -> Tensor:
    skip = _SKIP[coding]
    codes = stored.long() if coding == "gap8" else stored.view(torch.int16).long() & 0xFFFF
    listed = codes != skip
    if codes.numel() and not bool(listed[-1]):
        raise ValueError("mask ends in a skip that leads nowhere")
    return (codes + listed).cumsum(0)[listed] - 1


def _decode_bits(code: PositionCode, stored: Tensor) -> Tensor:
    n = code.numel
    if stored.numel() != (n + 7) // 8:
        raise ValueError(f"mask of {n} elements needs {(n + 7) // 8} bytes of bits, found {stored.numel()}")
    if code.side != "kept" or native.count_bits(stored, n) != code.count:
        raise ValueError(f"mask has {native.count_bits(stored, n)} bits set, its record says {code.count}")
    if n % 8 and int(stored[-1]) >> (n % 8):
        raise ValueError("mask has bits set beyond its last element")
    return native.unpack_bits(stored, n)
