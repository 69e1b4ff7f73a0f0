"""What is known of the elements of every tensor of a run: whether they depend on the input, and whether they are zero.

Facts are kept for each *storage*, element by element, so that views, and writes into views, need no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Facts", "FlowRule", "Shadow", "Step"]


@dataclass(frozen=True, slots=True)
class Facts:
    """Of each element of a tensor.

    Attributes:
        varies: it may depend on the input of the model; elsewhere its value is the same for all inputs.
        nonzero: it may be other than zero.
    """

    varies: Tensor
    nonzero: Tensor


@dataclass(frozen=True)
class FlowRule:
    """What an operator does to facts: two functions of a step.

    Attributes:
        varies: -> for each result, which elements may depend on the input.
        needs: (which elements of each result matter) -> for each operand, which elements matter.
    """

    varies: Callable[[Step], list[Tensor]]
    needs: Callable[[Step, list[Tensor]], list[Tensor]]


@dataclass(slots=True, eq=False)
class Step:
    """One operator of a run.

    Attributes:
        func: the operator, with its overload.
        args: as it was called.
        kwargs: as it was called.
        inputs: all tensors among them.
        facts: what was known of the inputs then.
        outs: the tensors it returned.
        writes: it writes into an input.
        constants: of a contraction with weights, for each channel of what it reads the one value that it always has,
            nan where it has none.
    """

    func: Any
    args: Any
    kwargs: Mapping[str, Any]
    inputs: list[Tensor]
    facts: list[Facts]
    outs: list[Tensor]
    writes: bool = False
    constants: Tensor | None = None

    @property
    def name(self) -> str:
        """The operator's name without its overload."""
        return self.func.overloadpacket.__name__

    def of(self, tensor: Tensor) -> Facts:
        """What was known of one input."""
        return next(facts for one, facts in zip(self.inputs, self.facts, strict=True) if one is tensor)


@dataclass(slots=True)
class _Cell:
    storage: Any  # keeps the memory, so that its address names it
    itemsize: int
    varies: Tensor
    nonzero: Tensor
    live: Tensor


@final
class Shadow:
    """Facts and liveness of the memory that tensors lie in."""

    def __init__(self) -> None:
        self._cells: dict[int, _Cell] = {}

    def key(self, tensor: Tensor) -> int:
        """The address of a tensor's memory."""
        return tensor.untyped_storage()._cdata

    def facts(self, tensor: Tensor) -> Facts:
        """What is known of a tensor now; of memory never seen before, nothing."""
        cell = self._cell(tensor)
        if cell.itemsize != tensor.element_size():  # read as another type: its elements are not the cell's
            everything = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
            return Facts(everything, everything)
        return Facts(_view(cell.varies, tensor).clone(), _view(cell.nonzero, tensor).clone())

    def define(self, tensor: Tensor, varies: Tensor) -> None:
        """A tensor was made, or written."""
        cell = self._cell(tensor)
        if cell.itemsize != tensor.element_size():
            cell.varies.fill_(True)
            cell.nonzero.fill_(True)
            return
        _view(cell.varies, tensor).copy_(varies)
        _view(cell.nonzero, tensor).copy_(varies | (tensor != 0))

    def live(self, tensor: Tensor) -> Tensor:
        """Which elements can still change the output."""
        cell = self._cell(tensor)
        if cell.itemsize != tensor.element_size():
            return cell.live.any().expand(tensor.shape)
        return _view(cell.live, tensor).clone()

    def kill(self, tensor: Tensor) -> None:
        """Before this point in time the elements had not been written."""
        cell = self._cell(tensor)
        if cell.itemsize == tensor.element_size():
            _view(cell.live, tensor).fill_(False)

    def revive(self, tensor: Tensor, live: Tensor) -> None:
        """These elements can change the output."""
        cell = self._cell(tensor)
        if cell.itemsize != tensor.element_size():
            cell.live |= live.any()
            return
        there = _view(cell.live, tensor)
        if tensor.numel() and 0 in tensor.stride():  # expanded: several elements share a place
            live = _narrowed(live, tensor)
            there = _narrowed_view(cell.live, tensor)
        there.copy_(there | live)

    def _cell(self, tensor: Tensor) -> _Cell:
        key = self.key(tensor)
        if key not in self._cells:
            storage = tensor.untyped_storage()
            size = storage.nbytes() // tensor.element_size()
            yes = torch.ones(size, dtype=torch.bool, device=tensor.device)
            self._cells[key] = _Cell(storage, tensor.element_size(), yes, yes.clone(), torch.zeros_like(yes))
        return self._cells[key]


def _view(flat: Tensor, tensor: Tensor) -> Tensor:
    return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _shared(tensor: Tensor) -> list[int]:
    return [
        axis
        for axis, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
        if size > 1 and not stride
    ]


def _narrowed(mask: Tensor, tensor: Tensor) -> Tensor:
    shared = _shared(tensor)
    return mask.any(shared, keepdim=True) if shared else mask


def _narrowed_view(flat: Tensor, tensor: Tensor) -> Tensor:
    shared = _shared(tensor)
    shape = [1 if axis in shared else size for axis, size in enumerate(tensor.shape)]
    return flat.as_strided(shape, tensor.stride(), tensor.storage_offset())
