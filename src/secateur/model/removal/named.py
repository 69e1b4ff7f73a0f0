"""Tensors and modules by clean name, and the shapes they have now."""

from __future__ import annotations

from itertools import chain
from typing import TypeAlias

from torch import Tensor, nn

from secateur.model.names import clean_name, unwrap

__all__ = ["Shape", "modules_by_name", "other_names", "tensor_shapes", "tensors_by_name"]

Shape: TypeAlias = tuple[int, ...]


def tensors_by_name(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, then buffers, each object once under its first clean name.

    Example:
        >>> list(tensors_by_name(nn.BatchNorm1d(2)))
        ['weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked']
    """
    root = unwrap(model)
    return {clean_name(name): tensor for name, tensor in chain(root.named_parameters(), root.named_buffers())}


def tensor_shapes(model: nn.Module) -> dict[str, Shape]:
    """The shape of every parameter and buffer, by its first clean name.

    Example:
        >>> tensor_shapes(nn.Linear(3, 2))
        {'weight': (2, 3), 'bias': (2,)}
    """
    return {name: tuple(tensor.shape) for name, tensor in tensors_by_name(model).items()}


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """Every name of every module; under the name of a wrapper stands what it wraps.

    Example:
        >>> list(modules_by_name(nn.Sequential(nn.ReLU())))
        ['', '0']
    """
    # A wrapper comes before the module in it, and both have the same clean name: the later one stays.
    return {clean_name(name): module for name, module in unwrap(model).named_modules(remove_duplicate=False)}


def other_names(model: nn.Module) -> dict[str, str]:
    """The later names of tied parameters and buffers -> the first one.

    Example:
        >>> net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
        >>> net[1].weight = net[0].weight
        >>> other_names(net)
        {'1.weight': '0.weight'}
    """
    root = unwrap(model)
    first = {id(tensor): name for name, tensor in tensors_by_name(root).items()}
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    pairs = ((clean_name(name), first[id(tensor)]) for name, tensor in named)
    return {name: known for name, known in pairs if name != known}
