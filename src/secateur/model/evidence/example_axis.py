"""Along which axis of a tensor inside the model its examples lie: tried by exchanging one example for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.graph.examples import mapped, tensors_in

__all__ = ["FIXED_SIZE", "ExampleAxis", "axis_of", "count_examples", "example_axes", "exchanges"]


@dataclass(frozen=True, slots=True)
class ExampleAxis:
    """Where examples lie.

    Attributes:
        axis: of the tensor.
        interleaved: with several rows for each example, the first rows of all come before the second ones
            (``[T, B, C]`` flattened); else each example has its rows in one run.
    """

    axis: int = 0
    interleaved: bool = False

    def spread(self, given: Tensor, rows: int) -> Tensor:
        """``[examples, ...]`` -> ``[rows, ...]``."""
        if self.interleaved:
            return given.repeat(rows // given.shape[0], *[1] * (given.dim() - 1))
        return given.repeat_interleave(rows // given.shape[0], 0)

    def gather(self, values: Tensor, size: int, last: tuple[int, ...]) -> Tensor:
        """Examples first, some axes last in one: ``[examples, ..., last]``; further rows of an example are an axis.

        Args:
            values: any tensor that has examples along this axis.
            size: how many examples.
            last: other axes.
        """
        between = [axis for axis in range(values.dim()) if axis != self.axis and axis not in last]
        turned = values.permute(self.axis, *between, *last)
        turned = turned.reshape(*turned.shape[: 1 + len(between)], -1)
        if self.interleaved:
            return turned.reshape(-1, size, *turned.shape[1:]).transpose(0, 1)
        return turned.reshape(size, -1, *turned.shape[1:])


def count_examples(batch: Any) -> int:
    """How many examples a batch has: the length of its first tensor, with which labels have to agree.

    Raises:
        ValueError: where there is none, or labels have another length.
    """
    first = next(tensors_in(batch), None)
    if first is None or first.dim() == 0:
        raise ValueError("what is told apart by example needs a batch of tensors with examples along their first axis")
    if isinstance(batch, (tuple, list)) and len(batch) == 2:  # pyright: ignore[reportUnknownArgumentType]
        labels: Any = batch[1]  # pyright: ignore[reportUnknownVariableType]
        if isinstance(labels, Tensor) and labels.dim() and labels.shape[0] != first.shape[0]:
            raise ValueError(
                f"inputs of shape {tuple(first.shape)} come with labels of shape {tuple(labels.shape)}; examples have "
                "to lie along the first axis of both"
            )
    return first.shape[0]


def example_axes(
    batch: Any, run: Callable[[Any], Any], seen: Mapping[str, tuple[nn.Module, bool]]
) -> dict[str, ExampleAxis]:
    """Run two examples, and the second of them twice: what is another then belongs to the first.

    Args:
        batch: examples along the first axis of its tensors.
        run: runs the model on a batch.
        seen: name -> module, and whether its first input is meant, else its output.

    Returns:
        Name -> axis; the first axis where both examples are alike.

    Raises:
        ValueError: where the first example shows nowhere apart from the second.
    """
    for both, twice, size in exchanges(batch):
        tensors: list[dict[str, Tensor]] = []
        try:
            for rows in (both, twice):
                with torch.no_grad(), _listening(seen) as found:
                    run(rows)
                tensors.append(found)
        except FIXED_SIZE:
            if size == count_examples(batch):
                raise
            continue  # a model of one batch size: the whole batch is tried next
        one, other = tensors
        return {name: axis_of(name, one[name], other[name], size) for name in seen if name in one and name in other}
    return {name: ExampleAxis() for name in seen}


FIXED_SIZE = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
"""What a model of one batch size raises at another."""


def exchanges(batch: Any) -> Iterator[tuple[Any, Any, int]]:
    """Two batches that differ in their first example alone, and how many examples they have; then larger ones.

    Nothing comes of a batch with one example.
    """
    size = count_examples(batch)
    for taken in dict.fromkeys((min(2, size), size)):
        if taken > 1:
            pick = torch.arange(taken)
            yield _rows(batch, size, pick), _rows(batch, size, pick.clamp(min=1)), taken


def _rows(batch: Any, size: int, pick: Tensor) -> Any:
    return mapped(batch, lambda t: t[pick.to(t.device)] if t.dim() and t.shape[0] == size else t)


@contextmanager
def _listening(seen: Mapping[str, tuple[nn.Module, bool]]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}

    def before(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, kwargs: Any) -> None:
            found[name] = next(tensors_in((inputs, kwargs))).detach().clone()

        return hook

    def behind(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            found[name] = output.detach().clone()

        return hook

    handles = [
        module.register_forward_pre_hook(before(name), with_kwargs=True)
        if reads
        else module.register_forward_hook(behind(name))
        for name, (module, reads) in seen.items()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def axis_of(name: str, both: Tensor, twice: Tensor, size: int) -> ExampleAxis:
    """Where the first of several examples lies, from two tensors that differ in it alone.

    Args:
        name: of the place, for the message.
        both: seen with all examples.
        twice: seen with the second example in place of the first.
        size: how many examples there are.

    Raises:
        ValueError: where the first example shows nowhere apart from the others.
    """
    differs = both != twice if both.shape == twice.shape else torch.ones(1, dtype=torch.bool)
    if not bool(differs.any()):
        return ExampleAxis()
    for axis in range(differs.dim()):
        rows = differs.shape[axis]
        changed = differs.movedim(axis, 0).flatten(1).any(1)
        if rows % size:
            continue
        if not bool(changed[rows // size :].any()):
            return ExampleAxis(axis)
        if not bool(changed.view(-1, size)[:, 1:].any()):
            return ExampleAxis(axis, interleaved=True)
    raise ValueError(
        f"the examples of a batch cannot be told apart at {name!r}, which sees {tuple(both.shape)} for {size} of them: "
        "they mix there, or lie along no axis. Take a criterion that does not ask for examples: gate_taylor, or apoz"
    )
