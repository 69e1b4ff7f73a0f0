"""Masks alone in a file of their own, for models whose weights another library writes and reads."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from secateur.core.units import parse_unit
from secateur.io import Bundle, read, write
from secateur.io.positions import Coding, PositionCode, Side, decode, encode
from secateur.model.mask_checks import check_shapes
from secateur.model.masks import Masks
from secateur.model.names import unwrap
from secateur.model.registry import find_masks, register_masks
from secateur.model.sharding import local, part_of, take
from secateur.types import KeyLayout, Kind, Layout, Member, Role

__all__ = ["MASKS_FILE", "StoredMasks", "layout_record", "load_masks", "parse_layout", "read_masks", "save_masks"]

MASKS_FILE = "secateur_masks.safetensors"
"""The name of the file in a folder that ``save_pretrained`` wrote."""

_KEY = "secateur.masks"
_ALWAYS_ALLOWED = 1 << 30
_EXPANSION = 1000
"""As for files of ``secateur.save``: a small file cannot claim a huge memory."""
_PARTS = ("out", "in", "follows", "direction")


@dataclass(frozen=True, eq=False)
class StoredMasks:
    """What a file of masks holds: the unit's name, the unit masks, and how their keys are laid out."""

    unit: str
    units: Mapping[str, Tensor]
    layout: Layout

    def put_on(self, model: nn.Module, *, apply: bool = False) -> Masks:
        """Register these masks for a model; see ``load_masks``."""
        root, unit = unwrap(model), parse_unit(self.unit)[0]
        if find_masks(root) is not None:
            raise ValueError("this model already has masks; call their undo(), or load the weights into a new model")
        check_shapes(self.units, unit, self.layout)
        masks = Masks(root, self.units, unit, self.layout, undo=apply)
        if apply:
            masks.apply()
        else:
            _check_weights(masks, root)
        register_masks(root, masks)
        return masks


def save_masks(masks: Masks, path: str | os.PathLike[str]) -> int:
    """Write masks without weights; at 90 % sparsity a file of about half a bit per weight.

    For weights that another library saves. ``secateur.save(model, path)`` writes both into one file.

    Args:
        masks: what is kept.
        path: a file, or a folder, in which ``secateur_masks.safetensors`` is written or replaced.

    Returns:
        Bytes written.

    Raises:
        ValueError: if the unit of the masks has no name to load it by.
        FileNotFoundError: if the folder does not exist.

    Example:
        >>> import tempfile, secateur as sc
        >>> net = nn.Linear(8, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_masks(sc.prune(net, 0.5), folder)
        ...     again = nn.Linear(8, 4)
        ...     _ = again.load_state_dict(net.state_dict())  # the weights came by another way
        ...     print(load_masks(again, folder).kept("weight"))
        16
    """
    parse_unit(masks.unit.spec)  # a unit that cannot be named again must fail here, not when the file is loaded
    codes: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    for key, mask in masks.unit_masks.items():
        code, stored[key] = encode(mask)
        codes[key] = dataclasses.asdict(code)
    record = {"unit": masks.unit.spec, "codes": codes, "layout": layout_record(masks.layout)}
    return write(_file(path), Bundle(stored, record={_KEY: record}))


def read_masks(path: str | os.PathLike[str]) -> StoredMasks:
    """Read a file made by ``save_masks``; nothing in it is ever executed.

    Args:
        path: the file, or the folder that it is in.

    Returns:
        Unit, unit masks and layout.

    Raises:
        ValueError: if it is another file, or was altered.
        FileNotFoundError: if there is no such file.
    """
    file = _file(path)
    if not file.exists():
        raise FileNotFoundError(
            f"{file}: there is no such file. Masks are written by SecateurCallback, or by save_masks(masks, folder); "
            "save_pretrained alone writes weights"
        )
    bundle = read(file)
    record = (bundle.record or {}).get(_KEY)
    if (
        not isinstance(record, dict)
        or set(record) != {"unit", "codes", "layout"}
        or not isinstance(record["unit"], str)
    ):
        raise ValueError(f"{file} holds no masks alone; a file of secateur.save is read by secateur.load")
    try:
        layout = parse_layout(record["layout"])
        if not isinstance(record["codes"], dict) or not set(layout) == set(record["codes"]) == set(bundle.tensors):
            raise ValueError("altered: record and contents disagree about the names")
        codes = {key: _code(key, record["codes"][key]) for key in layout}
        limit = max(_ALWAYS_ALLOWED, _EXPANSION * file.stat().st_size)
        if sum(code.numel for code in codes.values()) > limit:
            raise ValueError(f"altered: it declares masks of more than {limit} units, and is too small for that")
        units = {key: decode(code, bundle.tensors[key]) for key, code in codes.items()}
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    return StoredMasks(record["unit"], units, layout)


def load_masks(model: nn.Module, path: str | os.PathLike[str], *, apply: bool = False) -> Masks:
    """Put the masks of a file on a model whose weights are loaded already.

    Afterwards all is as after pruning: ``secateur.save``, ``secateur.measure`` and ``SecateurCallback()`` know them.

    Args:
        model: as ``from_pretrained(folder)`` gives it.
        path: the folder, or the file ``secateur_masks.safetensors`` in it.
        apply: set weights to zero that the masks remove and that are not zero (of an earlier checkpoint, say; ``undo``
            brings them back). Without it such a model is refused.

    Returns:
        The masks, registered for the model.

    Raises:
        ValueError: if the masks are of another model or of other weights; or the model has masks already.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile, secateur as sc
        >>> net = nn.Linear(8, 4)
        >>> before = net.weight.detach().clone()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_masks(sc.prune(net, 0.5), folder)
        ...     ticket = nn.Linear(8, 4)
        ...     _ = ticket.load_state_dict({"weight": before, "bias": net.bias})
        ...     masks = load_masks(ticket, folder, apply=True)
        >>> torch.equal(ticket.weight, net.weight)
        True
    """
    stored = read_masks(path)
    try:
        return stored.put_on(model, apply=apply)
    except ValueError as error:
        raise ValueError(f"{_file(path)}: {error}") from error


def layout_record(layout: Layout) -> dict[str, Any]:
    """A layout as plain JSON."""
    return {key: dataclasses.asdict(value) for key, value in layout.items()}


def parse_layout(record: object) -> dict[str, KeyLayout]:
    """The inverse of ``layout_record``, every value checked.

    Raises:
        ValueError: for what cannot have been written by it.
    """
    if not isinstance(record, Mapping):
        raise ValueError("altered: the layout of the masks is no table")
    return {str(key): _parse_key(str(key), entry) for key, entry in cast("Mapping[object, object]", record).items()}


def _file(path: str | os.PathLike[str]) -> Path:
    return Path(path) / MASKS_FILE if Path(path).is_dir() else Path(path)


def _table(what: str, entry: object, kind: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    if not isinstance(entry, Mapping) or set(cast("Mapping[object, object]", entry)) != names:
        raise ValueError(f"altered: {what} has not {', '.join(sorted(names))}")
    return dict(cast("Mapping[str, Any]", entry))


def _numbers(what: str, value: object, least: int) -> tuple[int, ...]:
    items = cast("list[Any]", value) if isinstance(value, (list, tuple)) else None
    if items is None or not all(type(item) is int and item >= least for item in items):
        raise ValueError(f"altered: {what} is not a list of whole numbers from {least} on")
    return tuple(items)


def _code(key: str, entry: object) -> PositionCode:
    known = _table(f"mask {key}", entry, PositionCode)
    shape = _numbers(f"shape of mask {key}", known["shape"], 0)
    count = _numbers(f"count of mask {key}", [known["count"]], 0)[0]
    if known["coding"] not in get_args(Coding) or known["side"] not in get_args(Side):
        raise ValueError(f"altered: mask {key} is coded as {known['coding']!r} of {known['side']!r}")
    return PositionCode(shape, known["coding"], known["side"], count)


def _parse_key(name: str, entry: object) -> KeyLayout:
    known = _table(f"layout of {name}", entry, KeyLayout)
    groups = _numbers(f"groups of {name}", [known["groups"]], 1)[0]
    if known["kind"] not in get_args(Kind) or known["role"] not in get_args(Role):
        raise ValueError(f"altered: layout of {name}: kind {known['kind']!r}, role {known['role']!r}")
    if not isinstance(known["members"], (list, tuple)):
        raise ValueError(f"altered: layout of {name}: its members are no list")
    shape = _numbers(f"shape of {name}", known["shape"], 0)
    members = tuple(_parse_member(name, shape, member) for member in cast("list[object]", known["members"]))
    return KeyLayout(shape, known["kind"], groups, known["role"], members)


def _parse_member(group: str, units: tuple[int, ...], entry: object) -> Member:
    known = _table(f"a member of {group}", entry, Member)
    shape = _numbers(f"shape of a member of {group}", known["shape"], 0)
    dim = _numbers(f"axis of a member of {group}", [known["dim"]], 0)[0]
    owner = _numbers(f"units of a member of {group}", known["owner"], -1)
    fits = len(units) == 1 and dim < len(shape) and len(owner) == shape[dim] and max(owner, default=-1) < units[0]
    if not fits or known["part"] not in _PARTS or not isinstance(known["name"], str):
        raise ValueError(f"altered: group {group} and its member {known['name']!r} do not fit")
    return Member(known["name"], shape, dim, known["part"], owner)


def _check_weights(masks: Masks, root: nn.Module) -> None:
    for name in masks:
        weight = root.get_parameter(name).detach()
        values = local(weight)
        removed = ~take(masks[name], part_of(weight)).to(values.device)
        wrong = int(torch.count_nonzero(values[removed]))
        if wrong:
            raise ValueError(
                f"{wrong} weights of {name!r} are not zero where these masks remove them, so they are of other "
                "weights. Load those that were saved with the masks, or set the rest to zero with apply=True"
            )
