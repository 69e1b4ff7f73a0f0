"""A user's model as one graph of torch's own operators, with shapes, without running anything of it later."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateur.deploy.pack.functional import made_functional
from secateur.model.quietly import quietly

__all__ = ["Example", "capture", "example_of"]

Example = tuple[tuple[Any, ...], dict[str, Any]]


def example_of(example_inputs: Any) -> Example:
    """Arguments of a call: a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), {str(name): value for name, value in example_inputs.items()}
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    raise ValueError(
        f"example_inputs: expected a tensor, a tuple of arguments or a mapping of keywords, got {type(example_inputs)}"
    )


def capture(model: nn.Module, example: Example) -> fx.GraphModule:
    """Export a model in eval mode, any number of samples, operators without side effects.

    Args:
        model: left as it was; the graph shares its parameters.
        example: what to call it with.

    Returns:
        A graph module with the shape of every value in ``node.meta["val"]``.

    Raises:
        ValueError: `torch.export` cannot follow the model; its reason is the cause.
    """
    arguments, keywords = example
    doubled = tuple(_two_samples(value) for value in arguments), {k: _two_samples(v) for k, v in keywords.items()}
    shapes = tuple(_free_axes(value) for value in doubled[0]), {k: _free_axes(v) for k, v in doubled[1].items()}
    try:
        with quietly(model), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.export warns of its own deprecations
            program = torch.export.export(model, doubled[0], doubled[1], dynamic_shapes=_joined(shapes), strict=False)
            module = program.module(check_guards=False)
            if not (isinstance(module, fx.GraphModule) and made_functional(module)):
                module = program.run_decompositions({}).module(check_guards=False)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot follow {type(model).__name__}: {str(error).strip().splitlines()[0]}; "
            "pack the parts that it can follow, or keep the model dense"
        ) from error
    assert isinstance(module, fx.GraphModule)
    return module


def _joined(shapes: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    positional, named = shapes
    if not named:
        return positional
    if not positional:
        return named
    raise ValueError("example_inputs: give all arguments by position or all by name")


def _two_samples(value: Any) -> Any:
    """One sample would make the exporter take the number of samples for a constant."""
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and len(value) == 1 else value


def _free_axes(value: Any) -> Any:
    """The axes whose length may change from call to call: samples, and places of sequences."""
    if not isinstance(value, Tensor) or not value.ndim:
        return None
    sequence = value.ndim == 3 or (value.ndim == 2 and not value.is_floating_point())
    return dict.fromkeys((0, 1) if sequence else (0,), torch.export.Dim.AUTO)
