"""A model as it was at one step of its training, with what the optimizer knew."""

from __future__ import annotations

import copy
import os
import pickle
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.io.atomic import replacing
from secateur.model.names import unwrap
from secateur.model.sharding import local

__all__ = ["Snapshot", "load_optimizer", "model_tensors", "own_tensors", "put_tensors", "read_file", "write_file"]

_KIND = "secateur snapshot 1"


@dataclass(frozen=True, eq=False)
class Snapshot:
    """What ``fit(keep=...)`` kept of one step: rewinding starts from it.

    Args:
        step: optimizer steps made so far; 0: before the first.
        model: name -> parameter or buffer.
        optimizer: its ``state_dict()``.
        scheduler: the scheduler's ``state_dict()``; empty for named schedules.
        random: the random states, so that dropout goes on as it did.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> Snapshot(0, model_tensors(net)).model["bias"].shape
        torch.Size([1])
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any] = field(default_factory=dict[str, Any])
    scheduler: dict[str, Any] = field(default_factory=dict[str, Any])
    random: dict[str, Any] = field(default_factory=dict[str, Any])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the snapshot to a file, as one step.

        Args:
            path: of the file; its folder must exist.
        """
        write_file(path, _KIND, self.to_record())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Snapshot:
        """Read it back; nothing in the file is run.

        Raises:
            ValueError: for a file that is cut, damaged or something else.
        """
        return cls(**read_file(path, _KIND))

    def to_record(self) -> dict[str, Any]:
        """The parts by name: tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "random": self.random,
        }


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers, also of buffers that a state dict leaves out.

    Args:
        model: wrapped or not.

    Returns:
        Name -> tensor of its own.

    Raises:
        ValueError: for a module that keeps further state, which would be lost.
    """
    return {name: tensor.detach().clone() for name, tensor in own_tensors(model).items()}


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers themselves, sharing the model's memory.

    Raises:
        ValueError: for a module that keeps further state, which would be lost.
    """
    root = unwrap(model)
    modules = cast("Iterator[tuple[str, nn.Module]]", root.named_modules())
    for name, module in modules:
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise ValueError(
                f"{name or type(module).__name__!r} keeps state beside its tensors (get_extra_state), which snapshots "
                "and checkpoints would lose; train without keep=, snapshot= and checkpoint="
            )
    named = [*root.named_parameters(), *root.named_buffers()]
    return {name: local(tensor).detach() for name, tensor in named}


def put_tensors(model: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy tensors into the model, in place; all are checked before the first is touched.

    Args:
        model: wrapped or not.
        tensors: as ``model_tensors`` gave them.
        source: where they come from, for messages.

    Raises:
        ValueError: if names or shapes differ.
    """
    mine = own_tensors(model)
    missing, extra = sorted(set(mine) - set(tensors)), sorted(set(tensors) - set(mine))
    if missing or extra:
        told = [f"{title} {', '.join(names[:4])}" for title, names in (("without", missing), ("with", extra)) if names]
        raise ValueError(f"{source} is of another model: {', and '.join(told)}")
    for name, tensor in mine.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{source} is of another model: {name!r} has shape {tuple(tensors[name].shape)} there, "
                f"{tuple(tensor.shape)} here"
            )
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])


def load_optimizer(optimizer: Optimizer, state: dict[str, Any], source: str, *, rates: bool) -> None:
    """Give an optimizer what it knew, as a copy.

    Args:
        optimizer: a new one.
        state: a ``state_dict()``; an empty one changes nothing.
        source: where it comes from, for messages.
        rates: take learning rates and other settings over too, instead of keeping those of the optimizer.

    Raises:
        ValueError: if it is of another optimizer.
    """
    if not state:
        return
    theirs, mine = cast("list[dict[str, Any]]", state["param_groups"]), optimizer.state_dict()["param_groups"]
    settings = [[set(group) - {"initial_lr"} for group in groups] for groups in (theirs, mine)]
    sizes = [[len(group["params"]) for group in groups] for groups in (theirs, mine)]
    if settings[0] != settings[1] or sizes[0] != sizes[1]:
        raise ValueError(
            f"{source} is of another optimizer: its groups hold {sizes[0]} parameters with {sorted(settings[0][0])}, "
            f"{type(optimizer).__name__} has {sizes[1]} with {sorted(settings[1][0])}"
        )
    groups = theirs if rates else mine
    optimizer.load_state_dict(copy.deepcopy({"state": state["state"], "param_groups": groups}))


def write_file(path: str | os.PathLike[str], kind: str, content: dict[str, Any]) -> None:
    """Write tensors and plain values as one step: a reader sees the old file or the new one."""
    with replacing(path) as file:
        torch.save({"kind": kind, "content": content}, file)


def read_file(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """What ``write_file`` wrote, on the processor.

    Raises:
        ValueError: for a file that is cut or damaged, and for one of another kind.
    """
    where, what = os.fspath(path), kind.rsplit(" ", 1)[0]
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            found: Any = torch.load(path, map_location="cpu", weights_only=True)
        else:
            found = None
    except (zipfile.BadZipFile, EOFError, pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(
            f"{where} is no {what}, or was cut: {str(error).splitlines()[0]}. Move it away, or give another path"
        ) from error
    if damaged is not None:
        raise ValueError(f"{where} is damaged: its part {damaged!r} has another checksum. Move it away and start anew")
    if not isinstance(found, dict) or cast("dict[str, Any]", found).get("kind") != kind:
        raise ValueError(f"{where} is a torch file, but no {what} of this version; give another path")
    return cast("dict[str, Any]", found)["content"]
