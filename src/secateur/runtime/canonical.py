"""The form that files keep: blocked CSR in plain tensors, independent of kernels and machines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FORMAT_VERSION", "BlockedCsr"]

FORMAT_VERSION = 1


@final
@dataclass(frozen=True, eq=False)
class BlockedCsr:
    """Blocks of ``unit`` rows by one column, block row after block row.

    ``W[unit * g + r, columns[i]] = values[i, r]`` for ``starts[g] <= i < starts[g + 1]``; all else was removed.

    Attributes:
        shape: of the weight, ``(M, K)``.
        unit: rows of a block; 1 is plain CSR.
        starts: int64 ``[ceil(M / unit) + 1]``.
        columns: int32 ``[blocks]``, ascending inside a block row.
        values: float32 ``[blocks, unit]``; 0 in rows beyond ``M``.

    Example:
        >>> weight = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
        >>> form = BlockedCsr.from_dense(weight, weight != 0)
        >>> form.starts.tolist(), form.columns.tolist()
        ([0, 2, 3], [0, 2, 2])
        >>> bool((form.to_dense()[0] == weight).all())
        True
    """

    shape: tuple[int, int]
    unit: int
    starts: Tensor
    columns: Tensor
    values: Tensor

    def __post_init__(self) -> None:
        rows, _ = self.shape
        groups = -(-rows // self.unit) if self.unit > 0 else 0
        wanted = {
            "starts": (torch.int64, (groups + 1,)),
            "columns": (torch.int32, (self.columns.numel(),)),
            "values": (torch.float32, (self.columns.numel(), self.unit)),
        }
        for name, (dtype, shape) in wanted.items():
            given: Tensor = getattr(self, name)
            if given.dtype != dtype or tuple(given.shape) != shape:
                raise ValueError(
                    f"{name}: expected {dtype} of shape {shape} for a weight of shape {self.shape} in blocks of "
                    f"{self.unit} rows, got {given.dtype} of shape {tuple(given.shape)}"
                )
        self._check_places()

    def _check_places(self) -> None:
        _, cols = self.shape
        if len(self.columns) and not 0 <= int(self.columns.min()) <= int(self.columns.max()) < cols:
            raise ValueError(f"columns: expected numbers from 0 to {cols - 1}; the file is damaged")
        ends = int(self.starts[0]), int(self.starts[-1])
        if ends != (0, len(self.columns)) or bool((self.starts.diff() < 0).any()):
            raise ValueError(f"starts: expected to rise from 0 to {len(self.columns)}; the file is damaged")

    @classmethod
    def from_dense(cls, weight: Tensor, mask: Tensor, unit: int = 1) -> BlockedCsr:
        """Take the kept weights out of a dense matrix.

        Args:
            weight: float32 ``[M, K]``.
            mask: bool ``[M, K]``, True is kept; made of whole blocks if ``unit > 1``.
            unit: rows of a block.

        Returns:
            The canonical form.

        Raises:
            ValueError: the mask cuts blocks.
        """
        check_blocks(mask, unit)
        rows, cols = weight.shape
        missing = -rows % unit
        grouped = (rows + missing) // unit, unit, cols
        blocks = F.pad(mask, (0, 0, 0, missing)).reshape(grouped).any(1)
        by_column = F.pad(weight.detach(), (0, 0, 0, missing)).reshape(grouped).transpose(1, 2)
        starts = torch.zeros(len(blocks) + 1, dtype=torch.int64)
        torch.cumsum(blocks.sum(1), 0, out=starts[1:])
        return cls((rows, cols), unit, starts, blocks.nonzero()[:, 1].int(), by_column[blocks])

    def to_dense(self) -> tuple[Tensor, Tensor]:
        """The weight, with 0 where it was removed, and the mask."""
        return self.weight(), self._spread(torch.bool, True)

    def weight(self) -> Tensor:
        """The weight alone."""
        return self._spread(torch.float32, self.values)

    def _spread(self, dtype: torch.dtype, values: Tensor | bool) -> Tensor:
        rows, cols = self.shape
        groups = len(self.starts) - 1
        group = torch.repeat_interleave(torch.arange(groups), self.starts.diff())
        spread = torch.zeros(groups, self.unit, cols, dtype=dtype)
        spread[group, :, self.columns.long()] = values
        return spread.view(groups * self.unit, cols)[:rows]

    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors for a file, the format's version among them; `from_tensors` takes them back."""
        header = torch.tensor([FORMAT_VERSION, *self.shape, self.unit], dtype=torch.int64)
        return {"header": header, "starts": self.starts, "columns": self.columns, "values": self.values}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> BlockedCsr:
        """The inverse of `tensors`.

        Raises:
            ValueError: a tensor is missing or does not fit, or another version wrote them.
        """
        missing = {"header", "starts", "columns", "values"} - set(tensors)
        if missing:
            raise ValueError(f"tensors of a sparse weight: {sorted(missing)} are missing, got {sorted(tensors)}")
        header = tensors["header"].tolist()
        if len(header) != 4 or header[0] != FORMAT_VERSION:
            raise ValueError(
                f"header: expected 4 numbers, the first of them version {FORMAT_VERSION}, got {header}; "
                "another version of secateur wrote this"
            )
        return cls((header[1], header[2]), header[3], tensors["starts"], tensors["columns"], tensors["values"])


def check_blocks(mask: Tensor, unit: int) -> None:
    """Refuse a mask that keeps a part of a block of ``unit`` rows."""
    if unit < 1:
        raise ValueError(f"unit={unit}: expected 1 or more rows per block")
    rows, cols = mask.shape
    whole = mask[: rows - rows % unit].reshape(rows // unit, unit, cols)
    cut = (whole != whole[:, :1]).any(1)
    rest = mask[rows - rows % unit :]
    if len(rest) and bool((rest != rest[:1]).any()):
        place = (rows // unit, int((rest != rest[:1]).any(0).nonzero()[0]))
    elif bool(cut.any()):
        place = tuple(cut.nonzero()[0].tolist())
    else:
        return
    raise ValueError(
        f"mask of shape {tuple(mask.shape)} is not made of blocks of {unit} rows by 1 column: it cuts the one in rows "
        f"{place[0] * unit} to {min(place[0] * unit + unit, rows) - 1}, column {place[1]}; try an unstructured layout"
    )
