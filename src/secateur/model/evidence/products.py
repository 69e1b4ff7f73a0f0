"""Products of weights with inputs, seen from below: modules, functional calls and fused projections alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.evidence.columns import Windows
from secateur.model.evidence.watching import spread
from secateur.model.graph.examples import tensors_in
from secateur.model.graph.trace import storage_of, tensor_names, where
from secateur.model.sharding import is_sharded
from secateur.types import KeyLayout

__all__ = ["Product", "ProductWatch", "multiplied"]


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """One product of some rows of a weight with inputs.

    Attributes:
        name: the weight.
        start: first of its rows; the weight counts as a matrix ``[rows, columns]``.
        stop: behind its last row.
        values: the inputs, ``[n, columns]``, or ``[N, C, *spatial]`` where there are windows.
        valid: bool ``[n]``, False at padding; None where all counts.
        windows: of a convolution.
    """

    name: str
    start: int
    stop: int
    values: Tensor
    valid: Tensor | None
    windows: Windows | None = None


@final
class ProductWatch(TorchDispatchMode):
    """Tells of every product of one of the weights, as the operator runs.

    Args:
        root: an unwrapped module.
        names: of the weights.
        tokens: bool ``[B, T]``, False at padding; None where all counts.
        tell: called with each product, before it is made.

    Attributes:
        unread: weight -> the first use of it that is no product.
        misread: weight -> the first product that does not take whole rows of it.
    """

    def __init__(
        self, root: nn.Module, names: frozenset[str], tokens: Tensor | None, tell: Callable[[Product], None]
    ) -> None:
        super().__init__()
        self._tell, self._tokens = tell, tokens
        self.unread: dict[str, str] = {}
        self.misread: dict[str, str] = {}
        self._weights = {name: tensor for name, tensor in tensor_names(root).items() if name in names}
        self._homes: dict[int, list[tuple[str, Tensor]]] = {}
        for name, tensor in self._weights.items():
            self._homes.setdefault(storage_of(tensor), []).append((name, tensor))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, as the tracer."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        owners = {name for tensor in tensors_in((args, given)) if (name := self._owner(tensor)) is not None}
        if owners:
            reader = _OPERATORS.get(func)
            if reader is not None:
                for product in reader(self, args, given):
                    owners.discard(product.name)
                    self._tell(product)
        out = func(*args, **given)
        for name in owners:
            self._follow(name, func, args, out)
        return out

    def _owner(self, tensor: Tensor) -> str | None:
        for name, weight in self._homes.get(storage_of(tensor), ()):
            offset = tensor.storage_offset() - weight.storage_offset()
            if 0 <= offset < max(1, weight.numel()):
                return name
        return None

    def _follow(self, name: str, func: Any, args: Any, out: Any) -> None:
        """A weight goes into an operator that is no product: a view stays itself, a plain copy stands for it."""
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(out, Tensor) and self._owner(out) == name:
            return
        if func in _COPIES and source is not None and isinstance(out, Tensor):
            weight = self._weights[name]
            if source.numel() == weight.numel() and source.stride() == weight.stride() == out.stride():
                self._homes[storage_of(out)] = [(name, out)]  # which keeps its memory from being another's
                return
        if any(self._owner(tensor) == name for tensor in tensors_in(out)):
            return
        (self.misread if func in _OPERATORS else self.unread).setdefault(name, f"{func} in {where()}")

    def rows(self, tensor: Tensor) -> tuple[str, int, int] | None:
        """Whose rows a matrix ``[rows, columns]`` holds, from where to where; None for anything else."""
        name = self._owner(tensor)
        if name is None:
            return None
        weight = next(home for owner, home in self._homes[storage_of(tensor)] if owner == name)
        columns = weight.shape[-1]
        first, odd = divmod(int(tensor.storage_offset() - weight.storage_offset()), columns)
        lies = tensor.stride(1) == 1 or columns == 1
        steps = tensor.stride(0) == columns or tensor.shape[0] == 1
        if not (weight.is_contiguous() and tensor.shape[1] == columns and odd == 0 and lies and steps):
            return None
        return name, first, first + tensor.shape[0]

    def whole(self, tensor: Tensor) -> str | None:
        """Whose weight a tensor is, all of it."""
        name = self._owner(tensor)
        return name if name is not None and tensor.numel() == self._weights[name].numel() else None

    def linear(self, weight: Tensor, values: Tensor, valid: Tensor | None = None) -> list[Product]:
        """Of a weight ``[rows, columns]`` with inputs ``[..., columns]``."""
        found = self.rows(weight)
        if found is None:
            return []
        if valid is None and self._tokens is not None:
            along = spread(self._tokens, values, (values.dim() - 1,))
            valid = None if along is None else along.expand(*values.shape[:-1], 1).reshape(-1)
        return [Product(*found, values.detach().reshape(-1, values.shape[-1]), valid)]

    def batched(self, left: Tensor, right: Tensor) -> list[Product]:
        """Inputs ``[B, n, columns]`` with weights ``[B, columns, rows]``, or the other way round."""
        if self._owner(right) is None:
            left, right = right.transpose(1, 2), left.transpose(1, 2)
        if self._owner(right) is None:
            return []
        if right.stride(0) == 0 or right.shape[0] == 1:
            return self.linear(right[0].t(), left)
        same = self._tokens is not None and left.shape[:2] == self._tokens.shape
        found: list[Product] = []
        for at in range(right.shape[0]):
            tokens = self._tokens[at] if same and self._tokens is not None else None
            found += self.linear(right[at].t(), left[at], tokens)
        return found


def multiplied(root: nn.Module, layout: Mapping[str, KeyLayout], what: str) -> dict[str, Tensor]:
    """The tensors of these names, whose products can be watched.

    Args:
        root: an unwrapped module.
        layout: of each weight, by name.
        what: is to be found out, for the message: "multiply-adds are counted".

    Raises:
        ValueError: for embeddings, biases and sharded weights.
    """
    found = {name: tensor for name, tensor in tensor_names(root).items() if name in layout}
    for name, key in layout.items():
        if key.kind == "embedding":
            raise ValueError(f"{name!r} is an embedding: it is looked up, not multiplied; exclude=[{name!r}]")
        if key.kind == "bias":
            raise ValueError(
                f"{name!r} is a bias, which multiplies no inputs, and {what}: leave biases out of targets="
            )
        if is_sharded(found[name]):
            raise ValueError(f"{name!r} is sharded; {what} before fully_shard")
    return found


def _matrices(watch: ProductWatch, left: Tensor, right: Tensor) -> list[Product]:
    return watch.linear(right.t(), left) or watch.linear(left, right.t())


def _convolution(watch: ProductWatch, args: Any, given: Mapping[str, Any]) -> list[Product]:
    x, weight, _, stride, padding, dilation, transposed, extra, groups = args
    name = watch.whole(weight)
    if name is None:
        return []
    spatial = weight.dim() - 2
    each = [tuple(value) * (spatial if len(value) == 1 else 1) for value in (stride, padding, dilation, extra)]
    windows = Windows(tuple(weight.shape[2:]), each[0], each[1], each[2], bool(transposed), each[3])
    x = x.detach() if x.dim() == weight.dim() else x.detach().unsqueeze(0)
    inputs, outputs = x.shape[1] // groups, weight.shape[1] if transposed else weight.shape[0] // groups
    return [
        Product(name, at * outputs, (at + 1) * outputs, x[:, at * inputs : (at + 1) * inputs], None, windows)
        for at in range(groups)
    ]


_ATEN = torch.ops.aten
_COPIES = frozenset({_ATEN._to_copy.default, _ATEN.clone.default, _ATEN.alias.default, _ATEN.detach.default})
_OPERATORS: Mapping[Any, Callable[[ProductWatch, Any, Mapping[str, Any]], list[Product]]] = {
    _ATEN.mm.default: lambda watch, args, _: _matrices(watch, args[0], args[1]),
    _ATEN.addmm.default: lambda watch, args, _: _matrices(watch, args[1], args[2]),
    _ATEN.mv.default: lambda watch, args, _: watch.linear(args[0], args[1]),
    _ATEN.addmv.default: lambda watch, args, _: watch.linear(args[1], args[2]),
    _ATEN.linear.default: lambda watch, args, _: watch.linear(args[1], args[0]),
    _ATEN.bmm.default: lambda watch, args, _: watch.batched(args[0], args[1]),
    _ATEN.baddbmm.default: lambda watch, args, _: watch.batched(args[1], args[2]),
    _ATEN.convolution.default: _convolution,
}
