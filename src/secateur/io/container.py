"""The safetensors container: eight bytes of length, a JSON header, the tensors' bytes.

Written out here, since the library's writer renames a temporary file of its own (a kill leaves
it), and its reader maps the file, so that what was checked may change before it is used. A file
is opened once, every number in its header is checked against the file's size, and nothing is
allocated for a tensor before that.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

__all__ = [
    "DTYPES",
    "Header",
    "Slot",
    "as_integers",
    "assign_slots",
    "crc32",
    "is_count",
    "parse_header",
    "parse_shape",
    "read_slot",
    "write_file",
]

_MAX_HEADER_BYTES = 100_000_000
"""The same limit as the safetensors library."""

_MAX_ELEMENTS = 1 << 62

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}

DTYPES: dict[str, torch.dtype] = {code: getattr(torch, name) for code, name in _NAMES.items() if hasattr(torch, name)}
"""Code in the header -> dtype. float8_e8m0fnu is absent before torch 2.7."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}

_INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a tensor lies: its dtype, shape, and byte range ``[begin, end)`` in the data section."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def code(self) -> str:
        """The dtype as the header writes it."""
        return _CODES[self.dtype]


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: the slots tile the data section without holes."""

    metadata: dict[str, str]
    slots: dict[str, Slot]
    data_start: int


def assign_slots(tensors: Mapping[str, Tensor]) -> dict[str, Slot]:
    """Slots for the tensors, wide dtypes first, so that every tensor is aligned.

    Args:
        tensors: key -> tensor of any device and stride.

    Returns:
        Key -> slot, in the order of the data section.

    Raises:
        ValueError: for a dtype that safetensors has no code for.
    """
    slots: dict[str, Slot] = {}
    begin = 0
    for key in sorted(tensors, key=lambda key: (-tensors[key].element_size(), key)):
        tensor = tensors[key]
        if tensor.dtype not in _CODES:
            raise ValueError(
                f"tensor {key}: dtype {tensor.dtype} cannot be stored; convert it to one of {sorted(_NAMES.values())}"
            )
        end = begin + tensor.numel() * tensor.element_size()
        slots[key] = Slot(tensor.dtype, tuple(tensor.shape), begin, end)
        begin = end
    return slots


def _raw_bytes(tensor: Tensor) -> memoryview:
    """The elements of a contiguous CPU tensor as bytes, without a copy."""
    assert sys.byteorder == "little", "the file format is little-endian"
    if tensor.numel() == 0:
        return memoryview(b"")
    return memoryview(tensor.detach().reshape(-1).view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]


def as_integers(tensor: Tensor) -> Tensor:
    """The same bytes as integers, so that selection works for every dtype and every bit pattern."""
    return tensor.view(_INTEGER[tensor.element_size()])


def crc32(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(_raw_bytes(tensor))


def write_file(
    file: BinaryIO, tensors: Mapping[str, Tensor], slots: Mapping[str, Slot], metadata: Mapping[str, str]
) -> int:
    """Write header and data.

    Args:
        file: open for writing, at its start.
        tensors: contiguous CPU tensors.
        slots: from ``assign_slots``.
        metadata: strings for the header.

    Returns:
        Bytes written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    for key, slot in slots.items():
        header[key] = {"dtype": slot.code, "shape": list(slot.shape), "data_offsets": [slot.begin, slot.end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MAX_HEADER_BYTES:
        raise ValueError(
            f"the record takes {len(text)} bytes, more than the {_MAX_HEADER_BYTES} a safetensors header may have"
        )
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for key in slots:
        file.write(_raw_bytes(tensors[key]))
    return 8 + len(text) + max((slot.end for slot in slots.values()), default=0)


def parse_header(file: BinaryIO) -> Header:
    """Read and check the header of an open file.

    Args:
        file: open for reading, at its start.

    Returns:
        The header; every slot lies inside the file.

    Raises:
        ValueError: for anything that is not a whole safetensors file.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    _refuse_other_formats(start)
    length = int.from_bytes(start, "little")
    if length > _MAX_HEADER_BYTES:
        raise ValueError(f"not a safetensors file, or altered: its first 8 bytes announce a header of {length} bytes")
    if 8 + length > size:
        raise ValueError(f"truncated: the header takes {8 + length} bytes, the file has {size}")
    table = _parse_json(file.read(length))
    if not isinstance(table, dict):
        raise ValueError("not a safetensors file: its header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("altered: the header's __metadata__ is not a table of strings")
    slots = {key: _parse_slot(key, entry) for key, entry in table.items()}
    _check_tiling(slots, size - 8 - length, 8 + length)
    return Header(metadata, slots, 8 + length)


def read_slot(file: BinaryIO, header: Header, key: str, expected_crc: int) -> Tensor:
    """Read one tensor into fresh memory.

    Raises:
        ValueError: if the bytes have changed since they were written, or are no valid booleans.
    """
    slot = header.slots[key]
    raw = torch.empty(slot.end - slot.begin, dtype=torch.uint8)
    file.seek(header.data_start + slot.begin)
    view = _raw_bytes(raw)
    if len(view) and file.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise ValueError(f"truncated while it was read: tensor {key} is cut off")
    if zlib.crc32(view) != expected_crc:
        raise ValueError(
            f"altered: the bytes of tensor {key} do not match their checksum; fetch or save the file again"
        )
    if slot.dtype is torch.bool and bool((raw > 1).any()):
        raise ValueError(f"tensor {key}: a boolean byte is neither 0 nor 1")
    return raw.view(slot.dtype).reshape(slot.shape)


def _refuse_other_formats(start: bytes) -> None:
    if len(start) < 8:
        raise ValueError(f"truncated: a safetensors file has at least 8 bytes, this one has {len(start)}")
    if start.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise ValueError(
            "not a secateur file: this is a pickle made by torch.save; load it with torch.load(weights_only=True)"
        )


def _parse_json(text: bytes) -> Any:
    try:
        return json.loads(text.decode(), object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("altered: the header's JSON is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"not a safetensors file, or altered: the header is no valid JSON ({error})") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} stands twice")
        result[key] = value
    return result


def is_count(value: object) -> bool:
    """A JSON integer from 0 on; ``true`` is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def parse_shape(value: object, what: str) -> tuple[int, ...]:
    """A JSON list as a shape that torch can take: a zero beside a huge size is no tensor either.

    Raises:
        ValueError: if it is no list of counts, or beyond any memory.
    """
    if not isinstance(value, list) or len(value) > 64 or not all(is_count(size) for size in value):
        raise ValueError(f"altered: {what} has the shape {value!r}")
    if math.prod(max(size, 1) for size in value) > _MAX_ELEMENTS:
        raise ValueError(f"{what} declares the shape {value}, more elements than any machine holds")
    return tuple(value)


def _parse_slot(key: str, entry: object) -> Slot:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"altered: the header entry of tensor {key} is not {{dtype, shape, data_offsets}}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"tensor {key}: unknown dtype {code!r}; known are {sorted(DTYPES)}")
    shape = parse_shape(shape, f"tensor {key}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(is_count(offset) for offset in offsets):
        raise ValueError(f"altered: tensor {key} has the data offsets {offsets!r}")
    begin, end = offsets
    needed = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != needed:
        raise ValueError(f"altered: tensor {key} of shape {shape} needs {needed} bytes, its offsets give {end - begin}")
    return Slot(DTYPES[code], shape, begin, end)


def _check_tiling(slots: Mapping[str, Slot], data_bytes: int, data_start: int) -> None:
    position = 0
    for key, slot in sorted(slots.items(), key=lambda item: (item[1].begin, item[1].end)):
        if slot.begin != position:
            raise ValueError(f"altered: tensor {key} begins at byte {slot.begin} of the data, {position} was expected")
        position = slot.end
    if position > data_bytes:
        raise ValueError(
            f"truncated: the header announces {data_start + position} bytes, the file has {data_start + data_bytes}"
        )
    if position < data_bytes:
        raise ValueError(
            f"oversized: the header announces {data_start + position} bytes, the file has {data_start + data_bytes}"
        )
