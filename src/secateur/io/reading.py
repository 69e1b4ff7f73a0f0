"""One file -> bundle, trusting nothing."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from secateur.io.bundle import Bundle, Contents, Expand, TensorInfo
from secateur.io.container import Header, as_integers, parse_header, read_slot
from secateur.io.positions import decode
from secateur.io.schema import Masked, Schema, Tied, mask_key, parse_schema, values_key

__all__ = ["read", "read_contents"]

_ALWAYS_ALLOWED = 1 << 30
_EXPANSION = 1000


def read_contents(path: str | os.PathLike[str]) -> Contents:
    """The table of contents of a file; no tensor is read.

    Args:
        path: a file made by ``write``.

    Returns:
        Names, dtypes, shapes, kept counts, bytes, plan and record.

    Raises:
        ValueError: if it is not a whole, unaltered file of this format.

    Example:
        >>> import tempfile
        >>> from secateur.io import write
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(f"{folder}/a.safetensors", Bundle({"w": torch.ones(2, 3)}))
        ...     read_contents(f"{folder}/a.safetensors").tensors["w"].shape
        (2, 3)
    """
    with _opened(path) as file:
        header = parse_header(file)
        return _contents(header, parse_schema(header), os.fstat(file.fileno()).st_size)


def read(
    path: str | os.PathLike[str],
    *,
    expand: Expand | None = None,
    check: Callable[[Contents], None] | None = None,
    max_bytes: int | None = None,
) -> Bundle:
    """Read a file written by ``write``; nothing in it is ever executed.

    Every number in the header is checked against the file's size before memory is taken for it, every
    tensor against its checksum. Memory: the stored bytes, the dense tensors, their masks, and while one
    mask is decoded at most 64 MiB.

    Args:
        path: the file.
        expand: makes parameter masks from unit masks; needed where units are coarser than weights.
        check: called with the contents before any tensor is read; what it raises ends the reading.
        max_bytes: most bytes that the dense tensors and masks may take; None: 1 GiB, or 1000 times the
            file where that is more, so that a small file cannot claim a huge memory.

    Returns:
        The bundle, tensors dense on the CPU.

    Raises:
        ValueError: naming the file and what is wrong: foreign, truncated, altered, oversized, of a
            newer version, or more than ``max_bytes``.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> from secateur.io import write
        >>> weight = torch.tensor([0.0, 2.0, 0.0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write(f"{folder}/a.safetensors", Bundle({"w": weight}, {"w": weight != 0}, "weight"))
        ...     read(f"{folder}/a.safetensors").tensors["w"]
        tensor([0., 2., 0.])
    """
    with _opened(path) as file:
        header = parse_header(file)
        schema = parse_schema(header)
        file_bytes = os.fstat(file.fileno()).st_size
        contents = _contents(header, schema, file_bytes)
        _check_limit(contents, schema, max_bytes)
        if check is not None:
            check(contents)
        return _read_tensors(file, header, schema, expand)


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The open file; whatever is wrong with its contents is said with its name."""
    name = os.fspath(path)
    if not Path(name).exists():
        raise FileNotFoundError(f"{name}: there is no such file")
    if not Path(name).is_file():
        raise ValueError(f"{name} is a folder or a device, not a file")
    with Path(name).open("rb") as file:
        try:
            yield file
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error


def _contents(header: Header, schema: Schema, file_bytes: int) -> Contents:
    slots = header.slots
    tensors: dict[str, TensorInfo] = {}
    ties: dict[str, Tied] = {}
    masks_of: dict[str, list[str]] = {name: [] for name in schema.tensors}
    for key in schema.units:  # the mask of a group counts to its first member
        masks_of[schema.layout[key].members[0].name if schema.grouped else key].append(mask_key(key))
    for name, entry in schema.tensors.items():
        if isinstance(entry, Tied):
            ties[name] = entry
        elif isinstance(entry, Masked):
            values, own = slots[values_key(name)], masks_of[name]
            stored = values.end - values.begin + sum(slots[mask].end - slots[mask].begin for mask in own)
            tensors[name] = TensorInfo(values.dtype, entry.shape, entry.kept, stored)
        else:
            tensors[name] = TensorInfo(slots[name].dtype, slots[name].shape, None, slots[name].end - slots[name].begin)
    dense = sum(math.prod(info.shape) * info.dtype.itemsize for info in tensors.values())
    for name, tie in ties.items():
        owner = tensors[tie.to]
        tensors[name] = TensorInfo(owner.dtype, owner.shape, owner.kept if tie.masked else None, 0, tie.to)
    ordered = {name: tensors[name] for name in schema.tensors}
    return Contents(file_bytes, dense, ordered, schema.unit, schema.layout, schema.plan, schema.record)


def _check_limit(contents: Contents, schema: Schema, max_bytes: int | None) -> None:
    limit = max(_ALWAYS_ALLOWED, _EXPANSION * contents.file_bytes) if max_bytes is None else max_bytes
    masks = sum(code.numel for code in schema.units.values())
    masks += sum(math.prod(entry.shape) for entry in schema.tensors.values() if isinstance(entry, Masked))
    if contents.dense_bytes + masks > limit:
        elements = sum(math.prod(info.shape) for info in contents.tensors.values() if info.tied_to is None)
        raise ValueError(
            f"declares {elements} elements, {contents.dense_bytes + masks} bytes with their masks, more than the "
            f"limit of {limit} bytes for this file of {contents.file_bytes} bytes; if you trust it, raise max_bytes="
        )


def _read_tensors(file: BinaryIO, header: Header, schema: Schema, expand: Expand | None) -> Bundle:
    units: dict[str, Tensor] = {}
    for name, code in schema.units.items():
        stored = read_slot(file, header, mask_key(name), _crc(schema, mask_key(name)))
        try:
            units[name] = decode(code, stored)
        except ValueError as error:
            raise ValueError(f"tensor {name}: {error}") from None
    masks = _expanded(schema, units, expand)
    tensors: dict[str, Tensor] = {}
    for name, entry in schema.tensors.items():
        if isinstance(entry, Masked):
            values = read_slot(file, header, values_key(name), _crc(schema, values_key(name)))
            tensors[name] = _scatter(values, masks.pop(name))
        elif entry is None:
            tensors[name] = read_slot(file, header, name, _crc(schema, name))
    ties = {name: entry for name, entry in schema.tensors.items() if isinstance(entry, Tied)}
    for name, tie in ties.items():
        tensors[name] = tensors[tie.to]
        if tie.masked:
            units[name] = units[tie.to]
    ordered = {name: tensors[name] for name in schema.tensors}
    return Bundle(ordered, units, schema.unit, schema.layout, schema.plan, schema.record)


def _crc(schema: Schema, key: str) -> int:
    value = schema.crc32[key]
    if not isinstance(value, int):
        raise ValueError(f"altered: the checksum of tensor {key} is {value!r}")
    return value


def _expanded(schema: Schema, units: dict[str, Tensor], expand: Expand | None) -> dict[str, Tensor]:
    masks = {} if schema.grouped else dict(units)
    coarse = {name: entry for name, entry in schema.tensors.items() if isinstance(entry, Masked) and entry.expand}
    if not coarse:
        return masks
    if expand is None:
        raise ValueError(
            f"its masks are by {schema.unit}, coarser than weights; read it with secateur.load, or give expand="
        )
    assert schema.unit is not None, "parse_schema refuses masks without a unit"
    keys = list(units if schema.grouped else coarse)
    masks |= expand({key: units[key] for key in keys}, {key: schema.layout[key] for key in keys}, schema.unit)
    for name, entry in coarse.items():
        mask = masks[name]
        if mask.dtype is not torch.bool or tuple(mask.shape) != entry.shape or int(mask.sum()) != entry.kept:
            raise ValueError(
                f"altered: the unit mask of {name} does not keep the {entry.kept} elements that are stored"
            )
    return masks


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Dense tensor with the values where the mask is True, as bytes: every bit pattern survives."""
    raw = as_integers(values)
    dense = torch.zeros(mask.shape, dtype=raw.dtype)
    dense[mask] = raw
    return dense.view(values.dtype)
