"""Channels that hold one value whatever the input: taken up by the bias of what reads them.

    b_next[o] += c_i * sum(W_next[o, i]),    W_next[o, i] = 0

This is exact for linear layers, and for convolutions that pad nothing on (beside the border a padded zero is not the
constant). A convolution or linear layer without a bias hands the amount on to the running mean of a batch norm that
it alone feeds: ``running_mean[o] -= amount``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.model.graph.facts import Step
from secateur.model.graph.flow import Flow
from secateur.model.graph.flow_layers import evaluates

__all__ = ["Place", "Read", "constant_positions", "fold_amount", "reads_of", "use_counts"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an amount can be added: a bias (sign 1) or a running mean (sign -1)."""

    name: str
    sign: int


@dataclass(frozen=True, slots=True)
class Read:
    """One use of a weight by a contraction.

    Attributes:
        dim: axis of the weight along which it reads.
        value: of each channel of the input its one value, nan where it has none ``[channels]``.
        place: where a constant can go; None: nowhere.
        why: why a constant cannot go there, in words.
    """

    dim: int
    value: Tensor
    place: Place | None
    why: str


def reads_of(flow: Flow) -> dict[str, list[Read]]:
    """All uses of weights by linear layers and convolutions, by the weight's name."""
    found: dict[str, list[Read]] = {}
    for number, step in enumerate(flow.steps):
        if step.name in ("mm", "addmm"):
            weight = step.args[-1] if step.name == "mm" else step.args[2]
        elif step.name == "convolution":
            weight = step.args[1]
        else:
            continue
        name = flow.names.get(flow.shadow.key(weight))
        dim = None if name is None else _reading_dim(step, weight, flow.named[name])
        if name is not None and dim is not None:
            place, why = _place(flow, number)
            assert step.constants is not None
            found.setdefault(name, []).append(Read(dim, step.constants, place, why))
    return found


def use_counts(flow: Flow) -> dict[str, int]:
    """How many steps read each parameter or buffer."""
    counts: dict[str, int] = {}
    for step in flow.steps:
        for key in {flow.shadow.key(one) for one in step.inputs}:
            if key in flow.names:
                counts[flow.names[key]] = counts.get(flow.names[key], 0) + 1
    return counts


@dataclass(frozen=True, slots=True)
class _Met:
    """A weight laid out beside the constants that it meets, both ``[outputs, inputs of a group]``."""

    weight: Tensor
    kernel: Tensor
    value: Tensor


def _met(weight: Tensor, read: Read) -> _Met:
    w = weight.detach().double()
    w = w.transpose(0, 1) if read.dim == 0 else w
    wide = w.flatten(2) if w.dim() > 2 else w.unsqueeze(2)
    groups = read.value.numel() // w.shape[1]
    value = read.value.to(w.device).reshape(groups, w.shape[1]).repeat_interleave(w.shape[0] // groups, 0)
    return _Met((wide != 0).any(2), wide.sum(2), value)


def constant_positions(weight: Tensor, read: Read) -> Tensor:
    """Where, along the reading axis of a weight, all that is read is constant, or nothing is read ``[inputs]``."""
    met = _met(weight, read)
    return ~(met.weight & torch.isnan(met.value)).any(0).cpu()


def fold_amount(weight: Tensor, read: Read, positions: Sequence[int]) -> Tensor | None:
    """What constant channels add to each output of a weight.

    Args:
        weight: ``[outputs, inputs of a group, ...]``, or turned around for ``read.dim == 0``.
        read: how it is used.
        positions: along the weight's reading axis, all constant.

    Returns:
        ``[outputs]`` in float64; None where nothing is read.
    """
    met, chosen = _met(weight, read), list(positions)
    if not bool((met.weight[:, chosen]).any()):
        return None
    return (met.kernel[:, chosen] * met.value[:, chosen].nan_to_num()).sum(1)


def _reading_dim(step: Step, operand: Tensor, parameter: Tensor) -> int | None:
    if step.name == "convolution":
        return (0 if step.args[6] else 1) if operand.shape == parameter.shape else None
    if operand.dim() != 2 or parameter.dim() != 2:
        return None
    if operand.shape == parameter.t().shape and operand.stride() == parameter.t().stride():
        return 1
    return 0 if operand.shape == parameter.shape and operand.stride() == parameter.stride() else None


def _place(flow: Flow, number: int) -> tuple[Place | None, str]:
    step = flow.steps[number]
    if step.name == "convolution":
        if step.args[6]:
            return None, "it is read by a transposed convolution"
        if any(step.args[4]):
            return None, "it is read by a convolution with zero padding, whose border would change"
    bias = {"addmm": step.args[0], "convolution": step.args[2]}.get(step.name) if step.name != "mm" else None
    if isinstance(bias, Tensor) and not step.kwargs:
        name = flow.names.get(flow.shadow.key(bias))
        if name is not None and flow.named[name].shape == (step.outs[0].shape[1],):
            return Place(name, 1), ""
    if isinstance(bias, Tensor):
        return None, "the bias of what reads it is no plain parameter"
    return _next_place(flow, number)


def _next_place(flow: Flow, number: int) -> tuple[Place | None, str]:
    """A bias added by the next step, or the batch norm that follows."""
    made = flow.steps[number].outs[0]
    key, why = flow.shadow.key(made), "it is read by a layer without a bias that no batch norm follows"
    users = list[Step]()
    for later in flow.steps[number + 1 :]:
        if any(flow.shadow.key(one) == key for one in later.inputs):
            users.append(later)
            if later.writes:
                break
    if not users or len(users) > 1 or (key in flow.returned and not users[0].writes):
        return None, why
    user = users[0]
    whole = user.args[0].shape == made.shape
    if "batch_norm" in user.name and whole and evaluates(user):
        name = flow.names.get(flow.shadow.key(user.args[3]))
        return (Place(name, -1), "") if name is not None else (None, why)
    if user.name in ("add", "add_") and len(user.inputs) == 2 and user.kwargs.get("alpha", 1) == 1:
        bias = next((one for one in user.inputs if flow.shadow.key(one) != key), made)
        other = next(one for one in user.inputs if flow.shadow.key(one) == key)
        name = flow.names.get(flow.shadow.key(bias))
        rows = (
            made.dim() == 2
            and other.stride(-1) == 1
            and (other.shape[-1], other.numel())
            == (
                made.shape[1],
                made.numel(),
            )
        )
        if name is not None and rows and bias.shape == flow.named[name].shape == (made.shape[1],):
            return Place(name, 1), ""
    return None, why
