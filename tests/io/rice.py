"""Rice codes of masks, bit by bit in plain Python: the written format, read independently of the package."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["gaps_of", "pack", "read_rice", "smallest_rice", "write_rice"]


def gaps_of(positions: Sequence[int]) -> list[int]:
    """How many elements are skipped before each position."""
    return [position - before - 1 for before, position in zip([-1, *positions], positions, strict=False)]


def pack(text: str) -> list[int]:
    """Bits as characters, the first the lowest of the first byte."""
    return [int(text[start : start + 8][::-1], 2) for start in range(0, len(text), 8)]


def write_rice(positions: Sequence[int], k: int) -> list[int]:
    """The stored bytes for one k."""
    unary, low = "", ""
    for gap in gaps_of(positions):
        unary += "0" * (gap // 2**k) + "1"
        for place in range(k):
            low += str(gap // 2**place % 2)
    return [k, *pack(unary), *pack(low)]


def bits_of(positions: Sequence[int], k: int) -> int:
    """Bits of both parts together."""
    return sum(gap // 2**k + 1 + k for gap in gaps_of(positions))


def smallest_rice(positions: Sequence[int]) -> list[int]:
    """The code with the k of the fewest bits, the smallest of equals."""
    return write_rice(positions, min(range(32), key=lambda k: bits_of(positions, k)))


def read_rice(stored: Sequence[int], count: int, n: int) -> list[int] | None:
    """The positions; None where the bytes are no code of ``count`` positions among ``n``."""
    if not stored or stored[0] > 31:
        return None
    k = stored[0]
    bits = "".join(f"{byte:08b}"[::-1] for byte in stored[1:])
    quotients: list[int] = []
    at = 0
    while len(quotients) < count:
        one = bits.find("1", at)
        if one < 0:
            return None
        quotients.append(one - at)
        at = one + 1
    low = (at + 7) // 8 * 8
    if len(bits) != low + (count * k + 7) // 8 * 8 or "1" in bits[at:low] or "1" in bits[low + count * k :]:
        return None
    positions: list[int] = []
    last = -1
    for index, quotient in enumerate(quotients):
        part = bits[low + index * k : low + (index + 1) * k]
        last += quotient * 2**k + sum(2**place for place, bit in enumerate(part) if bit == "1") + 1
        positions.append(last)
    return positions if last < n else None
