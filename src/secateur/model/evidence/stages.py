"""Layers in the order in which a model runs them, and grams of some of them at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from secateur.model.batches import StepFunction, forward_of
from secateur.model.evidence.inputs import InputSums, refuse_unread
from secateur.model.evidence.products import Product, ProductWatch
from secateur.model.evidence.watching import token_mask
from secateur.model.graph.trace import slow_paths
from secateur.model.quietly import quietly
from secateur.types import Layout

__all__ = ["Sequential", "Stage", "find_stages", "stage_grams"]

Sequential: TypeAlias = bool | Literal["block"]
"""True: layers one after another, those with a common input together; ``"block"``: by the first number in their names
(``layers.3``); False: all at once."""


class _EnoughError(Exception):
    """The rest of a pass is of no interest."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Layers that are solved together.

    Attributes:
        names: of their weights.
        later: weights that come into play only when these are through; a pass may end there.
    """

    names: tuple[str, ...]
    later: frozenset[str]


@torch.no_grad()
def find_stages(
    root: nn.Module, layout: Layout, batch: Any, step: StepFunction | None, sequential: Sequential
) -> tuple[Stage, ...]:
    """The stages of a model in the order of one run; what does not run is the last of them.

    Args:
        root: an unwrapped module.
        layout: the weights.
        batch: on the model's device.
        step: runs the model instead of ``model(inputs)``.
        sequential: what counts as a stage.

    Returns:
        Every weight is in exactly one of them.
    """
    order: list[str] = []
    sums = InputSums(layout, gram=False)

    def tell(product: Product) -> None:
        order.append(product.name)
        sums.add(product)

    _pass(root, frozenset(layout), batch, step, sums, tell)
    firsts = list(dict.fromkeys([*order, *layout]))
    stages: list[list[str]] = []
    marks: list[object] = []
    for name in firsts:
        mark = _mark(name, sums, sequential)
        if not marks or mark != marks[-1]:
            stages.append([])
            marks.append(mark)
        stages[-1].append(name)
    begins = {name: order.index(name) for name in set(order)}
    ends = {name: len(order) - 1 - order[::-1].index(name) for name in set(order)}
    made: list[Stage] = []
    for names in stages:
        end = max((ends.get(name, len(order)) for name in names), default=len(order))
        made.append(Stage(tuple(names), frozenset(name for name, begin in begins.items() if begin > end)))
    return tuple(made)


@torch.no_grad()
def stage_grams(
    root: nn.Module, layout: Layout, batches: Iterable[Any], step: StepFunction | None, stage: Stage
) -> InputSums:
    """Grams of the inputs of one stage, as the model is now.

    Args:
        root: an unwrapped module.
        layout: the weights.
        batches: on the model's device.
        step: runs the model instead of ``model(inputs)``.
        stage: of ``find_stages``.

    Returns:
        Their sums.

    Raises:
        ValueError: for weights that go into the network by another way than products of whole rows with inputs.
    """
    sums = InputSums({name: layout[name] for name in stage.names}, gram=True)

    def tell(product: Product) -> None:
        if product.name in stage.later:
            raise _EnoughError
        sums.add(product)

    for batch in batches:
        _pass(root, frozenset(stage.names) | stage.later, batch, step, sums, tell)
    return sums


def _pass(
    root: nn.Module,
    names: frozenset[str],
    batch: Any,
    step: StepFunction | None,
    sums: InputSums,
    tell: Callable[[Product], None],
) -> None:
    sums.begin()
    watch = ProductWatch(root, names, token_mask(batch), tell)
    with quietly(root), slow_paths(), suppress(_EnoughError), watch:  # all layers of the stage were seen
        forward_of(root, batch, step)
    sums.commit()
    refuse_unread(sums, names, watch.unread, watch.misread)


def _mark(name: str, sums: InputSums, sequential: Sequential) -> object:
    if sequential is True:
        return sums.shared(name)
    return _block(name.split(".")) if sequential == "block" else None


def _block(path: Sequence[str]) -> tuple[str, ...]:
    number = next((at for at, part in enumerate(path) if part.isdigit()), len(path) - 1)
    return tuple(path[: number + 1])
