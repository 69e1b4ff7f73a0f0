"""A narrower residual stream whose norms keep their epsilon, for configurations that have one for all norms."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from math import sqrt

import torch
from torch import nn

from secateur.integrations.configs import epsilons
from secateur.model.graph.examples import Example
from secateur.model.graph.group import Group
from secateur.model.graph.probe import difference, outputs_of

__all__ = ["with_old_epsilon"]


def with_old_epsilon(
    before: nn.Module, small: nn.Module, groups: Mapping[str, Group], examples: Sequence[Example]
) -> nn.Module:
    """The same function with the epsilon that its RMS norms had, where other norms of the model still have it.

    A mean of squares over ``d'`` of ``d`` places keeps its values with ``eps d / d'``; or with ``eps``, if the stream
    itself is scaled by ``s = sqrt(d' / d)``: all that is added to it. A head that shares its weight with the embedding
    is undone by ``1 / s`` in the last norm. Norms of another width (of queries and keys) are left alone.

    Args:
        before: the model before its stream was narrowed.
        small: after.
        groups: of the stream, from ``before``.
        examples: inputs on which the result has to agree with ``small``.

    Returns:
        The rescaled copy; ``small`` where all norms agree already, or it cannot be done.
    """
    old = {name: (attribute, value) for name, attribute, value in epsilons(before)}
    changed = {name for name, _, value in epsilons(small) if name in old and old[name][1] != value}
    if not changed or changed == set(old):
        return small
    members = [member for group in groups.values() for member in group.members]
    makers = list(dict.fromkeys(member.name for member in members if member.part == "out"))
    biases = [f"{name.removesuffix('.weight')}.bias" for name in makers]
    follow = [member.name for member in members if member.part == "follows" and member.name in biases]
    norms = [member.name for member in members if member.name.rpartition(".")[0] in changed]
    width = len(members[0].owner)
    tensors = dict(small.named_parameters())
    left = tensors[makers[0]].shape[members[0].dim]
    factor = sqrt(left / width)
    for undone in (None, norms[-1] if norms else None):
        scaled = copy.deepcopy(small)
        parameters = dict(scaled.named_parameters())
        with torch.no_grad():
            for name in dict.fromkeys([*makers, *follow]):
                parameters[name].mul_(factor)
            if undone is not None:
                parameters[undone].div_(factor)
        for name in changed:
            setattr(scaled.get_submodule(name), *old[name])
        if not any(difference(outputs_of(small, one), outputs_of(scaled, one), exact=True) for one in examples):
            return scaled
    return small
