"""A mask as few bytes: the smaller of packed bits and Rice-coded gaps.

    bits  one bit per element                             ceil(n / 8) bytes
    rice  gaps between the positions of the rarer side    within 5 % of the entropy for random masks

Rice: the kept or the removed positions are listed, whichever are fewer. The gap ``g`` in front of a
position counts the elements that it skips; ``g = (q << k) + r`` with one ``k`` for the whole mask.

    byte 0   k, 0 to 31
    unary    each gap gives q zeros and a one; bit i of byte j is bit 8 j + i; spare bits 0
    low      each gap gives the k bits of r, least significant first; spare bits 0

So ``count (k + 1) + sum q`` bits: 4.8 per kept element at 90 % sparsity, 8.1 at 99 %.
Reference: Rice & Plaunt 1971, "Adaptive variable-length coding for efficient compression of
spacecraft television data"; Golomb 1966, "Run-length encodings" (from memory, not verified).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from secateur import native

__all__ = ["Coding", "PositionCode", "Side", "decode", "encode"]

Coding: TypeAlias = Literal["bits", "rice"]
Side: TypeAlias = Literal["kept", "removed"]

_MOST_LOW_BITS = 31
_BLOCK = 1 << 13
"""Bytes of the unary part that are decoded at once: 65,536 positions at most."""


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
    """A boolean mask in its smaller coding.

    Args:
        mask: bool, any shape, CPU; True = kept.

    Returns:
        The code and a 1-D uint8 tensor.

    Example:
        >>> mask = torch.zeros(1000, dtype=torch.bool)
        >>> mask[[3, 400]] = True
        >>> code, stored = encode(mask)
        >>> code.coding, stored.tolist()  # gaps 3 and 396 = (3 << 7) + 12
        ('rice', [7, 17, 3, 6])
        >>> torch.equal(decode(code, stored), mask)
        True
    """
    shape, flat = tuple(mask.shape), mask.reshape(-1).contiguous()
    n = flat.numel()
    kept = int(flat.sum())
    side: Side = "kept" if 2 * kept <= n else "removed"
    positions = (flat if side == "kept" else ~flat).nonzero().reshape(-1)
    count = positions.numel()
    gaps = torch.diff(positions, prepend=positions.new_tensor([-1])) - 1
    k = _best_low_bits(gaps, n)
    unary = _rice_bits(gaps, k) - count * k
    if 1 + (unary + 7) // 8 + (count * k + 7) // 8 < (n + 7) // 8:
        return PositionCode(shape, "rice", side, count), _encode_rice(gaps, k, unary)
    return PositionCode(shape, "bits", "kept", kept), native.pack_bits(flat)


def decode(code: PositionCode, stored: Tensor) -> Tensor:
    """The mask again, every byte of ``stored`` checked.

    Args:
        code: as ``encode`` gave it, or as a file claims.
        stored: 1-D tensor from the file.

    Returns:
        Bool tensor of ``code.shape``. Memory: the mask, and at most 64 MiB, whatever is stored.

    Raises:
        ValueError: if the stored tensor is not what ``encode`` makes.
    """
    if stored.dtype is not torch.uint8 or stored.dim() != 1:
        raise ValueError(f"mask must be 1-D torch.uint8, found {stored.dtype} {tuple(stored.shape)}")
    mask = _decode_bits(code, stored) if code.coding == "bits" else _decode_rice(code, stored)
    return mask.reshape(code.shape)


def is_coding(value: object) -> bool:
    """Whether a file's word names a coding."""
    return value in get_args(Coding)


def _rice_bits(gaps: Tensor, k: int) -> int:
    return gaps.numel() * (k + 1) + int((gaps >> k).sum())


def _best_low_bits(gaps: Tensor, n: int) -> int:
    """The k of the fewest bits, the smallest of equals: the bits are convex in k, so a walk downhill ends at it."""
    count = gaps.numel()
    if count == 0:
        return 0
    k = min(max(0, round(math.log2(max(1.0, n / count * math.log(2))))), _MOST_LOW_BITS)
    while k < _MOST_LOW_BITS and _rice_bits(gaps, k + 1) < _rice_bits(gaps, k):
        k += 1
    while k > 0 and _rice_bits(gaps, k - 1) <= _rice_bits(gaps, k):
        k -= 1
    return k


def _encode_rice(gaps: Tensor, k: int, unary_bits: int) -> Tensor:
    unary = torch.zeros(unary_bits, dtype=torch.bool)
    unary[((gaps >> k) + 1).cumsum(0) - 1] = True
    low = (gaps[:, None] >> torch.arange(k) & 1).bool()
    return torch.cat([torch.tensor([k], dtype=torch.uint8), native.pack_bits(unary), native.pack_bits(low)])


def _decode_rice(code: PositionCode, stored: Tensor) -> Tensor:
    k, unary, low = _rice_parts(code, stored)
    mask = torch.full((code.numel,), code.side == "removed", dtype=torch.bool)
    listed, one, position = 0, -1, -1  # how many were listed; the last one bit; the last position
    for start in range(0, unary.numel(), _BLOCK):
        block = unary[start : start + _BLOCK]
        ones = native.unpack_bits(block, 8 * block.numel()).nonzero().reshape(-1) + 8 * start
        if ones.numel() == 0:
            continue
        quotients = torch.diff(ones, prepend=ones.new_tensor([one])) - 1
        gaps = (quotients << k) + _remainders(low, k, listed, ones.numel())
        positions = (gaps + 1).cumsum(0) + position
        listed, one, position = listed + ones.numel(), int(ones[-1]), int(positions[-1])
        if position >= code.numel:
            raise ValueError(f"index {position} out of range for {code.numel} elements")
        mask[positions] = code.side == "kept"
    return mask


def _remainders(low: Tensor, k: int, first: int, count: int) -> Tensor:
    begin, end = first * k, (first + count) * k
    piece = low[begin // 8 : (end + 7) // 8]
    bits = native.unpack_bits(piece, 8 * piece.numel())[begin % 8 : begin % 8 + count * k]
    return (bits.view(count, k) << torch.arange(k)).sum(1)


def _rice_parts(code: PositionCode, stored: Tensor) -> tuple[int, Tensor, Tensor]:
    """k, unary and low part, with all checked but the sum of the low bits; nothing is allocated."""
    n, count = code.numel, code.count
    if stored.numel() == 0:
        raise ValueError("mask in rice is empty; its first byte must say how many low bits its gaps have")
    k = int(stored[0])
    # beyond 2 n / count one low bit less is never dearer, so encode goes no further; and no sum below can overflow
    if k > _MOST_LOW_BITS or (k > 0 and count << k >= 2 * n):
        raise ValueError(f"mask has {k} low bits per gap, too many for {count} positions among {n} elements")
    low_bytes = (count * k + 7) // 8
    unary_bytes = stored.numel() - 1 - low_bytes
    if 8 * unary_bytes < count:
        least = 1 + low_bytes + (count + 7) // 8
        raise ValueError(
            f"mask of {count} positions with {k} low bits needs {least} bytes or more, found {stored.numel()}"
        )
    unary, low = stored[1 : 1 + unary_bytes], stored[1 + unary_bytes :]
    ones = native.count_bits(unary, 8 * unary_bytes)
    if ones != count:
        raise ValueError(f"mask lists {ones} positions, its record says {count}")
    ending = int(unary[-1]) if unary_bytes else 0
    if unary_bytes and ending == 0:
        raise ValueError("mask has bytes beyond its last position")
    quotients = 8 * (unary_bytes - 1) + ending.bit_length() - count if count else 0
    least = (quotients << k) + count - 1
    if least >= n:
        raise ValueError(f"index {least} or more out of range for {n} elements")
    if count * k % 8 and int(low[-1]) >> (count * k % 8):
        raise ValueError("mask has bits set beyond its last low bit")
    return k, unary, low


def _decode_bits(code: PositionCode, stored: Tensor) -> Tensor:
    n = code.numel
    if stored.numel() != (n + 7) // 8:
        raise ValueError(f"mask of {n} elements needs {(n + 7) // 8} bytes of bits, found {stored.numel()}")
    if code.side != "kept" or native.count_bits(stored, n) != code.count:
        raise ValueError(f"mask has {native.count_bits(stored, n)} bits set, its record says {code.count}")
    if n % 8 and int(stored[-1]) >> (n % 8):
        raise ValueError("mask has bits set beyond its last element")
    return native.unpack_bits(stored, n)
