"""The tensors of a module that a file is loaded into: do they fit, and how they are filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from secateur.deploy.shrunk import LARGER, LOST_MARK, may_become
from secateur.io import Bundle, Contents
from secateur.model.masks import Masks
from secateur.model.names import clean_name
from secateur.model.removal.restore import Structure

__all__ = ["check_contents", "check_masks", "check_ties", "swap_in", "target_tensors"]

_LISTED = 8


def target_tensors(root: nn.Module) -> dict[str, Tensor]:
    """Clean name -> the module's own tensor, for everything in its state dict.

    Raises:
        ValueError: where a tensor cannot be filled in place.
    """
    own = {_storage(tensor) for tensor in [*root.parameters(), *root.buffers()] if not is_lazy(tensor)}
    slots: dict[str, Tensor] = {}
    for name, tensor in root.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"{name} in the module's state_dict() is a {type(tensor).__name__}, not a tensor, and files hold "
                "no such extra state; load without into= and use bundle.tensors"
            )
        if is_lazy(tensor):
            raise ValueError(f"{name} of the module has no shape yet; run the module once before loading into it")
        if tensor.device.type == "meta":
            raise ValueError(f"{name} of the module is on the meta device; call to_empty(device='cpu') on it first")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"{name} of the module is sharded; load into the module before sharding it")
        if tensor.numel() and _storage(tensor) not in own:
            raise ValueError(
                f"{name} in state_dict() is a copy that a hook of the module makes; load without into= and call "
                "model.load_state_dict(bundle.tensors)"
            )
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{name} of the module was made in inference mode and cannot be filled outside of it")
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise ValueError(f"{name} of the module is an expanded view; give it memory of its own with .clone()")
        slots[clean_name(name)] = tensor
    return slots


def check_contents(
    contents: Contents, slots: Mapping[str, Tensor], owner: str, shrunk: Structure | None = None
) -> None:
    """Refuse a file whose names, shapes or dtypes are not the module's.

    Args:
        contents: of the file.
        slots: the module's tensors.
        owner: the module's class, for the message.
        shrunk: what the file says about a shrunk model; its shapes may differ as ``may_become`` allows.

    Raises:
        ValueError: listing everything that does not fit, and what to try.
    """
    found = contents.tensors
    missing = [name for name in slots if name not in found]
    unexpected = [name for name in found if name not in slots]
    shapes = [
        f"{name} is {found[name].shape} in the file, {tuple(tensor.shape)} in the module"
        for name, tensor in slots.items()
        if name in found and not may_become(name, tuple(tensor.shape), found[name].shape, shrunk)
    ]
    dtypes = [
        f"{name} is {found[name].dtype} in the file, {tensor.dtype} in the module"
        for name, tensor in slots.items()
        if name in found and found[name].dtype is not tensor.dtype
    ]
    problems: list[str] = []
    if missing:
        problems.append(f"missing in the file: {_some(missing)}")
    if unexpected:
        problems.append(f"unexpected in the file: {_some(unexpected)}")
    if missing or unexpected:
        problems.append("build the module that was saved, with the same options")
    if shapes:
        problems.append(f"shapes differ: {_some(shapes)}; build the module with the sizes of the file")
        if shrunk is not None and shrunk.before is not None:
            sizes = [f"{name} {shape}" for name, shape in shrunk.before.items()]
            problems[-1] += f", or with those it had before it was shrunk: {_some(sizes)}"
        else:
            problems.append(LOST_MARK if shrunk is None else LARGER)
    if dtypes:
        problems.append(f"dtypes differ: {_some(dtypes)}; convert the module first, model.to({_dtype_hint(contents)})")
    if problems:
        raise ValueError(f"does not fit {owner}: " + ". ".join(problems))


def check_masks(present: Masks | None, bundle: Bundle) -> None:
    """A module that has masks already may only take the values under the same masks.

    Raises:
        ValueError: if the file has other masks, or none.
    """
    if present is None:
        return
    known = present.unit_masks
    same = bundle.unit == present.unit.spec and set(known) == set(bundle.masks)
    same = same and all(torch.equal(mask, bundle.masks[name]) for name, mask in known.items())
    same = same and all(
        key.members == bundle.layout[name].members for name, key in present.layout.items() if key.members
    )
    if not same:
        raise ValueError(
            f"the module has other masks already ({len(present)} tensors by {present.unit.spec}); "
            "call masks.undo() on them first, or load into a fresh module"
        )


def check_ties(slots: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (tensor of the module, value), each tensor of the module once, each value its own memory.

    Raises:
        ValueError: if the module ties two names that have different values in the file.
    """
    first: dict[tuple[object, ...], str] = {}
    taken: set[int] = set()
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, tensor in slots.items():
        value = tensors[name]
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        if key in first:
            other = tensors[first[key]]
            if value is not other and not torch.equal(_bytes(value), _bytes(other)):
                raise ValueError(
                    f"the module ties {first[key]!r} and {name!r}, which differ in the file; untie them first"
                )
            continue
        first[key] = name
        pairs.append((tensor, value.clone() if id(value) in taken else value))
        taken.add(id(value))
    return pairs


def swap_in(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy every value into its tensor, or, if anything stops that, none.

    The values' memory holds the old contents meanwhile, so that going back costs no second copy of the model.
    """
    done: list[tuple[Tensor, Tensor]] = []
    try:
        for tensor, value in pairs:
            old = tensor.detach().clone()
            done.append((tensor, old))
            tensor.copy_(value)
            value.copy_(old)
            done[-1] = (tensor, value)
    except BaseException:
        for tensor, old in done:
            tensor.copy_(old)
        raise


def _storage(tensor: Tensor) -> object:
    return tensor.device, (id(tensor) if tensor.device.type == "meta" else tensor.untyped_storage().data_ptr())


def _bytes(value: Tensor) -> Tensor:
    return value.reshape(-1).view(torch.uint8) if value.numel() else value


def _some(items: list[str]) -> str:
    rest = f", and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + rest


def _dtype_hint(contents: Contents) -> str:
    floats = {info.dtype for info in contents.tensors.values() if info.dtype.is_floating_point}
    return str(floats.pop()) if len(floats) == 1 else "the dtypes of the file"
