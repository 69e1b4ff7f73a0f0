"""Bytes of a model: a plain checkpoint, the same gzipped, and this library's file."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from secateur.deploy.files import save
from secateur.model.masks import Masks, find_masks
from secateur.model.names import unwrap
from secateur.records import Sizes

__all__ = ["plain_bytes", "sizes"]

_GZIP_LEVEL = 6
_GZIP_WINDOW = 31  # 15 bits of window, and 16 for the gzip header
_CHUNK = 1 << 20


def sizes(model: nn.Module, masks: Masks | None = None, *, plan: Mapping[str, Any] | None = None) -> Sizes:
    """Bytes on disk, three ways.

    Args:
        model: any module with real values.
        masks: which weights this library's file leaves out; default: those registered for the model.
        plan: kept in the file too, which costs some hundred bytes.

    Returns:
        The state dict as plain safetensors; that file by gzip (level 6, its default); and what ``sc.save`` writes.

    Raises:
        ValueError: what ``sc.save`` refuses, such as removed weights that are no longer zero.

    Example:
        >>> found = sizes(nn.Linear(100, 100))
        >>> 40_400 < found.plain_bytes < 41_000
        True
    """
    plain = plain_bytes(model)
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    gzipped = sum(len(packer.compress(plain[i : i + _CHUNK])) for i in range(0, len(plain), _CHUNK))
    gzipped += len(packer.flush())
    masks = find_masks(model) if masks is None else masks
    # The bare tensors where there are no masks: save would warn of zeros that measure has a note for.
    content = unwrap(model).state_dict() if masks is None else model
    with tempfile.TemporaryDirectory() as folder:
        ours = save(content, Path(folder) / "model.safetensors", masks=masks, plan=plan)
    return Sizes(plain_bytes=len(plain), gzip_bytes=gzipped, file_bytes=ours)


def plain_bytes(model: nn.Module) -> bytes:
    """The state dict as a safetensors file; tied tensors stand in it once.

    Example:
        >>> net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False))
        >>> net[1].weight = net[0].weight
        >>> 1600 < len(plain_bytes(net)) < 1800
        True
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in unwrap(model).state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and id(tensor) not in seen:
            seen.add(id(tensor))
            # A clone of its own: safetensors refuses tensors that share memory, such as views of one buffer.
            tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return safetensors.torch.save(tensors)
