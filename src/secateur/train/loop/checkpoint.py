"""Checkpoints of a training: written as one step, continued only by the run that they are of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from secateur.model.masks import Masks
from secateur.model.packed import unpack_units
from secateur.train.loop.snapshot import own_tensors, read_file, write_file
from secateur.train.loop.training import Training
from secateur.train.pruner import Pruner

__all__ = ["Checkpoint", "check_masks", "check_place", "check_plain", "run_identity"]

_KIND = "secateur training checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """The file of one run.

    Args:
        path: of the file.
        every: optimizer steps between two writings; None: each epoch's end.
        identity: what makes the run, as text.
    """

    path: Path
    every: int | None
    identity: Mapping[str, str]

    def read(self) -> dict[str, Any] | None:
        """The state that the file holds; None where there is no file.

        Raises:
            ValueError: for a file that is cut, or that belongs to another run, with what differs.
        """
        if not self.path.exists():
            return None
        found = read_file(self.path, _KIND)
        there = cast("dict[str, str]", found["identity"])
        keys = dict.fromkeys([*self.identity, *there])
        told = [
            f"{key}: {there.get(key, 'nothing')} there, {self.identity.get(key, 'nothing')} here"
            for key in keys
            if there.get(key) != self.identity.get(key)
        ]
        if told:
            raise ValueError(
                f"{self.path} is the checkpoint of another run; {'; '.join(told[:6])}. Give another checkpoint=, or "
                "delete the file to begin anew"
            )
        return cast("dict[str, Any]", found["state"])

    def write(self, state: Mapping[str, Any]) -> None:
        """Replace the file as one step.

        Raises:
            ValueError: for state that could not be read back, such as a scheduler's own objects.
        """
        check_plain(state, "state")
        write_file(self.path, _KIND, {"identity": dict(self.identity), "state": dict(state)})


def run_identity(
    training: Training, pruner: Pruner | None, masks: Masks | None, model: nn.Module, others: Mapping[str, object]
) -> dict[str, str]:
    """What makes a run, as text: a checkpoint of a run that differs in any of it is refused.

    Args:
        training: every choice of it.
        pruner: every choice of its plan.
        masks: of the model.
        model: names, shapes and types of its tensors.
        others: further choices.
    """
    identity = {f"training.{key}": value for key, value in training.describe().items()}
    identity |= {key: str(value) for key, value in others.items()}
    if pruner is not None:
        identity |= {f"plan.{key}": value for key, value in pruner.plan.describe().items()}
    elif masks is not None:
        identity["masks by unit"] = masks.unit.spec
    for name, tensor in own_tensors(model).items():
        identity[f"model.{name}"] = f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    return identity


def check_place(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint, where one can be written.

    Raises:
        ValueError: where its folder does not exist or cannot be written to: now, not after the first epoch.
    """
    place = Path(path)
    folder = place.parent
    if not folder.is_dir():
        raise ValueError(f"checkpoint={os.fspath(path)!r}: the folder {str(folder)!r} does not exist; create it first")
    if place.is_dir():
        raise ValueError(f"checkpoint={os.fspath(path)!r} is a folder; give the name of a file in it")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"checkpoint={os.fspath(path)!r}: the folder {str(folder)!r} cannot be written to")
    return place


def check_masks(state: Mapping[str, Any], masks: Masks, path: Path, *, same: bool) -> None:
    """Make sure that a checkpoint's masks are of the same tensors, and where asked the same.

    Raises:
        ValueError: if they are not.
    """
    there = unpack_units(state["units"])
    if set(there) != set(masks.unit_masks):
        raise ValueError(
            f"{path} is the checkpoint of another run: it masks {sorted(there)[:4]}, here are masks of "
            f"{sorted(masks.unit_masks)[:4]}"
        )
    other = [name for name, mask in masks.unit_masks.items() if not torch.equal(mask, there[name])]
    if same and other:
        name = other[0]
        raise ValueError(
            f"{path} is the checkpoint of another run: its masks differ in {', '.join(other[:4])} ({name} keeps "
            f"{int(there[name].sum())} units there, {int(masks.unit_masks[name].sum())} here). Give another "
            "checkpoint=, or delete the file to begin anew"
        )


def check_plain(value: object, where: str) -> None:
    """Make sure that a checkpoint can be read back without running code: tensors and plain values only.

    Raises:
        ValueError: for anything else, with the place where it stands.
    """
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return
    if isinstance(value, dict):
        for key, each in cast("dict[Any, Any]", value).items():
            check_plain(key, where)
            check_plain(each, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, each in enumerate(cast("list[Any]", value)):
            check_plain(each, f"{where}[{place}]")
    else:
        raise ValueError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold safely: train without checkpoint=, "
            "or with an optimizer and an lr_schedule whose state_dict() holds tensors and plain values"
        )
