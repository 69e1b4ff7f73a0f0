"""What a change of a model has touched, so that an error leaves no trace."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["Journal"]

_ABSENT = object()


@final
class Journal:
    """Changes tensors and attributes in place, and can take all of it back.

    Only references to the old data are kept: slicing makes new tensors, so nothing is copied.

    Example:
        >>> layer, journal = nn.Linear(3, 2), Journal()
        >>> journal.set_data(layer.weight, torch.zeros(1, 3))
        >>> journal.set_attribute(layer, "out_features", 1)
        >>> journal.undo()
        >>> layer.weight.shape, layer.out_features
        (torch.Size([2, 3]), 2)
    """

    def __init__(self) -> None:
        self._tensors: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self._attributes: list[tuple[nn.Module, str, object]] = []

    @property
    def changed_shapes(self) -> bool:
        """Whether any tensor was given other contents."""
        return bool(self._tensors)

    def set_data(self, tensor: Tensor, data: Tensor, grad: Tensor | None = None) -> None:
        """Give a tensor other contents of any shape; the object, its hooks and its ties live on."""
        self._tensors.append((tensor, tensor.data, tensor.grad if tensor.is_leaf else None))
        _put(tensor, data, grad)

    def set_attribute(self, module: nn.Module, name: str, value: Any) -> None:
        """Set a plain attribute of a module."""
        self._attributes.append((module, name, module.__dict__.get(name, _ABSENT)))
        setattr(module, name, value)

    def undo(self) -> None:
        """Everything as it was before the first change."""
        for module, name, value in reversed(self._attributes):
            if value is _ABSENT:
                delattr(module, name)
            else:
                setattr(module, name, value)
        for tensor, data, grad in reversed(self._tensors):
            _put(tensor, data, grad)
        self._attributes.clear()
        self._tensors.clear()


def _put(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    if tensor.is_leaf:
        tensor.grad = None  # torch wants gradient and data to have one shape at every moment
    # An output that is still alive keeps the node that accumulates this tensor's gradient, and with it the
    # old shape: the next backward would fail. torch makes a new node when the dtype changes, not the shape.
    other = torch.float16 if tensor.dtype is torch.float32 else torch.float32
    tensor.data = torch.empty(0, dtype=other, device=tensor.device)
    tensor.data = data
    if tensor.is_leaf:
        tensor.grad = grad
