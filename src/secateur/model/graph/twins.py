"""Copies of a model over the same numbers: a model is copied often while a removal is planned, and is seldom changed.

A twin has modules, parameter objects and buffers of its own; the memory of its parameters is the model's. Nothing may
write into that memory: who changes a parameter of a twin gives it other data.
"""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["copied", "own_memory", "twin"]


def twin(root: nn.Module) -> nn.Module:
    """A copy whose parameters lie in the memory of the model's.

    Args:
        root: a module whose forward does not write into its parameters.

    Returns:
        What ``copy.deepcopy`` gives, but for that memory.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> other = twin(net)
        >>> other.weight is net.weight, other.weight.data_ptr() == net.weight.data_ptr()
        (False, True)
    """
    shared, seen = dict[int, Any](), set[tuple[Any, ...]]()
    for parameter in filter(_plain, root.parameters()):
        place = _place(parameter)
        if place not in seen:  # of two parameters in one memory, a deep copy gives each its own
            shared[id(parameter)] = nn.Parameter(parameter.data, parameter.requires_grad)
        seen.add(place)
    return copied(root, shared)


def copied(root: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """``copy.deepcopy`` of a model, in a fraction of the time.

    Most of a model are tables of plain values and empty tables of hooks; these are copied here, one by one, and what
    knows how to copy itself is left to ``copy``.
    """
    return _copy(root, {} if memo is None else memo)


_ATOMS = frozenset((int, float, bool, str, type(None), torch.dtype, torch.device))


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in (dict, OrderedDict):
        table = memo[id(value)] = kind()
        for name, item in value.items():
            table[_copy(name, memo)] = _copy(item, memo)
        return table
    if kind is list:
        row = memo[id(value)] = list[Any]()
        row.extend(_copy(item, memo) for item in value)
        return row
    if isinstance(value, nn.Module) and _plainly(kind):
        module = memo[id(value)] = kind.__new__(kind)
        state = value.__getstate__() if hasattr(value, "__getstate__") else vars(value)  # Python 3.10 has none
        module.__setstate__({name: _copy(item, memo) for name, item in state.items()})
        return module
    return copy.deepcopy(value, memo)


@cache
def _plainly(kind: type[nn.Module]) -> bool:
    """Whether modules of a class are copied by their attributes: nothing in it says how else."""
    own = ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__", "__slots__")
    same = ("__reduce__", "__reduce_ex__", "__new__")
    return (
        not any(hasattr(kind, name) for name in own)
        and all(getattr(kind, name) is getattr(object, name) for name in same)
        and getattr(kind, "__getstate__", None) is getattr(nn.Module, "__getstate__", None)
        and kind not in copyreg.dispatch_table
    )


def own_memory(small: nn.Module, root: nn.Module) -> None:
    """Give the parameters of a twin that still lie in the model's memory some of their own."""
    taken = {_address(parameter) for parameter in root.parameters() if _plain(parameter)}
    with torch.no_grad():
        for parameter in small.parameters():
            if _plain(parameter) and _address(parameter) in taken:
                parameter.data = parameter.data.clone()


def _plain(parameter: Tensor) -> bool:
    """Whether another object over the same memory is as good: subclasses and lazy parameters copy themselves."""
    return type(parameter) is nn.Parameter and not is_lazy(parameter) and parameter.layout is torch.strided


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where the numbers lie; those of tensors without any lie nowhere."""
    if tensor.numel() == 0 or tensor.device.type == "meta":
        return (id(tensor),)
    return tensor.device, tensor.data_ptr()


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
