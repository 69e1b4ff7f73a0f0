"""Parameters by name, resolved at every use.

``fully_shard`` replaces Parameter objects, conversions replace modules, and wrappers
(``DistributedDataParallel``, ``torch.compile``, activation checkpointing) put themselves
between: a name survives all of that, an object does not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "aliases",
    "canonical_names",
    "check_state",
    "clean_name",
    "find_parameter",
    "parameters_by_name",
    "unwrap",
    "wrappers",
]

_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_of_ranks")
"""Attributes under which ``torch.compile``, ``CheckpointWrapper`` and ``OfRanks`` keep the module they wrap."""


def check_state(state: object, argument: str) -> None:
    """Refuse what is no state dict.

    Raises:
        ValueError: for modules, and whatever is no mapping.

    Example:
        >>> check_state(nn.Linear(2, 2), "init")
        Traceback (most recent call last):
            ...
        ValueError: init= is a Linear: give a state dict, parameter name -> tensor, as model.state_dict()
    """
    if not isinstance(state, Mapping):
        what = type(state).__name__
        raise ValueError(f"{argument}= is a {what}: give a state dict, parameter name -> tensor, as model.state_dict()")


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module under data-parallel and compile wrappers.

    Args:
        model: any module.

    Returns:
        The innermost module that is not a wrapper; ``model`` itself where there is none.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> unwrap(nn.DataParallel(net)) is net
        True
    """
    *_, innermost = wrappers(model)
    return innermost


def wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and what is inside of each wrapper, down to the user's own module.

    Example:
        >>> [type(one).__name__ for one in wrappers(nn.DataParallel(nn.Linear(2, 2)))]
        ['DataParallel', 'Linear']
    """
    if not isinstance(model, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"a model is a torch.nn.Module; this is {type(model).__name__}")
    inner: nn.Module | None = model
    while inner is not None:
        model = inner
        yield model
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        else:
            inner = next((model._modules[w] for w in _WRAPPERS if model._modules.get(w) is not None), None)


def clean_name(name: str) -> str:
    """A parameter's name without the segments that wrappers add.

    Example:
        >>> clean_name("_orig_mod.encoder._orig_mod.weight")
        'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters, each once, under its first clean name.

    Args:
        model: any module; wrappers are looked through.

    Returns:
        Name -> parameter, in the order of registration.

    Example:
        >>> sorted(parameters_by_name(nn.Linear(2, 2)))
        ['bias', 'weight']
    """
    return {clean_name(name): parameter for name, parameter in unwrap(model).named_parameters()}


def aliases(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Every name of every parameter: the first name -> all names of the same Parameter object.

    Example:
        >>> net = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
        >>> net[1].weight = net[0].weight
        >>> aliases(net)
        {'0.weight': ('0.weight', '1.weight')}
    """
    names: dict[int, list[str]] = defaultdict(list)
    for name, parameter in unwrap(model).named_parameters(remove_duplicate=False):
        names[id(parameter)].append(clean_name(name))
    return {group[0]: tuple(group) for group in names.values()}


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Any name of a parameter -> its first name."""
    return {name: first for first, group in aliases(model).items() for name in group}


def find_parameter(root: nn.Module, name: str) -> Tensor:
    """The parameter that stands under ``name`` now.

    Args:
        root: an unwrapped module.
        name: clean, dotted.

    Returns:
        The parameter (a DTensor where the model is sharded).

    Raises:
        ValueError: if no module or parameter of that name is left.
    """
    *path, leaf = name.split(".")
    owner: nn.Module | None = root
    for part in path:
        if owner is not None:
            owner = (owner if part in owner._modules else unwrap(owner))._modules.get(part)
    found = None
    if owner is not None:
        found = owner._parameters.get(leaf)
        if found is None:
            found = unwrap(owner)._parameters.get(leaf)
    if not isinstance(found, torch.Tensor):
        raise ValueError(
            f"the model has no parameter {name!r} any more; a module was replaced or converted after pruning. "
            "Prune after the conversion, or register the masks again with sc.prune"
        )
    return found
