"""Example inputs: in, copied, at other batch sizes, and the tensors of any output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Example", "as_examples", "call", "elements", "mapped", "resized", "tensors_in"]


@dataclass(frozen=True)
class Example:
    """Arguments of one call of the model."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def as_examples(given: Any) -> list[Example]:
    """What a user gives as ``example_inputs``.

    Args:
        given: a tensor, a tuple of positional arguments, a mapping of keyword arguments, or a list of those (one per
            branch of a model that decides by its data).

    Raises:
        ValueError: if nothing is given, or something that cannot be an input.

    Example:
        >>> [example.args[0].shape for example in as_examples(torch.zeros(2, 3))]
        [torch.Size([2, 3])]
    """
    if isinstance(given, list):
        if not given:
            raise ValueError("example_inputs=[] holds no example; give a tensor, a tuple, a dict, or a list of those")
        return [one for each in given for one in as_examples(each)]
    if isinstance(given, Example):
        return [given]
    if isinstance(given, Tensor):
        return [Example((given,))]
    if isinstance(given, tuple):
        return [Example(given)]
    if isinstance(given, Mapping):
        return [Example((), dict(given))]
    raise ValueError(
        f"example_inputs= is {type(given).__name__}: give the model's input tensor, a tuple of positional arguments, "
        "a dict of keyword arguments, or a list with one of these per branch of the model"
    )


def call(model: nn.Module, example: Example) -> Any:
    """Run the model on an example."""
    return model(*example.args, **example.kwargs)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists, mappings and data classes, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))


def elements(example: Example) -> int:
    """Of all tensors of an example."""
    return sum(tensor.numel() for tensor in tensors_in((example.args, example.kwargs)))


def resized(example: Example, batch: int) -> Example:
    """The example at another batch size: its rows repeated or left out.

    The batch axis is the first axis of every tensor whose length there is that of the first tensor.
    """
    first = next(tensors_in((example.args, example.kwargs)), None)
    if first is None or first.dim() == 0:
        return example
    size = first.shape[0]

    def change(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != size:
            return tensor.clone()
        repeats = -(-batch // size)
        return torch.cat([tensor] * repeats)[:batch].clone() if repeats > 1 else tensor[:batch].clone()

    return Example(mapped(example.args, change), mapped(example.kwargs, change))


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples, lists and mappings with every tensor in them changed."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, function) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, function) for item in value)
    return value
