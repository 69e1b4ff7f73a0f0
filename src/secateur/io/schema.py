"""The JSON record in the header: what is in it, and that it is what it says.

``__metadata__`` of the safetensors header holds the record as ``secateur``, and as
``secateur.sha256`` the digest of that text together with every stored tensor's key, dtype and
shape. The record holds the CRC-32 of every stored tensor, so that nothing in a file can change
unseen. A digest is no signature: it tells damage, not malice; malice meets the checks below.

    format   1, or 2 where masks are of coupled groups
    tensors  name -> null (stored whole under its name)
                   | {shape, kept, expand}: values under "name#values"; expand: the mask follows
                     from a coarser unit mask
                   | {tied, masked}: the same tensor as another name
    units    key -> {shape, coding, side, count}: unit mask under "key#mask"; the key is a tensor's name, or a
             group's, whose layout then lists the tensors that it masks
    unit, layout, plan, record, crc32
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from secateur.io.container import Header, Slot, is_count, parse_shape
from secateur.io.members import check_groups, member_json, parse_members
from secateur.io.positions import PositionCode, Side, is_coding
from secateur.types import KeyLayout, Kind, Layout, Role

__all__ = ["FORMAT", "Masked", "Schema", "Tied", "mask_key", "metadata_of", "parse_schema", "values_key"]

FORMAT = 2
"""The newest format; a file names the oldest one that can hold it."""

_MAX_UNIT_SPEC = 200


@dataclass(frozen=True, slots=True)
class Masked:
    """A tensor of which only the kept values are stored."""

    shape: tuple[int, ...]
    kept: int
    expand: bool


@dataclass(frozen=True, slots=True)
class Tied:
    """A second name of another tensor; ``masked``: the mask goes by this name too."""

    to: str
    masked: bool


@dataclass(frozen=True, slots=True)
class Schema:
    """The record, typed."""

    tensors: Mapping[str, Masked | Tied | None]
    units: Mapping[str, PositionCode]
    unit: str | None
    layout: Layout
    plan: Mapping[str, Any] | None
    record: Mapping[str, Any] | None
    crc32: Mapping[str, int]

    @property
    def grouped(self) -> bool:
        """Whether the masks are of coupled groups."""
        return any(key.kind == "group" for key in self.layout.values())

    def stored_keys(self) -> set[str]:
        """The keys under which the container must hold tensors: these, and no others."""
        keys = {name for name, entry in self.tensors.items() if entry is None}
        keys |= {values_key(name) for name, entry in self.tensors.items() if isinstance(entry, Masked)}
        return keys | {mask_key(name) for name in self.units}


def values_key(name: str) -> str:
    """Where the kept values of a masked tensor are stored."""
    return f"{name}#values"


def mask_key(name: str) -> str:
    """Where the unit mask of a tensor is stored."""
    return f"{name}#mask"


def metadata_of(schema: Schema, slots: Mapping[str, Slot]) -> dict[str, str]:
    """The header strings of a file.

    Raises:
        ValueError: if plan or record is not plain JSON.
    """
    for what, value in (("plan", schema.plan), ("record", schema.record)):
        try:
            json.dumps(value)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"{what}= must be plain JSON (dicts, lists, numbers, strings, None): {error}") from None
    text = json.dumps(
        {
            "format": FORMAT if schema.grouped else 1,
            "tensors": {name: _tensor_json(entry) for name, entry in schema.tensors.items()},
            "units": {name: _unit_json(code) for name, code in schema.units.items()},
            "unit": schema.unit,
            "layout": {name: _layout_json(key) for name, key in schema.layout.items()},
            "plan": schema.plan,
            "record": schema.record,
            "crc32": dict(schema.crc32),
        },
        separators=(",", ":"),
    )
    return {"format": "pt", "secateur": text, "secateur.sha256": _digest(text, slots)}


def parse_schema(header: Header) -> Schema:
    """The record of a checked container, itself checked against it.

    Raises:
        ValueError: for files of others, of newer versions, and for any record that contradicts itself
            or the container.
    """
    text = header.metadata.get("secateur")
    if text is None:
        raise ValueError(
            "not a secateur file: plain safetensors without a record; "
            "load it with safetensors.torch.load_file and model.load_state_dict"
        )
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("altered: its record is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"altered: its record is no valid JSON ({error})") from None
    version = record.get("format") if isinstance(record, dict) else None
    if version is None or not is_count(version) or version == 0:
        raise ValueError("altered: its record names no format version")
    if version > FORMAT:
        raise ValueError(f"format version {version} is newer than {FORMAT}; update secateur to read this file")
    if header.metadata.get("secateur.sha256") != _digest(text, header.slots):
        raise ValueError("altered: the header does not match its checksum; fetch or save the file again")
    _expect_keys(record, {"format", "tensors", "units", "unit", "layout", "plan", "record", "crc32"}, "the record")
    for what in ("tensors", "units", "layout", "crc32"):
        if not isinstance(record[what], dict):
            raise ValueError(f"altered: {what} in its record is not a table")
    schema = Schema(
        tensors={name: _parse_tensor(name, entry) for name, entry in record["tensors"].items()},
        units={name: _parse_unit(name, entry) for name, entry in record["units"].items()},
        unit=_optional(record["unit"], str, "unit"),
        layout=_parse_layouts(record["layout"]),
        plan=_optional(record["plan"], dict, "plan"),
        record=_optional(record["record"], dict, "record"),
        crc32=record["crc32"],
    )
    if len(schema.unit or "") > _MAX_UNIT_SPEC:
        raise ValueError(f"altered: its unit is described by {len(schema.unit or '')} characters")
    _cross_check(schema, header)
    return schema


def _digest(text: str, slots: Mapping[str, Slot]) -> str:
    table = json.dumps([[key, slot.code, list(slot.shape)] for key, slot in sorted(slots.items())])
    return hashlib.sha256(f"{table}\n{text}".encode(errors="surrogatepass")).hexdigest()


def _tensor_json(entry: Masked | Tied | None) -> dict[str, Any] | None:
    if isinstance(entry, Masked):
        return {"shape": list(entry.shape), "kept": entry.kept, "expand": entry.expand}
    return {"tied": entry.to, "masked": entry.masked} if isinstance(entry, Tied) else None


def _unit_json(code: PositionCode) -> dict[str, Any]:
    return {"shape": list(code.shape), "coding": code.coding, "side": code.side, "count": code.count}


def _layout_json(key: KeyLayout) -> dict[str, Any]:
    plain = {"shape": list(key.shape), "kind": key.kind, "groups": key.groups, "role": key.role}
    return {**plain, "members": [member_json(member) for member in key.members]} if key.kind == "group" else plain


def _expect_keys(entry: object, keys: set[str], what: str) -> dict[str, Any]:
    if not isinstance(entry, dict) or set(entry) != keys:
        raise ValueError(f"altered: {what} does not have exactly the keys {sorted(keys)}")
    return entry


def _optional(value: Any, kind: type, what: str) -> Any:
    if value is not None and not isinstance(value, kind):
        raise ValueError(f"altered: {what} in its record is {type(value).__name__}, not {kind.__name__} or null")
    return value


def _parse_tensor(name: str, entry: object) -> Masked | Tied | None:
    if entry is None:
        return None
    if isinstance(entry, dict) and "tied" in entry:
        _expect_keys(entry, {"tied", "masked"}, f"tensor {name}")
        if not isinstance(entry["tied"], str) or not isinstance(entry["masked"], bool):
            raise ValueError(f"altered: tensor {name} is tied to {entry['tied']!r}")
        return Tied(entry["tied"], entry["masked"])
    entry = _expect_keys(entry, {"shape", "kept", "expand"}, f"tensor {name}")
    shape = parse_shape(entry["shape"], f"tensor {name}")
    if not is_count(entry["kept"]) or entry["kept"] > math.prod(shape) or not isinstance(entry["expand"], bool):
        raise ValueError(f"altered: tensor {name} keeps {entry['kept']!r} of {math.prod(shape)} elements")
    return Masked(shape, entry["kept"], entry["expand"])


def _parse_unit(name: str, entry: object) -> PositionCode:
    entry = _expect_keys(entry, {"shape", "coding", "side", "count"}, f"mask {name}")
    shape = parse_shape(entry["shape"], f"mask {name}")
    if not is_coding(entry["coding"]) or entry["side"] not in get_args(Side):
        raise ValueError(f"mask {name}: unknown coding {entry['coding']!r} of {entry['side']!r} positions")
    if not is_count(entry["count"]) or entry["count"] > math.prod(shape):
        raise ValueError(f"altered: mask {name} lists {entry['count']!r} of {math.prod(shape)} units")
    return PositionCode(shape, entry["coding"], entry["side"], entry["count"])


def _parse_layouts(entries: Mapping[str, object]) -> dict[str, KeyLayout]:
    layout: dict[str, KeyLayout] = {}
    positions = 0
    for name, entry in entries.items():
        layout[name] = _parse_layout(name, entry, positions)
        positions += sum(len(member.owner) for member in layout[name].members)
    return layout


def _parse_layout(name: str, entry: object, positions: int) -> KeyLayout:
    grouped = isinstance(entry, dict) and entry.get("kind") == "group"
    members = {"members"} if grouped else set[str]()
    entry = _expect_keys(entry, {"shape", "kind", "groups", "role"} | members, f"layout of {name}")
    kind, groups, role = entry["kind"], entry["groups"], entry["role"]
    if kind not in get_args(Kind) or role not in get_args(Role) or not is_count(groups) or groups < 1:
        raise ValueError(f"altered: layout of {name}: kind {kind!r}, groups {groups!r}, role {role!r}")
    shape = parse_shape(entry["shape"], f"layout of {name}")
    if not grouped:
        return KeyLayout(shape, kind, groups, role)
    if len(shape) != 1:
        raise ValueError(f"altered: layout of {name}: a group of shape {shape}, which has to be its number of units")
    return KeyLayout(shape, kind, groups, role, parse_members(entry["members"], shape[0], f"group {name}", positions))


def _cross_check(schema: Schema, header: Header) -> None:
    if schema.stored_keys() != set(header.slots) or set(schema.crc32) != set(header.slots):
        wrong = sorted((schema.stored_keys() | set(schema.crc32)) ^ set(header.slots))
        raise ValueError(f"altered: record and container disagree about the tensors {wrong[:5]}")
    masked = {name: entry for name, entry in schema.tensors.items() if isinstance(entry, Masked)}
    for name, entry in schema.tensors.items():
        if isinstance(entry, Tied) and not _ties_well(entry, schema):
            raise ValueError(f"altered: tensor {name} is tied to {entry.to}, which cannot be")
    for name, entry in masked.items():
        values = header.slots[values_key(name)]
        if values.shape != (entry.kept,):
            raise ValueError(f"altered: tensor {name} keeps {entry.kept} elements, {values.shape} are stored")
    if schema.grouped:
        check_groups(
            schema.layout, {n: e.shape for n, e in masked.items()}, {n: c.shape for n, c in schema.units.items()}
        )
        if schema.unit is None or not all(entry.expand for entry in masked.values()):
            raise ValueError("altered: its masks are of coupled groups, but are not expanded from a unit")
    else:
        _check_masks(schema, masked)


def _check_masks(schema: Schema, masked: Mapping[str, Masked]) -> None:
    if set(masked) != set(schema.units) or (masked and schema.unit is None):
        raise ValueError("altered: the masks of its record do not belong to its masked tensors")
    for name, entry in masked.items():
        code = schema.units[name]
        if not entry.expand and (code.shape != entry.shape or code.kept != entry.kept):
            raise ValueError(f"altered: tensor {name} and its mask differ in shape or count")
        if entry.expand and name not in schema.layout:
            raise ValueError(f"altered: tensor {name} has a mask of coarse units, but no layout")
    for name, key in schema.layout.items():
        entry = schema.tensors.get(name)
        owner = schema.tensors[entry.to] if isinstance(entry, Tied) else entry
        if not isinstance(owner, Masked) or owner.shape != key.shape:
            raise ValueError(f"altered: the layout of {name} belongs to no masked tensor of that shape")


def _ties_well(entry: Tied, schema: Schema) -> bool:
    owner = schema.tensors.get(entry.to, entry)
    return not isinstance(owner, Tied) and (isinstance(owner, Masked) or not entry.masked)
