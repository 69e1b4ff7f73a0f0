"""What goes to the processes: the network, its input and what eager torch makes of it, as files of one folder."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from secateur.measure.quiet import quiet

__all__ = ["Case", "arguments_of", "leaves", "main_needed", "main_script", "write_case"]


@dataclass(frozen=True)
class Case:
    """What a builder makes its call from. The network is read from the folder when it is first asked for.

    Attributes:
        folder: where ``write_case`` put it.
        threads: how many the runtime may use.
    """

    folder: Path
    threads: int

    @cached_property
    def model(self) -> nn.Module:
        """The network, in eval mode, without gradients."""
        model = torch.load(self.folder / "model.pt", map_location="cpu", weights_only=False)  # written by the parent
        assert isinstance(model, nn.Module)
        return model.requires_grad_(False)

    @cached_property
    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments of one call."""
        return torch.load(self.folder / "inputs.pt", map_location="cpu", weights_only=False)

    @property
    def onnx(self) -> Path:
        """The network as an ONNX file; there for runtimes whose entry says ``graph=True``."""
        return self.folder / "model.onnx"

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments under the names they have in the ONNX file.

        Raises:
            ValueError: for tensors inside lists or mappings, which would be frozen into the graph as constants.
        """
        args, kwargs = self.inputs
        named = {f"input_{place}": value for place, value in enumerate([*args, *kwargs.values()])}
        for name, value in named.items():
            if not isinstance(value, Tensor) and leaves(value):
                raise ValueError(f"{name} is a {type(value).__name__} that holds tensors; an ONNX file takes tensors")
        return {name: value.contiguous() for name, value in named.items() if isinstance(value, Tensor)}


def arguments_of(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A tensor, a tuple of positional arguments or a mapping of keyword arguments, as (args, kwargs).

    Args:
        inputs: as the user gave them.

    Returns:
        Positional and keyword arguments.

    Example:
        >>> arguments_of((1, 2)), arguments_of({"x": 1}), arguments_of(3)
        (((1, 2), {}), ((), {'x': 1}), ((3,), {}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(cast("Mapping[str, Any]", inputs))
    return cast("tuple[Any, ...]", inputs) if isinstance(inputs, tuple) else (inputs,), {}


def leaves(value: Any) -> list[Any]:
    """Every tensor and array inside tuples, lists and mappings, in order; what is neither is left out.

    Args:
        value: what a model returned.

    Returns:
        Tensors and arrays.

    Example:
        >>> leaves({"logits": torch.zeros(1), "cache": None, "states": (torch.ones(1),)})
        [tensor([0.]), tensor([1.])]
    """
    return list(_leaves(value))


def write_case(model: nn.Module, inputs: Any, folder: Path) -> list[Tensor]:
    """Write the network and its input for the processes; run it once for the outputs that all are checked against.

    Pickled whole, not exported: the processes then run the very Python code that the user runs, and a sparse runtime
    finds the modules and masks it needs; an exported graph would be another program already.

    Args:
        model: on the processor; its classes must be importable, or stand in the script that is run.
        inputs: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
        folder: an empty one.

    Returns:
        The outputs of eager torch.

    Raises:
        ValueError: if the model is elsewhere, cannot be pickled, or returns no tensor.
    """
    elsewhere = {str(t.device) for t in (*model.parameters(), *model.buffers()) if t.device.type != "cpu"}
    if elsewhere:
        raise ValueError(f"the model is on {', '.join(sorted(elsewhere))}; rivals are measured on the processor")
    args, kwargs = arguments_of(inputs)
    with quiet(model):
        reference = [torch.as_tensor(leaf).clone() for leaf in leaves(model(*args, **kwargs))]
        try:
            torch.save(model, folder / "model.pt")
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"{type(model).__name__} cannot be sent to another process: {error}; every class and function in it "
                "has to stand at the top level of a module that can be imported"
            ) from error
    torch.save((args, kwargs), folder / "inputs.pt")
    if not reference:
        raise ValueError(f"{type(model).__name__} returned no tensor, so nothing could be checked")
    return reference


def main_needed(folder: Path) -> str | None:
    """The script whose classes the pickled model names, for the processes to load; None where it names none.

    Raises:
        ValueError: if they were typed in by hand, so that there is no file.
    """
    with zipfile.ZipFile(folder / "model.pt") as archive:
        pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
    if b"c__main__\n" not in pickled:
        return None
    return main_script()


def main_script() -> str:
    """The file of the script that is run.

    Raises:
        ValueError: if there is none.
    """
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        raise ValueError("the model's classes were typed in by hand; put them into a module that can be imported")
    return str(Path(script).resolve())


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (Tensor, np.ndarray)):
        yield value
    elif isinstance(value, Mapping):
        for item in cast("Mapping[str, Any]", value).values():
            yield from _leaves(item)
    elif isinstance(value, (tuple, list)):
        for item in cast("list[Any]", value):
            yield from _leaves(item)
