"""All masks of a model, applied by one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, final

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from secateur.native.bits import check_bits, unpack_bits
from secateur.native.gates import EXCHANGE
from secateur.native.loading import PLAIN, core, never_traced

__all__ = ["MaskSet"]

_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
_Rest: TypeAlias = list[tuple[int, Tensor]]
"""What the core cannot take, with its place."""


@final
class MaskSet:
    """The bit masks of several tensors, applied together by one native call over a table of addresses.

    ``tensor.flat[i] = +0 where bit i is 0``, by selection: a removed NaN or infinity becomes 0 too, and what is kept
    stays bit by bit. Memory that is clean already is only read. The version counters of the tensors are advanced, so
    that autograd notices the change as it does for torch's own in-place operators (0.07 us per tensor).

    On the CPU, contiguous tensors of float16, bfloat16, float32 and float64 take the core. Other devices, strides
    (``channels_last``) and types take ``masked_fill_``, which keeps one byte per element in a cache.

    Args:
        bits: per tensor, uint8 ``[ceil(n / 8)]``. They must not be written to afterwards.
        shapes: per tensor, the shape it must have.

    Raises:
        ValueError: bits and shapes do not fit each other.

    Example:
        >>> from secateur.native import pack_bits
        >>> masks = MaskSet([pack_bits(torch.tensor([[True, False], [False, True]]))], [(2, 2)])
        >>> weight = torch.tensor([[1.0, 2.0], [float("nan"), 4.0]])
        >>> masks.apply([weight])
        >>> weight.tolist()
        [[1.0, 0.0], [0.0, 4.0]]
    """

    __slots__ = ("_bits", "_drop", "_numels", "_shapes", "_table")

    def __init__(self, bits: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> None:
        if len(bits) != len(shapes):
            raise ValueError(f"{len(bits)} bits and {len(shapes)} shapes: expected one shape per tensor of bits")
        self._shapes = tuple(torch.Size(shape) for shape in shapes)
        self._numels = [shape.numel() for shape in self._shapes]
        for index, (packed, numel) in enumerate(zip(bits, self._numels, strict=True)):
            check_bits(packed, numel, f"bits[{index}]")
        self._bits = [packed.detach().cpu().contiguous() for packed in bits]
        self._drop: dict[tuple[int, torch.device], Tensor] = {}
        self._table: Any = None
        if core is not None:
            addresses = [packed.data_ptr() for packed in self._bits]
            self._table = core.MaskTable(core.active, addresses, [list(shape) for shape in self._shapes])

    def __len__(self) -> int:
        return len(self._bits)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskSet, (self._bits, [tuple(shape) for shape in self._shapes])

    def apply(self, tensors: Sequence[Tensor | None]) -> None:
        """Zero in place what the masks remove.

        Args:
            tensors: one per mask, in the same order and of the given shapes; None leaves a mask out (a parameter
                without gradient). Weights and gradients are treated alike.

        Raises:
            ValueError: another number of tensors, another shape, or a sparse tensor. Nothing was changed then.
        """
        if len(tensors) != len(self._shapes):
            raise ValueError(f"tensors: got {len(tensors)}, expected one for each of the {len(self._shapes)} masks")
        if self._table is None:
            rest = [(index, tensor) for index, tensor in enumerate(tensors) if tensor is not None]
            self._check_all(rest)
        elif core is None or EXCHANGE is None:
            rest = self._apply_addresses(tensors)
        else:
            rest = core.apply_masks(self._table, list(tensors), EXCHANGE, PLAIN, self._check_all, increment_version)
        if rest:
            self._apply_rest(rest)

    @never_traced
    def _apply_addresses(self, tensors: Sequence[Tensor | None]) -> _Rest:
        """As the core does it, in Python: for a torch without DLPack's exchange table."""
        dtype = next((tensor.dtype for tensor in tensors if tensor is not None), torch.float32)
        try:
            addresses, touched, rest = self._gather(tensors, dtype)
        except RuntimeError:  # a sparse layout has no contiguity to ask for
            self._check_all(enumerate(tensors))
            raise
        self._check_all(rest)
        if touched:
            self._table.apply_addresses(addresses, dtype.itemsize)
            increment_version(touched)
        return rest

    def _gather(self, tensors: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[list[int], list[Tensor], _Rest]:
        """Addresses for the core (0: not for it), the tensors behind them, and the tensors that torch must mask."""
        addresses: list[int] = []
        touched: list[Tensor] = []
        rest: list[tuple[int, Tensor]] = []
        for index, tensor in enumerate(tensors):
            if tensor is None:
                addresses.append(0)
            elif (
                type(tensor) in PLAIN
                and tensor.dtype is dtype
                and dtype in _DTYPES
                and tensor.is_cpu
                and tensor.shape == self._shapes[index]
                and tensor.is_contiguous()
            ):
                addresses.append(tensor.data_ptr())
                touched.append(tensor)
            else:
                addresses.append(0)
                rest.append((index, tensor))
        return addresses, touched, rest

    def _apply_rest(self, tensors: _Rest) -> None:
        with torch.no_grad():
            for index, tensor in tensors:
                tensor.masked_fill_(self._dropped(index, tensor.device), 0)

    def _dropped(self, index: int, device: torch.device) -> Tensor:
        """The mask as `masked_fill_` wants it: True where a weight goes."""
        key = (index, device)
        if key not in self._drop:
            kept = unpack_bits(self._bits[index], self._numels[index])
            self._drop[key] = kept.logical_not_().view(self._shapes[index]).to(device)
        return self._drop[key]

    def _check_all(self, tensors: Iterable[tuple[int, Tensor | None]]) -> None:
        for index, tensor in tensors:
            if tensor is None:
                continue
            if tensor.layout != torch.strided:
                raise ValueError(f"tensors[{index}]: expected a dense tensor, got {tensor.layout}; try its to_dense()")
            if tensor.shape != self._shapes[index]:
                raise ValueError(
                    f"tensors[{index}]: got {tensor.dtype} of shape {tuple(tensor.shape)}, "
                    f"its mask is for shape {tuple(self._shapes[index])}; give the tensors in the order of the masks"
                )
