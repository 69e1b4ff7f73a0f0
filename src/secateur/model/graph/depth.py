"""Depth: whole residual blocks that can go, seen by running the model, and taken out.

A block with an identity shortcut computes ``y = x + f(x)`` (or ``relu(x + f(x))`` on ``x >= 0``): with all its
parameters at zero it returns its input. That is what is asked of a block here, not what its class is called.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.graph.examples import Example, as_examples, call, tensors_in
from secateur.model.graph.probe import difference, outputs_of
from secateur.model.names import unwrap
from secateur.model.quietly import quietly

__all__ = ["Block", "find_blocks", "influence", "remove_blocks", "silenced"]

_NUMBERS = ("layer_idx", "layer_id", "layer_index", "layer_number", "block_idx")
"""Attributes under which a block, or a part of it, remembers its place in the stack."""


@dataclass(frozen=True)
class Block:
    """A module that returns what has the shape of its input.

    Attributes:
        name: of the module.
        stack: of the ``nn.ModuleList`` or ``nn.Sequential`` it is in; None: it is an attribute of its parent.
        index: its place there.
        identity: with its parameters at zero it returns its input: it can go exactly.
    """

    name: str
    stack: str | None
    index: int
    identity: bool


def find_blocks(model: nn.Module, example_inputs: Any, *, exact: bool = True) -> dict[str, Block]:
    """The modules that can be left out of a model without changing any shape; the model is not changed.

    A module counts if it has parameters, and each of its calls returns a tensor (or a tuple that starts with one) of
    the shape of its first input. Of nested ones all are named: a whole stage as well as each block in it.

    Args:
        model: any module; wrappers are looked through.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
        exact: only those that return their input when their parameters are zero: residual blocks with an identity
            shortcut. Others (a plain layer, a layer norm after the addition) change what follows when they go.

    Returns:
        Module name -> block, in the order of the modules.

    Example:
        >>> class Residual(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.inner = nn.Linear(4, 4)
        ...
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return x + self.inner(x)
        >>> net = nn.Sequential(nn.Linear(2, 4), Residual(), Residual())
        >>> list(find_blocks(net, torch.zeros(1, 2)))
        ['1', '2']
    """
    root, examples = unwrap(model), as_examples(example_inputs)
    plain = _seen(root, examples)
    probe = copy.deepcopy(root)
    modules = dict(probe.named_modules())
    found: dict[str, Block] = {}
    for name in (name for name in modules if name in plain and plain[name][0]):
        saved = [(p, p.detach().clone()) for p in modules[name].parameters()]
        if not name or not saved:
            continue
        _silence(modules[name])
        same = _seen(probe, examples, only=name)[name][1]
        for parameter, value in saved:
            parameter.data.copy_(value)
        if same or not exact:
            stack, _, index = name.rpartition(".")
            listed = isinstance(modules[stack], (nn.ModuleList, nn.Sequential)) and index.isdigit()
            place = (stack, list(modules[stack]._modules).index(index)) if listed else (None, 0)
            found[name] = Block(name, *place, same)
    return found


def remove_blocks(model: nn.Module, names: Sequence[str], *, example_inputs: Any, exact: bool = True) -> nn.Module:
    """Take whole blocks out of a copy of a model.

    In an ``nn.ModuleList`` the list gets shorter and the others are renumbered, also where they remember their place
    (``layer_idx``); elsewhere an ``nn.Identity`` takes the place. The result is compared with the model whose blocks
    have all parameters at zero, or where that is not the same, return their input.

    Args:
        model: any module; wrappers are looked through.
        names: of blocks, as ``find_blocks`` tells them.
        example_inputs: see ``find_blocks``.
        exact: refuse blocks that are not identities when they are silent.

    Returns:
        The shallower copy, without wrappers.

    Raises:
        ValueError: for names of no such block, and if the copy does not compute what the silenced model does.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> remove_blocks(net, ["1"], example_inputs=torch.zeros(1, 2), exact=False)
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): Identity()
        )
    """
    root, examples = unwrap(model), as_examples(example_inputs)
    blocks = find_blocks(root, example_inputs, exact=False)
    for name in names:
        if name not in blocks or (exact and not blocks[name].identity):
            raise ValueError(_why_not(name, blocks))
    small = copy.deepcopy(root)
    lists: dict[str, list[int]] = defaultdict(list)
    for name in dict.fromkeys(names):
        stack = blocks[name].stack
        if stack is not None and isinstance(small.get_submodule(stack), nn.ModuleList):
            lists[stack].append(blocks[name].index)
        else:
            small.set_submodule(name, nn.Identity())
    for stack, indices in lists.items():
        _shorten(small, stack, indices)
    # A block that is no identity when it is silent is compared with one whose output is replaced by its input.
    reference = silenced(root, names) if all(blocks[name].identity for name in names) else _skipping(root, names)
    for example in examples:
        try:
            got = outputs_of(small, example)
        except Exception as error:
            raise ValueError(f"nothing was changed: without {list(names)} the forward fails: {error}") from error
        problem = difference(outputs_of(reference, example), got, exact=True)
        if problem:
            raise ValueError(f"nothing was changed: without {list(names)} {problem}")
    return small


def silenced(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy of a model in which all parameters of some modules are zero; tied ones of other modules too.

    Example:
        >>> bool(silenced(nn.Sequential(nn.Linear(2, 2)), ["0"])[0].weight.any())
        False
    """
    copied = copy.deepcopy(unwrap(model))
    for name in names:
        _silence(copied.get_submodule(name))
    return copied


def _skipping(root: nn.Module, names: Sequence[str]) -> nn.Module:
    """A copy in which some modules run, and return their input all the same."""

    def skip(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:
        first = next(tensors_in((args, kwargs)))
        return (first, *output[1:]) if isinstance(output, tuple) else first

    copied = copy.deepcopy(root)
    for name in names:
        copied.get_submodule(name).register_forward_hook(skip, with_kwargs=True)
    return copied


def influence(model: nn.Module, names: Sequence[str], example_inputs: Any) -> dict[str, float]:
    """How much each block turns its input: ``1 - mean cos(x, y)`` over all places; low ones matter least.

    Args:
        model: any module; wrappers are looked through.
        names: of blocks, as ``find_blocks`` tells them.
        example_inputs: typical inputs, not noise; see ``find_blocks``.

    Returns:
        Name -> influence, between 0 and 2.

    Reference:
        Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect",
        arXiv 2403.03853.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = net[0].weight.data.copy_(2 * torch.eye(2))
        >>> round(influence(net, ["0"], torch.ones(1, 2))["0"], 4)
        0.0
    """
    root, found = unwrap(model), defaultdict[str, list[float]](list)
    for name, before, after in _calls(root, as_examples(example_inputs)):
        if name in names and before.shape == after.shape:
            axis = 1 if before.dim() == 4 else -1
            cosine = nn.functional.cosine_similarity(before.float(), after.float(), dim=axis)
            found[name].append(1.0 - float(cosine.mean()))
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{missing} are no blocks that run on these example inputs")
    return {name: sum(found[name]) / len(found[name]) for name in names}


def _why_not(name: str, blocks: Mapping[str, Block]) -> str:
    good = [other for other, block in blocks.items() if block.identity]
    if name in blocks:
        return (
            f"block {name!r} does not return its input when its parameters are zero (no identity shortcut, or a norm "
            f"after the addition): leaving it out changes what follows. exact=False allows it; exact are {good[:12]}"
        )
    return f"{name!r} is no block whose output has the shape of its input; such are {list(blocks)[:12]}"


def _silence(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()


def _seen(root: nn.Module, examples: Sequence[Example], only: str | None = None) -> dict[str, tuple[bool, bool]]:
    """Module -> (all its calls keep the shape, all return their input)."""
    found: dict[str, tuple[bool, bool]] = {}
    for name, before, after in _calls(root, examples, only):
        fits = before.shape == after.shape and before.dtype == after.dtype and before.dim() > 1
        same = fits and bool(torch.isclose(before, after, rtol=1e-5, atol=1e-6).all())
        old = found.get(name, (True, True))
        found[name] = (old[0] and fits, old[1] and same)
    return found


def _calls(
    root: nn.Module, examples: Sequence[Example], only: str | None = None
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, first input and first output of every call of a module with floating-point tensors."""
    calls: list[tuple[str, Tensor, Tensor]] = []
    pending: dict[str, list[Tensor | None]] = defaultdict(list)

    def before(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        first = next(tensors_in((args, kwargs)), None)
        # A forward may add into its input.
        pending[name].append(first.clone() if first is not None and first.is_floating_point() else None)

    def after(name: str, output: Any) -> None:
        first, result = pending[name].pop(), output[0] if isinstance(output, tuple) and output else output
        if first is not None and isinstance(result, Tensor):
            calls.append((name, first, result.clone()))

    handles: list[Any] = []
    for name, module in root.named_modules():
        if only is None or name == only:
            handles.append(module.register_forward_pre_hook(_before(before, name), with_kwargs=True))
            handles.append(module.register_forward_hook(_after(after, name)))
    try:
        for example in examples:
            pending.clear()
            with quietly(root), torch.no_grad():
                call(root, example)
    finally:
        for handle in handles:
            handle.remove()
    yield from calls


def _before(note: Any, name: str) -> Any:
    return lambda module, args, kwargs: note(name, args, kwargs)


def _after(note: Any, name: str) -> Any:
    return lambda module, args, output: note(name, output)


def _shorten(root: nn.Module, stack: str, gone: Sequence[int]) -> None:
    """A list without some blocks, the others renumbered."""
    blocks = root.get_submodule(stack)
    assert isinstance(blocks, nn.ModuleList)
    count, kept = len(blocks), [index for index in range(len(blocks)) if index not in gone]
    for place, index in enumerate(kept):
        for module in blocks[index].modules():
            for attribute in _NUMBERS:
                if type(getattr(module, attribute, None)) is int and getattr(module, attribute) == index:
                    setattr(module, attribute, place)
    for index in sorted(gone, reverse=True):
        del blocks[index]
    owner = root.get_submodule(stack.rpartition(".")[0])
    for name, value in list(vars(owner).items()):
        if type(value) is int and value == count and any(word in name for word in ("layer", "block", "depth")):
            setattr(owner, name, len(kept))
