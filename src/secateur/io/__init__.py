"""Tensor dictionary, masks and a JSON record <-> one safetensors file."""

from __future__ import annotations

from secateur.io.bundle import Bundle, Contents, Expand, TensorInfo
from secateur.io.reading import read, read_contents
from secateur.io.writing import write

__all__ = ["Bundle", "Contents", "Expand", "TensorInfo", "read", "read_contents", "write"]
