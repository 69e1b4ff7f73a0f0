"""Along which axis of a tensor inside the model its examples lie: tried by exchanging one example for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.graph.examples import mapped, tensors_in

__all__ = ["ExampleAxis", "count_examples", "example_axes"]


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
    size = count_examples(batch)
    if size < 2:
        return {name: ExampleAxis() for name in seen}

    def rows(first: int) -> Any:
        pick = torch.tensor([first, 1])
        return mapped(batch, lambda t: t[pick.to(t.device)] if t.dim() and t.shape[0] == size else t)

    tensors: list[dict[str, Tensor]] = []
    for first in (0, 1):
        with torch.no_grad(), _listening(seen) as found:
            run(rows(first))
        tensors.append(found)
    both, twice = tensors
    return {name: _axis(name, both[name], twice[name]) for name in seen if name in both and name in twice}


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


def _axis(name: str, both: Tensor, twice: Tensor) -> ExampleAxis:
    differs = both != twice if both.shape == twice.shape else torch.ones(1, dtype=torch.bool)
    if not bool(differs.any()):
        return ExampleAxis()
    for axis in range(differs.dim()):
        rows = differs.shape[axis]
        changed = differs.movedim(axis, 0).flatten(1).any(1)
        if rows % 2 == 0 and not bool(changed[rows // 2 :].any()):
            return ExampleAxis(axis)
        if rows % 2 == 0 and not bool(changed[1::2].any()):
            return ExampleAxis(axis, interleaved=True)
    raise ValueError(
        f"the examples of a batch cannot be told apart at {name!r}, which sees {tuple(both.shape)} for two of them: "
        "they mix there, or lie along no axis. Take gate_taylor, which has one gate for the batch"
    )
