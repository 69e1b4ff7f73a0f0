"""Layers in the order in which a model runs them, and grams of some of them at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from secateur.model.batches import StepFunction, forward_of
from secateur.model.edited import holding
from secateur.model.evidence.input_sums import InputSums, refuse_unread
from secateur.model.evidence.products import Product, ProductWatch
from secateur.model.evidence.watching import token_mask
from secateur.model.graph.trace import slow_paths, tensor_names
from secateur.model.quietly import quietly
from secateur.types import Layout

__all__ = ["Sequential", "Stage", "find_stages", "own_biases", "stage_grams", "stage_pairs"]

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
    if sequential not in (True, False, "block"):
        raise ValueError(f"sequential={sequential!r}: take True (layer by layer), 'block', or False (all at once)")
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


@torch.no_grad()
def stage_pairs(
    root: nn.Module,
    layout: Layout,
    batches: Iterable[Any],
    step: StepFunction | None,
    stage: Stage,
    dense: Mapping[str, Tensor],
) -> InputSums:
    """Sums of ``z z^T`` of one stage, ``z = (x', x, 1)``: x' are its inputs now, x those in the dense model.

    Args:
        root: an unwrapped module; it holds the dense values for the moment.
        layout: the weights.
        batches: on the model's device.
        step: runs the model instead of ``model(inputs)``.
        stage: of ``find_stages``.
        dense: parameters and buffers that were changed -> what they were.

    Returns:
        Their sums.

    Raises:
        ValueError: where a layer is called otherwise in the pruned model than in the dense one.
    """
    sums = InputSums({name: layout[name] for name in stage.names}, gram=True, pairs=True)
    names = frozenset(stage.names) | stage.later
    for batch in batches:
        found: list[list[Product]] = []
        for values in (dense, {}):
            seen: list[Product] = []

            def tell(product: Product, seen: list[Product] = seen) -> None:
                if product.name in stage.later:
                    raise _EnoughError
                seen.append(replace(product, values=product.values.clone()))  # it may be overwritten later in the pass

            with holding(root, values):
                _watched(root, names, batch, step, tell)
            found.append(seen)
        sums.begin()
        for product in _side_by_side(*found):
            sums.add(product)
        sums.commit()
    return sums


def own_biases(root: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Weight -> the bias of its layer; not those that other weights have too, which cannot serve one of them.

    Example:
        >>> own_biases(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False)), ["0.weight", "1.weight"])
        {'0.weight': '0.bias'}
    """
    tensors = tensor_names(root)
    uses = Counter(id(tensor) for _, tensor in root.named_parameters(remove_duplicate=False))
    named = {name: f"{name.removesuffix('weight')}bias" for name in names if name.endswith("weight")}
    return {
        name: bias
        for name, bias in named.items()
        if bias in tensors and uses[id(tensors[bias])] == uses[id(tensors[name])]
    }


def _side_by_side(then: Sequence[Product], now: Sequence[Product]) -> Iterator[Product]:
    places = [[(one.name, one.start, one.stop, one.values.shape) for one in seen] for seen in (then, now)]
    if places[0] != places[1]:
        raise ValueError(
            "the pruned model calls its layers otherwise than the dense one (experts that were chosen anew?), so their "
            "inputs cannot be compared; take match='layer'"
        )
    for old, new in zip(then, now, strict=True):
        yield replace(new, values=torch.cat([new.values, old.values], 1))


def _pass(
    root: nn.Module,
    names: frozenset[str],
    batch: Any,
    step: StepFunction | None,
    sums: InputSums,
    tell: Callable[[Product], None],
) -> None:
    sums.begin()
    watch = _watched(root, names, batch, step, tell)
    sums.commit()
    refuse_unread(sums, names, watch.unread, watch.misread)


def _watched(
    root: nn.Module, names: frozenset[str], batch: Any, step: StepFunction | None, tell: Callable[[Product], None]
) -> ProductWatch:
    watch = ProductWatch(root, names, token_mask(batch), tell)
    with quietly(root), slow_paths(), suppress(_EnoughError), watch:  # all layers of the stage were seen
        forward_of(root, batch, step)
    return watch


def _mark(name: str, sums: InputSums, sequential: Sequential) -> object:
    if sequential is True:
        return sums.shared(name)
    return _block(name.split(".")) if sequential == "block" else None


def _block(path: Sequence[str]) -> tuple[str, ...]:
    number = next((at for at, part in enumerate(path) if part.isdigit()), len(path) - 1)
    return tuple(path[: number + 1])
