"""The file beside the weights: how a user without this library gets a model with opened attention back."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from secateur.deploy.attention import attentions
from secateur.io.atomic import replacing
from secateur.model.removal.attributes import derivation
from secateur.model.removal.named import modules_by_name
from secateur.model.removal.resized import Resized
from secateur.model.removal.restore import Structure

__all__ = ["attention_in", "beside", "put_beside", "with_attention"]

_KEY = "secateur.attention"
"""In the file's record: name of an attention -> its numbers."""

_SOURCE = Path(__file__).with_name("attention.py")
_FIRST = "# Written by secateur beside weights; written again whenever they are saved.\n"
_NUMBERS = ("num_heads", "head_dim", "v_head_dim")


def with_attention(record: Mapping[str, Any] | None, root: nn.Module) -> Mapping[str, Any] | None:
    """The record with the numbers of every opened attention; as it is where there is none.

    Raises:
        ValueError: if the user's record has that key already.
    """
    sizes = _sizes(root)
    if not sizes:
        return record
    if record is not None and _KEY in record:
        raise ValueError(f"record= has the key {_KEY!r}, which is needed for this model's attention; rename it")
    return {**(record or {}), _KEY: sizes}


def attention_in(record: Mapping[str, Any] | None) -> dict[str, dict[str, int | float]]:
    """The numbers of every opened attention that a file's record tells of.

    Raises:
        ValueError: if they are there but damaged.
    """
    found = None if record is None else record.get(_KEY, {})
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(map(_is_whole, found.values())):
        raise ValueError(f"the record of the opened attention has not {', '.join(_NUMBERS)} and scale for each")
    return found


def beside(path: str | os.PathLike[str], root: nn.Module, structure: Structure | None) -> tuple[Path, str] | None:
    """The file that belongs beside the weights, and its text; None for a model without opened attention.

    Args:
        path: of the weights; ``net.safetensors`` has ``net_attention.py`` beside it.
        root: an unwrapped module.
        structure: what is known of its shrinking.

    Raises:
        ValueError: if a file of that name is there that was not written by this library.
    """
    sizes = _sizes(root)
    if not sizes:
        return None
    weights = Path(path)
    stem, shown = re.sub(r"[^0-9A-Za-z]", "_", weights.stem), re.sub(r"[^-.\w]", "_", weights.name)
    target = weights.with_name(f"{'_' if stem[:1].isdigit() else ''}{stem}_attention.py")
    if target.exists() and not target.read_text(encoding="utf-8", errors="replace").startswith(_FIRST):
        raise ValueError(f"{target} is not a file of this library and would be overwritten; move it, or save elsewhere")
    text = _SOURCE.read_text(encoding="utf-8").replace("model.safetensors", shown)
    told = dict(structure.attributes) if structure else {}
    attributes = {name: {**_derived(name, module), **told.get(name, {})} for name, module in _resized(root, structure)}
    attributes = {name: values for name, values in attributes.items() if values and name not in sizes}
    buffers = {name: dict(axes) for name, axes in structure.kept.items()} if structure else {}
    for table, value in (("SIZES", sizes), ("ATTRIBUTES", attributes), ("BUFFERS", buffers)):
        lines = [line for line in text.splitlines() if line.startswith(f"{table}: ")]
        assert [line[-5:] for line in lines] == [" = {}"], "the stand-alone file has one empty table of that name"
        text = text.replace(lines[0], f"{lines[0][:-2]}{_literal(value)}")
    return target, _FIRST + text


def put_beside(file: tuple[Path, str] | None) -> None:
    """Write what ``beside`` returned, in one step."""
    if file is not None:
        with replacing(file[0]) as out:
            out.write(file[1].encode())


def _sizes(root: nn.Module) -> dict[str, dict[str, int | float]]:
    return {name: module.sizes() for name, module in attentions(root).items()}


def _resized(root: nn.Module, structure: Structure | None) -> list[tuple[str, nn.Module]]:
    """The modules whose numbers may differ from what their class builds."""
    if structure is None:
        return []
    modules = modules_by_name(root)
    if structure.before is None:
        return list(modules.items())
    owners = {name.rpartition(".")[0] for name in structure.before} | set(structure.attributes)
    owners |= {name.rpartition(".parametrizations")[0] for name in owners if ".parametrizations" in name}
    return [(name, module) for name, module in modules.items() if name in owners]


def _derived(name: str, module: nn.Module) -> dict[str, Any]:
    row = derivation(module)
    found = {} if row is None else row(Resized(name, module, {}, {}))
    return {key: value for key, value in found.items() if hasattr(module, key)}


def _literal(table: Mapping[str, Any]) -> str:
    """A literal with one line per entry."""
    return "{\n" + "".join(f"    {name!r}: {value!r},\n" for name, value in table.items()) + "}" if table else "{}"


def _is_whole(sizes: object) -> bool:
    if not isinstance(sizes, dict) or set(sizes) != {*_NUMBERS, "scale"}:
        return False
    counts = all(type(sizes[key]) is int and 1 <= sizes[key] < 1 << 31 for key in _NUMBERS)
    return counts and type(sizes["scale"]) in (int, float) and math.isfinite(sizes["scale"])
