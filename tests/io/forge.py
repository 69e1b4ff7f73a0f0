"""Files to break: made by the package, taken apart and signed again from the written format alone."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from secateur.io import Bundle
from secateur.types import KeyLayout

HEADER = dict[str, Any]

HOSTILE = [
    0,
    1,
    -1,
    7,
    255,
    10**6,
    2**31,
    2**53 + 1,
    2**63,
    10**30,
    1.5,
    float("nan"),
    True,
    None,
    "",
    "x",
    [],
    {},
    [0],
]
HOSTILE += [
    "rice",
    "gap8",
    "bits",
    "kept",
    "removed",
    "bias",
    "conv",
    [10**6, 10**6],
    [2**40],
    {"tied": "gaps"},
]


def sample_bundle(seed: int = 0) -> Bundle:
    """Every way of storing: whole, bits, many gaps, one gap, expanded from filters, tied, empty, 0-d."""
    generator = torch.Generator().manual_seed(seed)

    def sparse(shape: tuple[int, ...], density: float, dtype: torch.dtype = torch.float32) -> Tensor:
        values = torch.randn(shape, generator=generator).abs() + 0.5
        return (values * (torch.rand(shape, generator=generator) < density)).to(dtype)

    filters = torch.tensor([True, False, True, True])
    conv = sparse((4, 3, 2, 2), 1.1) * filters.reshape(4, 1, 1, 1)
    index = torch.zeros(200000, dtype=torch.bfloat16)
    index[150000] = 1.0
    tensors = {
        "conv": conv,
        "bits": sparse((30, 20), 0.5),
        "gaps": sparse((50, 40), 0.05, torch.float16),
        "index": index,
        "bias": torch.randn(20, generator=generator),
        "steps": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "flags": torch.tensor([True, False, True]),
    }
    tensors["tied"] = tensors["bits"]
    masks = {name: tensors[name] != 0 for name in ("bits", "gaps", "index", "tied")}
    masks["conv"] = filters
    layout = {"conv": KeyLayout((4, 3, 2, 2), "conv", 1, "first"), "gaps": KeyLayout((50, 40))}
    return Bundle(tensors, masks, "filter", layout, {"sparsity": 0.9, "schedule": "cubic"}, {"epoch": 3, "note": "ä"})


def parameter_masks(bundle: Bundle) -> dict[str, Tensor]:
    """The masks of ``sample_bundle`` in the parameters' shapes."""
    return {name: expand_filters({name: m}, bundle.layout, "filter")[name] for name, m in bundle.masks.items()}


def expand_filters(unit_masks: Any, layout: Any, spec: str) -> dict[str, Tensor]:
    """What the reader needs for coarse units, written for filters of 4-D tensors alone."""
    masks: dict[str, Tensor] = {}
    for name, mask in unit_masks.items():
        masks[name] = mask
        if name == "conv":
            shape = layout[name].shape
            if len(shape) != 4 or mask.shape != shape[:1]:
                raise ValueError(f"no filters: {mask.shape} of {shape}")
            masks[name] = mask.reshape(-1, 1, 1, 1).expand(shape).clone()
    return masks


def split(content: bytes) -> tuple[HEADER, bytes]:
    """Header as JSON, data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: HEADER, data: bytes) -> bytes:
    """The inverse of ``split``."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def record_of(header: HEADER) -> HEADER:
    """The record in the header."""
    return json.loads(header["__metadata__"]["secateur"])


def sign(header: HEADER, record: Any) -> HEADER:
    """The header with this record and a digest that fits, as only a hostile author would make it."""
    text = record if isinstance(record, str) else json.dumps(record)
    slots = {key: entry for key, entry in header.items() if key != "__metadata__"}
    table = json.dumps([[key, slots[key]["dtype"], slots[key]["shape"]] for key in sorted(slots)])
    digest = hashlib.sha256(f"{table}\n{text}".encode()).hexdigest()
    return {**header, "__metadata__": {"secateur": text, "secateur.sha256": digest}}


def edited(content: bytes, edit: Callable[[HEADER], None]) -> bytes:
    """The file with its record edited and signed again."""
    header, data = split(content)
    record = record_of(header)
    edit(record)
    return join(sign(header, record), data)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Equal dtype, shape and bits; nan equals nan, 0.0 is not -0.0."""
    if a.dtype is not b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))


def same_bundle(a: Bundle, b: Bundle) -> bool:
    """Everything in two bundles is equal."""
    return (
        list(a.tensors) == list(b.tensors)
        and all(same_bytes(a.tensors[name], b.tensors[name]) for name in a.tensors)
        and set(a.masks) == set(b.masks)
        and all(same_bytes(a.masks[name], b.masks[name]) for name in a.masks)
        and (a.unit, dict(a.layout), a.plan, a.record) == (b.unit, dict(b.layout), b.plan, b.record)
    )


def hurt(chance: random.Random, table: Any) -> None:
    """Put a hostile value anywhere, delete anything, or swap two values."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(table)
    (node, key), (other, at) = chance.choice(places), chance.choice(places)
    action = chance.random()
    if action < 0.15:
        del node[key]
    elif action < 0.3:
        node[key], other[at] = copy.deepcopy(other[at]), copy.deepcopy(node[key])
    elif action < 0.5 and isinstance(node[key], int):
        node[key] += chance.choice([-1, 1, 8, -node[key]])
    else:
        node[key] = copy.deepcopy(chance.choice(HOSTILE))
