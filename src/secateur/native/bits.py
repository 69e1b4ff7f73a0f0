"""Boolean masks as bits, and back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.native.loading import core, never_traced, takes

__all__ = ["check_bits", "count_bits", "pack_bits", "unpack_bits"]


@never_traced
def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean mask into bits.

    ``bits[j] = sum_i mask.flat[8 j + i] * 2^i``

    Args:
        mask: bool, any shape; True is kept.

    Returns:
        uint8 ``[ceil(n / 8)]`` on the mask's device; spare bits are 0.

    Raises:
        ValueError: the mask is not bool.

    Example:
        >>> pack_bits(torch.tensor([True, False, True, True, False, False, False, False, True])).tolist()
        [13, 1]
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected dtype bool, got {mask.dtype} of shape {tuple(mask.shape)}; try mask != 0")
    flat = mask.detach().contiguous().view(-1)
    if core is None or not takes(flat):
        return _pack_reference(flat)
    bits = torch.empty((flat.numel() + 7) // 8, dtype=torch.uint8)
    core.active.pack(flat.data_ptr(), flat.numel(), bits.data_ptr())
    return bits


@never_traced
def unpack_bits(bits: Tensor, numel: int) -> Tensor:
    """Unpack bits into a flat boolean mask; the inverse of `pack_bits`.

    Args:
        bits: uint8 ``[ceil(numel / 8)]``.
        numel: number of elements of the mask.

    Returns:
        bool ``[numel]`` on the device of the bits. Spare bits are not looked at.

    Raises:
        ValueError: the bits are not uint8, or not as many as ``numel`` needs.

    Example:
        >>> unpack_bits(torch.tensor([13, 1], dtype=torch.uint8), 9).int().tolist()
        [1, 0, 1, 1, 0, 0, 0, 0, 1]
    """
    check_bits(bits, numel)
    bits = bits.contiguous()
    if core is None or not takes(bits):
        return _unpack_reference(bits, numel)
    mask = torch.empty(numel, dtype=torch.bool)
    core.active.unpack(bits.data_ptr(), numel, mask.data_ptr())
    return mask


@never_traced
def count_bits(bits: Tensor, numel: int) -> int:
    """Count the kept elements among the first ``numel`` bits.

    Args:
        bits: uint8 ``[ceil(numel / 8)]``.
        numel: number of elements of the mask.

    Returns:
        How many are 1. Spare bits are not looked at.

    Raises:
        ValueError: the bits are not uint8, or not as many as ``numel`` needs.

    Example:
        >>> count_bits(torch.tensor([13, 255], dtype=torch.uint8), 9)
        4
    """
    check_bits(bits, numel)
    bits = bits.contiguous()
    if core is None or not takes(bits):
        return int(_unpack_reference(bits, numel).sum())
    return core.active.popcount(bits.data_ptr(), numel)


def check_bits(bits: Tensor, numel: int, name: str = "bits") -> None:
    """Refuse bits that are not ``ceil(numel / 8)`` bytes."""
    if numel < 0:
        raise ValueError(f"numel: expected 0 or more, got {numel}")
    if bits.dtype != torch.uint8 or tuple(bits.shape) != ((numel + 7) // 8,):
        raise ValueError(
            f"{name}: expected uint8 of shape ({(numel + 7) // 8},) for {numel} elements, "
            f"got {bits.dtype} of shape {tuple(bits.shape)}"
        )


def _pack_reference(flat: Tensor) -> Tensor:
    padded = nn.functional.pad(flat.to(torch.uint8), (0, -flat.numel() % 8)).view(-1, 8)
    place = torch.arange(8, dtype=torch.uint8, device=flat.device)
    return (padded << place).sum(1, dtype=torch.uint8)


def _unpack_reference(bits: Tensor, numel: int) -> Tensor:
    place = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits[:, None] >> place) & 1).bool().view(-1)[:numel]
