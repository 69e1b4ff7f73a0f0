"""Whole layers out of a stack: of any model, and of those of ``transformers`` with the configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import nn

from secateur.integrations.configs import rebuilt_with_layers
from secateur.model.graph.depth import Block, find_blocks, influence, remove_blocks
from secateur.model.graph.examples import as_examples
from secateur.model.names import unwrap

__all__ = ["find_stack", "find_stacks", "least_influential", "remove_layers"]


def find_stacks(model: nn.Module, example_inputs: Any, *, exact: bool = True) -> dict[str, list[Block]]:
    """The lists of equal blocks that a model runs one after another.

    Args:
        model: any module; wrappers are looked through.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
        exact: blocks that can go exactly; False: all that keep the shape of their input.

    Returns:
        Name of the ``nn.ModuleList`` or ``nn.Sequential`` -> its blocks; lists inside blocks are left out.

    Example:
        >>> import torch
        >>> find_stacks(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2), exact=False)[""][1].name
        '1'
    """
    stacks = _all_stacks(model, example_inputs, exact=exact)
    modules = dict(unwrap(model).named_modules())
    # A sequence with one such block (a stem, a stage, a head) is no stack.
    real = {n: s for n, s in stacks.items() if len(s) > 1 or isinstance(modules[n], nn.ModuleList)}
    outer = {block.name for blocks in real.values() for block in blocks}
    return {n: s for n, s in real.items() if not any(n == name or n.startswith(f"{name}.") for name in outer)}


def _all_stacks(model: nn.Module, example_inputs: Any, *, exact: bool) -> dict[str, list[Block]]:
    stacks: dict[str, list[Block]] = defaultdict(list)
    for block in find_blocks(model, example_inputs, exact=exact).values():
        if block.stack is not None:
            stacks[block.stack].append(block)
    return dict(stacks)


def find_stack(
    model: nn.Module, example_inputs: Any, stack: str | None = None, *, exact: bool = True
) -> tuple[list[Block], int]:
    """The one stack that is meant.

    Args:
        model: any module; wrappers are looked through.
        example_inputs: see ``find_stacks``.
        stack: its name; None where a model has one.
        exact: see ``find_stacks``.

    Returns:
        ``(blocks that can go, number of all blocks in the stack)``.

    Raises:
        ValueError: if there is none, or which of several is meant is not said.

    Example:
        >>> import torch
        >>> find_stack(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), torch.zeros(1, 2), exact=False)[1]
        2
    """
    root = unwrap(model)
    stacks = (find_stacks if stack is None else _all_stacks)(root, example_inputs, exact=exact)
    name = next(iter(stacks)) if stack is None and len(stacks) == 1 else stack
    if name is not None and name in stacks:
        return stacks[name], len(root.get_submodule(name)._modules)
    if stacks:
        raise ValueError(f"stack={stack!r}: the model has the stacks {list(stacks)}; name one of them to remove_layers")
    inexact = list(find_stacks(root, example_inputs, exact=False)) if exact else []
    raise ValueError(
        "no stack of layers that return their input when they are silent was found"
        + (
            f"; those of {inexact} have no identity shortcut, or end in a norm over the sum: exact=False"
            * bool(inexact)
        )
    )


def remove_layers(
    model: nn.Module, layers: Sequence[int], *, example_inputs: Any, stack: str | None = None, exact: bool = True
) -> Any:
    """Take whole layers out of a stack; the model gets shallower, and nothing else changes its shape.

    The result computes what the model computes when those layers return their input: with a residual connection, when
    their branches are zero. Layers are renumbered, also where attention remembers its place in the key/value cache.
    Of a ``transformers`` model the configuration follows (number of layers, lists with an entry per layer), and the
    result is an instance that its class builds from it: ``save_pretrained`` and ``from_pretrained`` give it back.

    Args:
        model: any module; it is not changed.
        layers: numbers of the layers to remove; negative ones count from the end.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
        stack: the name of the list, where a model has several (``"decoder.block"``).
        exact: False also removes layers that end in a norm over the sum (BERT), where leaving a layer out is not the
            same as silencing it.

    Returns:
        The shallower model.

    Raises:
        ValueError: for unknown layers or stacks, if no layer would stay, if the probe fails, or if the configuration
            cannot describe the result (a first layer that holds what all of them use).

    Example:
        >>> import torch
        >>> class Residual(nn.Linear):
        ...     def forward(self, input):
        ...         return input + super().forward(input)
        >>> net = nn.Sequential(nn.Linear(2, 4), nn.Sequential(Residual(4, 4), Residual(4, 4)))
        >>> remove_layers(net, [0], example_inputs=torch.zeros(1, 2), stack="1")[1]
        Sequential(
          (0): Identity()
          (1): Residual(in_features=4, out_features=4, bias=True)
        )
    """
    root = unwrap(model)
    blocks, count = find_stack(root, example_inputs, stack, exact=exact)
    place = blocks[0].stack
    assert place is not None
    numbers = _numbers(layers, count, [block.index for block in blocks], place)
    names = [block.name for block in blocks if block.index in numbers]
    small = remove_blocks(root, names, example_inputs=example_inputs, exact=exact)
    if hasattr(root, "config") and hasattr(root, "save_pretrained"):
        kept = [index for index in range(count) if index not in numbers]
        return rebuilt_with_layers(small, count, kept, as_examples(example_inputs))
    return small


def least_influential(
    model: nn.Module, count: int, *, example_inputs: Any, stack: str | None = None, exact: bool = True
) -> list[int]:
    """The numbers of the layers that turn their input least, the least first.

    Args:
        model: any module.
        count: how many.
        example_inputs: typical inputs, not noise.
        stack: see ``remove_layers``.
        exact: see ``remove_layers``.

    Returns:
        Numbers of layers.

    Reference:
        Men et al. 2024, arXiv 2403.03853.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.PReLU(), nn.PReLU())
        >>> _ = net[0].weight.data.copy_(-torch.eye(2))
        >>> least_influential(net, 1, example_inputs=torch.ones(1, 2), exact=False)
        [1]
    """
    blocks, _ = find_stack(model, example_inputs, stack, exact=exact)
    scores = influence(model, [block.name for block in blocks], example_inputs)
    return [block.index for block in sorted(blocks, key=lambda block: (scores[block.name], block.index))[:count]]


def _numbers(layers: Sequence[int], count: int, known: Sequence[int], stack: str) -> set[int]:
    wrong = [one for one in layers if type(one) is not int or not -count <= one < count]
    if wrong:
        raise ValueError(f"layers={list(layers)}: {stack!r} has {count} layers, 0 to {count - 1}")
    numbers = {one % count for one in layers}
    other = sorted(numbers - set(known))
    if other:
        raise ValueError(f"layers {other} of {stack!r} cannot go; {sorted(known)} can")
    if len(numbers) == count:
        raise ValueError(f"layers={list(layers)} names all {count} layers of {stack!r}: at least one has to stay")
    return numbers
