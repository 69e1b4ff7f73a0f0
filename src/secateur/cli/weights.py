"""Weights from a file into a model: a secateur file, a plain safetensors file, or a torch checkpoint of tensors."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["check_folder", "fill", "is_secateur_file", "read_plan", "read_tensors", "starts_like_a_checkpoint"]

_LISTED = 4


def fill(model: nn.Module, path: Path) -> None:
    """Load the weights in place; masks of a secateur file are registered for the model.

    Args:
        model: made by the user's factory.
        path: file.

    Raises:
        ValueError: if there is no such file, or names, shapes or dtypes are not the model's.
    """
    from secateur.deploy import load

    if is_secateur_file(path):
        load(path, into=model)
        return
    given, own = read_tensors(path), model.state_dict()
    first = {_storage(own[name]): name for name in own if name in given}
    for name, tensor in own.items():  # a plain file stores tied tensors once
        if name not in given and tensor.numel() and _storage(tensor) in first:
            given[name] = given[first[_storage(tensor)]]
    wrong = [f"{name} is missing" for name in own if name not in given]
    wrong += [f"{name} is not in the model" for name in given if name not in own]
    wrong += [
        f"{name} is {_kind(given[name])}, in the model {_kind(own[name])}"
        for name in own
        if name in given and _kind(given[name]) != _kind(own[name])
    ]
    if wrong:
        more = f", and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
        raise ValueError(f"{path} does not fit {type(model).__name__}: {'; '.join(wrong[:_LISTED])}{more}")
    model.load_state_dict(given)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, dense on the CPU; nothing in it is executed.

    Args:
        path: a secateur file, plain safetensors, or a checkpoint for ``torch.load(weights_only=True)``.

    Returns:
        Name -> tensor.

    Raises:
        ValueError: if the file is missing, none of these, or holds more than tensors.
    """
    import torch
    from safetensors.torch import load_file

    from secateur.deploy import load_bundle

    if is_secateur_file(path):
        return dict(load_bundle(path).tensors)
    if not starts_like_a_checkpoint(path):
        return load_file(path)  # a whole one, as is_secateur_file has checked
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of tensors alone, and nothing else is loaded, since it could run code; "
            "write one with torch.save(model.state_dict(), path)"
        ) from error
    return _tensors_alone(path, state)


def read_plan(path: Path) -> Mapping[str, Any] | None:
    """The plan in the header of a secateur file; None where there is none."""
    from secateur.io import read_contents

    return read_contents(path).plan if is_secateur_file(path) else None


def is_secateur_file(path: Path) -> bool:
    """Whether a file has this library's record in its header: of weights, or of a packed model.

    Raises:
        ValueError: if there is no such file, or it is no whole safetensors file.
    """
    from secateur.deploy.pack.saving import KEY
    from secateur.io.container import parse_header

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file" + (" (it is a folder)" if path.is_dir() else ""))
    if starts_like_a_checkpoint(path):
        return False
    with path.open("rb") as file:
        try:
            return not {"secateur", KEY}.isdisjoint(parse_header(file).metadata)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def check_folder(path: Path) -> None:
    """Refuse an output file whose folder is missing, before the work is done.

    Raises:
        ValueError: naming the folder.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file to write")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: its folder {path.parent} does not exist; make it first")


def starts_like_a_checkpoint(path: Path) -> bool:
    """Whether a file begins like one of ``torch.save``, which is a zip archive or a pickle."""
    with path.open("rb") as file:
        return file.read(4).startswith((b"PK\x03\x04", b"\x80\x02"))


def _tensors_alone(path: Path, state: Any) -> dict[str, Tensor]:
    from torch import Tensor

    if isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values()):
        return dict(state)
    inside = f"the keys {', '.join(map(str, list(state)[:6]))}" if isinstance(state, Mapping) else type(state).__name__
    raise ValueError(f"{path}: holds {inside}, not named tensors alone; save the state dict by itself")


def _storage(tensor: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
