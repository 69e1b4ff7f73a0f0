"""``secateur inspect``: what a file holds, from its header alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.output import print_json, print_line, print_table

__all__ = ["inspect"]

_KINDS = {"secateur": "secateur file", "secateur packed": "packed model", "safetensors": "plain safetensors"}


def inspect(
    file: Annotated[Path, typer.Argument(help="A file of `secateur prune` or sc.save, or any safetensors file.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what is in a file.

    Its tensors with shape, dtype, kept elements, how their masks are stored, and bytes; and the plan
    that led to it. Only the header is read and checked; loading checks the tensors too.
    """
    from secateur.cli.weights import is_secateur_file
    from secateur.deploy.pack.loading import is_packed

    found = _sparse(file) if is_secateur_file(file) and not is_packed(file) else _plain(file)
    if json:
        print_json(found)
    else:
        _show(found)


def _sparse(path: Path) -> dict[str, Any]:
    from secateur.io import read_contents
    from secateur.io.container import parse_header
    from secateur.io.schema import parse_schema

    contents = read_contents(path)
    with path.open("rb") as file:
        codes = parse_schema(parse_header(file)).units
    tensors: list[dict[str, Any]] = []
    for name, info in contents.tensors.items():
        code = codes.get(name)
        tensors.append(
            {
                "name": name,
                "dtype": _dtype(info.dtype),
                "shape": list(info.shape),
                "kept": info.kept,
                "total": math.prod(info.shape),
                "mask": None if code is None else {"coding": code.coding, "side": code.side, "units": code.numel},
                "bytes": info.stored_bytes,
                "tied_to": info.tied_to,
            }
        )
    return {
        "file": str(path),
        "format": "secateur",
        "file_bytes": contents.file_bytes,
        "dense_bytes": contents.dense_bytes,
        "unit": contents.unit,
        "tensors": tensors,
        "plan": contents.plan,
        "record": contents.record,
    }


def _plain(path: Path) -> dict[str, Any]:
    from secateur.cli.weights import starts_like_a_checkpoint
    from secateur.deploy.pack.loading import is_packed
    from secateur.io.container import parse_header

    if starts_like_a_checkpoint(path):
        raise ValueError(f"{path}: a torch checkpoint; inspect reads safetensors files, which show themselves unloaded")
    with path.open("rb") as file:
        header = parse_header(file)
    tensors = [
        {
            "name": name,
            "dtype": _dtype(slot.dtype),
            "shape": list(slot.shape),
            "kept": None,
            "total": math.prod(slot.shape),
            "mask": None,
            "bytes": slot.end - slot.begin,
            "tied_to": None,
        }
        for name, slot in header.slots.items()
    ]
    size = path.stat().st_size
    return {
        "file": str(path),
        "format": "secateur packed" if is_packed(path) else "safetensors",
        "file_bytes": size,
        "dense_bytes": sum(entry["bytes"] for entry in tensors),
        "unit": None,
        "tensors": tensors,
        "plan": None,
        "record": None,
    }


def _show(found: dict[str, Any]) -> None:
    from secateur.text import data_size

    rows = [_row(entry) for entry in found["tensors"]]
    numbers = ("kept", "of", "removed", "bytes")
    print_table(_headline(found, data_size), ("tensor", "dtype", "shape", *numbers[:3], "mask", "bytes"), rows, numbers)
    if found["plan"]:
        chosen = ", ".join(f"{key} {value}" for key, value in found["plan"].items() if value is not None)
        print_line(f"plan: {chosen}")
    if found["record"]:
        print_line(f"record: {', '.join(map(str, found['record']))} (--json shows it)")


def _headline(found: dict[str, Any], data_size: Callable[[int], str]) -> str:
    masked = [entry for entry in found["tensors"] if entry["kept"] is not None and entry["tied_to"] is None]
    size, dense = found["file_bytes"], found["dense_bytes"]
    line = f"{found['file']}: {_KINDS[found['format']]}, {data_size(size)}"
    if found["format"] == "secateur packed":
        return f"{line}; sc.load gives the packed model"
    if not masked:
        return f"{line}, no masks"
    total, kept = sum(entry["total"] for entry in masked), sum(entry["kept"] for entry in masked)
    return (
        f"{line} for {data_size(dense)} of dense tensors ({dense / size:.2f} x); "
        f"{100 * (1 - kept / total):.1f} % of {total:,} target weights removed, unit {found['unit']}"
    )


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    kept, total, code = entry["kept"], entry["total"], entry["mask"]
    mask = "" if code is None else code["coding"] if code["coding"] == "bits" else f"{code['coding']} of {code['side']}"
    return (
        entry["name"],
        entry["dtype"],
        " x ".join(map(str, entry["shape"])) or "scalar",
        "" if kept is None else f"{kept:,}",
        f"{total:,}",
        "" if kept is None else f"{100 * (1 - kept / max(total, 1)):.1f} %",
        f"as {entry['tied_to']}" if entry["tied_to"] else mask,
        f"{entry['bytes']:,}",
    )


def _dtype(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
