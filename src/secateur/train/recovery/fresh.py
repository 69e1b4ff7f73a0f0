"""Fresh weights for a network that stands: what its class would have given it, from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from secateur.model.names import unwrap
from secateur.model.sharding import is_sharded
from secateur.train.loop.randomness import borrowed, seed_all

__all__ = ["Initialise", "give_fresh_weights"]

Initialise = Callable[[nn.Module], object]
"""Initialises a whole model in place."""


def give_fresh_weights(model: nn.Module, seed: int, init: Initialise | None = None) -> None:
    """Initialise every parameter again, in place.

    Modules are asked in the order in which they are usually made, children first and then their owner, by
    ``reset_parameters()``; so a network whose class initialises nothing itself gets the weights that
    ``torch.manual_seed(seed)`` and its constructor would give. ``init(model)`` runs after that. The global random
    states (Python, NumPy, torch) are seeded for that and put back.

    Every parameter is NaN before and has to be a number afterwards: one that nobody initialises cannot slip through.

    Args:
        model: to be changed.
        seed: of the global generators while that happens.
        init: for models that have a way of their own, e.g. ``lambda model: model.apply(my_init)``.

    Raises:
        ValueError: naming the parameters that nobody gave a value; the model is spoilt then.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> give_fresh_weights(net, seed=5)
        >>> _ = torch.manual_seed(5)
        >>> torch.equal(net.weight, nn.Linear(3, 2).weight)
        True
    """
    root = unwrap(model)
    parameters = dict(root.named_parameters())
    if any(is_sharded(parameter) for parameter in parameters.values()):
        raise ValueError("this model is sharded; initialise it before fully_shard, and prune it after that")
    device = next((parameter.device for parameter in parameters.values()), torch.device("cpu"))
    with borrowed(device, ()), torch.no_grad():
        seed_all(seed)
        for parameter in parameters.values():
            if parameter.is_floating_point():
                parameter.fill_(torch.nan)
        for module in _children_first(root):
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
        if init is not None:
            init(model)
    left = [name for name, p in parameters.items() if p.is_floating_point() and bool(torch.isnan(p).any())]
    if left:
        raise ValueError(_nobody_initialises(root, left, init))


def _children_first(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        yield from _children_first(child)
    yield module


def _nobody_initialises(root: nn.Module, left: list[str], init: Initialise | None) -> str:
    kinds = sorted({type(root.get_submodule(name.rpartition(".")[0])).__name__ for name in left})
    shown = ", ".join(left[:8]) + (f", ... ({len(left)} in all)" if len(left) > 8 else "")
    tried = "reset_parameters() of their modules" + (" and init" if init is not None else "")
    return (
        f"no fresh value for {shown}: {tried} left them alone (in {', '.join(kinds)}). Give init=function(model) that "
        "initialises them, as the constructor does"
    )
