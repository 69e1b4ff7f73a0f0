"""Bundle -> one file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from secateur.io.atomic import replacing
from secateur.io.bundle import Bundle
from secateur.io.container import Header, as_integers, assign_slots, crc32, write_file
from secateur.io.positions import PositionCode, encode
from secateur.io.schema import Masked, Schema, Tied, mask_key, metadata_of, parse_schema, values_key
from secateur.types import Layout, Tensors

__all__ = ["write"]


@dataclass(slots=True)
class _Packed:
    """What goes into the file, gathered name by name."""

    stored: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    entries: dict[str, Masked | Tied | None] = field(default_factory=dict[str, "Masked | Tied | None"])
    units: dict[str, PositionCode] = field(default_factory=dict[str, PositionCode])

    def put(self, key: str, tensor: Tensor) -> None:
        if key in self.stored or key in self.entries or key == "__metadata__":
            raise ValueError(f"tensor {key}: that name is needed for the file's own use; rename it")
        self.stored[key] = tensor


def write(path: str | os.PathLike[str], bundle: Bundle, *, masks: Tensors | None = None) -> int:
    """Write a bundle as one safetensors file, atomically.

    Of a masked tensor the kept values and the smaller coding of its unit mask are stored, so that a
    float32 tensor at sparsity S takes about ``(1 - S) 4 n + H(S) n / 8`` bytes, H the binary entropy in
    bits. A killed writer leaves the old file (see ``secateur.io.atomic``).

    Args:
        path: file to make or replace.
        bundle: what to store. Tensors of any device, contiguous or not; -0.0 under a mask becomes 0.0.
        masks: name -> mask of the parameter's shape, for units coarser than a weight; None where
            unit masks have the parameters' shapes already. Needed for coupled groups.

    Returns:
        Bytes written.

    Raises:
        ValueError: if a removed element is not zero, shapes do not fit, a dtype or layout cannot be
            stored, or plan or record is not JSON.
        FileNotFoundError: if the folder does not exist.

    Example:
        >>> import tempfile
        >>> weight = torch.zeros(100, 100)
        >>> weight[0] = 1.0
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = write(f"{folder}/a.safetensors", Bundle({"w": weight}, {"w": weight != 0}, "weight"))
        >>> size < 1500  # 40,000 dense
        True
    """
    schema, stored = _pack(bundle, bundle.masks if masks is None else masks)
    slots = assign_slots(stored)
    metadata = metadata_of(schema, slots)
    parse_schema(Header(metadata, slots, 0))  # what could not be read again is never written
    with replacing(path) as file:
        return write_file(file, stored, slots, metadata)


def _pack(bundle: Bundle, masks: Tensors) -> tuple[Schema, dict[str, Tensor]]:
    if bundle.masks and bundle.unit is None:
        raise ValueError("masks were given without unit=; say what they mask, 'weight' for single weights")
    grouped = any(key.kind == "group" for key in bundle.layout.values())
    unknown = sorted(set(masks) - set(bundle.tensors)) or ([] if grouped else sorted(set(bundle.masks) ^ set(masks)))
    if unknown:
        raise ValueError(f"masks of {unknown} come without a tensor, or without their unit mask")
    for name, tensor in bundle.tensors.items():
        _check_storable(name, tensor)
    owners = _owners(bundle.tensors, masks)
    packed = _Packed()
    for name, tensor in bundle.tensors.items():
        owner = owners[name]
        if owner != name:
            _check_same_mask(masks if grouped else bundle.masks, name, owner)
            packed.entries[name] = Tied(owner, name in masks and not grouped)
        elif name in masks:
            units = None if grouped else _plain(bundle.masks[name])
            _pack_masked(packed, name, _plain(tensor), units, _plain(masks[name]))
            if not grouped:
                _check_layout(name, packed.entries[name], bundle.layout)
        else:
            packed.put(name, _plain(tensor))
            packed.entries[name] = None
    if grouped:
        for group, units in bundle.masks.items():
            _pack_units(packed, group, _plain(units))
        _check_groups(packed, bundle.layout)
    schema = Schema(
        tensors=packed.entries,
        units=packed.units,
        unit=bundle.unit,
        layout={name: key for name, key in bundle.layout.items() if name in bundle.masks},
        plan=bundle.plan,
        record=bundle.record,
        crc32={key: crc32(tensor) for key, tensor in packed.stored.items()},
    )
    return schema, packed.stored


def _pack_masked(packed: _Packed, name: str, tensor: Tensor, units: Tensor | None, mask: Tensor) -> None:
    """The kept values of a tensor, and its unit mask unless that is a group's."""
    if mask.dtype is not torch.bool:
        raise ValueError(f"mask of {name}: dtype {mask.dtype}; masks are torch.bool, True = kept")
    if mask.shape != tensor.shape:
        raise ValueError(
            f"mask of {name} has shape {tuple(mask.shape)}, the tensor {tuple(tensor.shape)}; "
            "give masks= of the parameter's shape beside unit masks that are coarser"
        )
    regrown = int(_nonzero(as_integers(tensor)[~mask].view(tensor.dtype)).sum())
    if regrown:
        raise ValueError(
            f"tensor {name}: {regrown} elements that its mask removes are not zero and would be lost; "
            "call masks.apply() first, or save without masks"
        )
    values = as_integers(tensor)[mask].view(tensor.dtype)
    packed.put(values_key(name), values)
    if units is not None:
        _pack_units(packed, name, units)
    direct = units is not None and units.shape == mask.shape and torch.equal(units, mask)
    packed.entries[name] = Masked(tuple(tensor.shape), values.numel(), expand=not direct)


def _pack_units(packed: _Packed, key: str, units: Tensor) -> None:
    if units.dtype is not torch.bool:
        raise ValueError(f"mask of {key}: dtype {units.dtype}; masks are torch.bool, True = kept")
    packed.units[key], positions = encode(units)
    packed.put(mask_key(key), positions)


def _check_groups(packed: _Packed, layout: Layout) -> None:
    shapes = {name: entry.shape for name, entry in packed.entries.items() if isinstance(entry, Masked)}
    for group in packed.units:
        if group not in layout or layout[group].kind != "group":
            raise ValueError(f"mask of {group}: layout= does not say which tensors this group masks")
        for member in layout[group].members:
            if shapes.get(member.name) != member.shape:
                raise ValueError(
                    f"group {group} has the member {member.name} of shape {member.shape}, the masked tensor of it "
                    f"{shapes.get(member.name)}; write(..., masks=) needs the mask of every member"
                )


def _plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, without lazy conjugation."""
    return tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()


def _nonzero(values: Tensor) -> Tensor:
    if values.dtype.is_floating_point and values.element_size() == 1:
        return values.to(torch.float32) != 0
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
        return as_integers(values) != 0
    return values != 0


def _check_storable(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(
            f"{name} is a {type(tensor).__name__}, not a tensor; a file holds tensors and JSON, "
            "put numbers and strings into record="
        )
    if is_lazy(tensor):
        raise ValueError(f"tensor {name} has no shape yet; run the module once before saving it")
    if hasattr(tensor, "full_tensor"):
        raise ValueError(
            f"tensor {name} is sharded; gather it with full_tensor() on every rank and save a mapping of the results"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise ValueError(
            f"tensor {name} has layout {tensor.layout}, dtype {tensor.dtype}; save its to_dense() or dequantize()"
        )
    if tensor.device.type == "meta":
        raise ValueError(f"tensor {name} is on the meta device and has no values; load the weights first")


def _check_layout(name: str, entry: Masked | Tied | None, layout: Layout) -> None:
    assert isinstance(entry, Masked), "called for masked tensors"
    if name not in layout and entry.expand:
        raise ValueError(f"tensor {name}: its units are coarser than weights, so layout= must say how it is laid out")
    if name in layout and tuple(layout[name].shape) != entry.shape:
        raise ValueError(f"tensor {name} has shape {entry.shape}, its layout says {layout[name].shape}")


def _owners(tensors: Tensors, masks: Tensors) -> dict[str, str]:
    """Each name -> the name under which its tensor is stored; a masked name comes before the others."""
    found: dict[object, str] = {}
    keys: dict[str, object] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        keys[name] = key = (*place, tensor.is_conj(), tensor.is_neg()) if tensor.numel() else name
        if key not in found or (name in masks and found[key] not in masks):
            found[key] = name
    return {name: found[key] for name, key in keys.items()}


def _check_same_mask(masks: Tensors, name: str, owner: str) -> None:
    if name in masks and not torch.equal(masks[name], masks[owner]):
        raise ValueError(
            f"{owner!r} and {name!r} are the same tensor (tied) but come with different masks; give one mask"
        )
