"""What a model would cost with fewer units, from shapes alone: exact, and cheap enough to search with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.measure.macs import Use, count_uses
from secateur.model.graph.cutting import Keep
from secateur.model.graph.group import Group
from secateur.model.graph.trace import tensor_names
from secateur.model.names import aliases, clean_name

__all__ = ["Cost", "CostModel", "file_bytes"]

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
_Places: TypeAlias = dict[tuple[str, int], NDArray[np.bool_]]

_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Cost:
    """What a model takes.

    Attributes:
        params: elements of all parameters, tied ones once.
        macs: multiply-adds of one sample, by ``secateur.measure.CONVENTION``; None where they were not counted.
        bytes: of its state dict as a plain safetensors file.
    """

    params: int
    macs: int | None
    bytes: int


@final
class CostModel:
    """Cost of a model as a function of the units that stay; the model runs once, to see how often weights are used.

    A weight that is used ``u`` times by a sample costs ``u * numel`` multiply-adds, and ``u`` does not change when
    channels go, so the cost of a removal is a matter of shapes.

    Args:
        root: an unwrapped module.
        groups: its coupled groups.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments; None: count no
            multiply-adds.

    Attributes:
        uncounted: modules whose multiply-adds no rule knows.

    Example:
        >>> from secateur.model.graph.groups import find_groups
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
        >>> costs = CostModel(net, find_groups(net, x), x)
        >>> keep = torch.arange(8) < 3
        >>> costs({}).macs, costs({"0.weight": keep}).macs, costs({"0.weight": keep}).params
        (48, 18, 23)
    """

    def __init__(self, root: nn.Module, groups: Mapping[str, Group], inputs: Any | None) -> None:
        self._tensors = tensor_names(root)
        self._shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        self._members = {
            name: [(member.name, member.dim, np.array(member.owner)) for member in group.members]
            for name, group in groups.items()
        }
        self._stored = _stored(root, self._tensors)
        first = {name: names[0] for names in aliases(root).values() for name in names}
        uses = None if inputs is None else count_uses(root, inputs)
        self.uncounted = () if uses is None else uses.uncounted
        self._products = {} if uses is None else dict(uses.products)
        self._uses: dict[str, list[tuple[str, Use]]] | None = None
        self._fixed = 0
        if uses is None:
            return
        self._uses = {}
        for module, found in uses.weights.items():
            for use in found:
                tensor = self._tensor_of(root, module, use.parameter, first)
                if tensor is None:  # made by a function of several tensors: it counts as it is now
                    self._fixed += use.times * _weight_size(root, module, use)
                else:
                    self._uses.setdefault(module, []).append((tensor, use))

    def __call__(self, keep: Keep) -> Cost:
        """The cost of what ``keep`` leaves: group -> bool mask of its units; groups that are not named stay whole."""
        gone = self._gone(keep)
        shapes = self.shapes(keep, gone)
        params = sum(_size(shapes[name]) for name, tensor in self._tensors.items() if isinstance(tensor, nn.Parameter))
        macs = None if self._uses is None else self._macs(self._uses, shapes, gone)
        return Cost(params, macs, file_bytes((name, shapes[name], self._tensors[name].dtype) for name in self._stored))

    def shapes(self, keep: Keep, gone: _Places | None = None) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter and buffer after the removal."""
        lost = self._gone(keep) if gone is None else gone
        sizes = {axis: int(mask.sum()) for axis, mask in lost.items()}
        return {
            name: tuple(size - sizes.get((name, dim), 0) for dim, size in enumerate(shape))
            for name, shape in self._shapes.items()
        }

    def macs_by_tensor(self, keep: Keep) -> dict[str, int]:
        """Multiply-adds of one sample per weight."""
        gone = self._gone(keep)
        shapes, found = self.shapes(keep, gone), dict[str, int]()
        for tensor, use in (pair for pairs in (self._uses or {}).values() for pair in pairs):
            found[tensor] = found.get(tensor, 0) + use.times * self._elements(tensor, use, shapes, gone)
        return found

    def parameters_by_tensor(self, keep: Keep) -> dict[str, int]:
        """Elements of each parameter."""
        shapes = self.shapes(keep)
        return {n: _size(shapes[n]) for n, tensor in self._tensors.items() if isinstance(tensor, nn.Parameter)}

    def _gone(self, keep: Keep) -> _Places:
        """Positions of each axis that go."""
        gone: _Places = {}
        for name, mask in keep.items():
            lost = ~mask.cpu().numpy()
            if not lost.any():
                continue
            for tensor, dim, owner in self._members[name]:
                places = lost[np.maximum(owner, 0)] & (owner >= 0)
                gone[tensor, dim] = gone[tensor, dim] | places if (tensor, dim) in gone else places
        return gone

    def _macs(self, uses: Mapping[str, list[tuple[str, Use]]], shapes: Shapes, gone: _Places) -> int:
        total = self._fixed + sum(
            use.times * self._elements(tensor, use, shapes, gone) for pairs in uses.values() for tensor, use in pairs
        )
        for module, products in self._products.items():  # attention: as wide as what its queries keep
            tensor, use = uses[module][0]
            start, stop = use.rows or (0, self._shapes[tensor][0])
            total += products * self._rows(tensor, (start, stop), gone) // (stop - start)
        return total

    def _elements(self, tensor: str, use: Use, shapes: Shapes, gone: _Places) -> int:
        if use.rows is None:
            return _size(shapes[tensor])
        return self._rows(tensor, use.rows, gone) * _size(shapes[tensor][1:])

    def _rows(self, tensor: str, rows: tuple[int, int], gone: _Places) -> int:
        lost = gone.get((tensor, 0))
        return rows[1] - rows[0] - (0 if lost is None else int(lost[slice(*rows)].sum()))

    def _tensor_of(self, root: nn.Module, module: str, parameter: str, first: Mapping[str, str]) -> str | None:
        """The tensor whose shape is the weight's: itself, or of a parametrised weight the one it is computed from."""
        if parameter in first:
            return first[parameter]
        owner = root.get_submodule(module)
        leaf = parameter.rpartition(".")[2]
        shape = tuple(getattr(owner, leaf).shape)
        prefix = f"{module}." if module else ""
        sources = (f"{prefix}parametrizations.{leaf}.", f"{prefix}{leaf}_")
        return next((n for n, s in self._shapes.items() if s == shape and n.startswith(sources)), None)


def file_bytes(tensors: Iterable[tuple[str, tuple[int, ...], torch.dtype]]) -> int:
    """Bytes of a safetensors file of these tensors: 8, the header padded to a multiple of 8, the values.

    Args:
        tensors: name, shape, dtype.

    Returns:
        Bytes on disk.

    Example:
        >>> import safetensors.torch
        >>> file_bytes([("a", (2, 3), torch.float32)]) == len(safetensors.torch.save({"a": torch.zeros(2, 3)}))
        True
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, shape, dtype in sorted(tensors, key=lambda entry: (-entry[2].itemsize, entry[0])):
        size = _size(shape) * dtype.itemsize
        header[name] = {
            "dtype": _CODES.get(dtype, "F8_E4M3"),
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-text // 8) * 8 + offset


def _stored(root: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """What the state dict holds, each tensor once, under its first name."""
    first = {id(tensor): name for name, tensor in tensors.items()}
    state = {clean_name(name): value for name, value in root.state_dict(keep_vars=True).items()}
    found = {id(value) for value in state.values() if isinstance(value, Tensor)}  # pyright: ignore[reportUnnecessaryIsInstance]
    return [name for key, name in first.items() if key in found]


def _weight_size(root: nn.Module, module: str, use: Use) -> int:
    weight: Tensor = getattr(root.get_submodule(module), use.parameter.rpartition(".")[2])
    part = weight if use.rows is None else weight[slice(*use.rows)]
    return part.numel()


def _size(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
