"""What stands beside a layer's weight: its bias, the norm behind it, the weights that read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.core.canonical import grouped_shape
from secateur.core.unit_channel import Channel
from secateur.model.batches import forward_of, limited, to_device
from secateur.model.evidence.gate_places import gate_places
from secateur.model.evidence.passes import Found
from secateur.model.evidence.source import Request
from secateur.model.graph.trace import tensor_names
from secateur.model.names import clean_name
from secateur.model.quietly import quietly
from secateur.model.sharding import full
from secateur.types import KeyLayout, Layout

__all__ = ["COMPANION_KINDS", "bias_names", "bias_of", "companions"]

COMPANION_KINDS: Mapping[str, str] = {
    "bias": "the biases of the layers that make the units",
    "outgoing": "the weights of the layers that read the units (unit channel)",
    "bn_scale": "the scales of the batch norms behind the layers that make the units",
}

_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Projections of an attention whose biases lie in one tensor, in this order."""


def companions(request: Request) -> Found:
    """Evidence of ``COMPANION_KINDS``.

    Raises:
        ValueError: where there are no readers or no norms.
    """
    tensors = tensor_names(request.root)
    channel = isinstance(request.unit, Channel)
    found: Found = {}
    for kind in request.kinds:
        if kind == "outgoing":
            if not channel:
                raise ValueError(
                    f"evidence outgoing is what the next layers read a unit with, and of a {request.unit.spec} nobody "
                    "has seen who reads it; take unit='channel' with example_inputs="
                )
            found[kind] = _taken(tensors, _readers(request.layout))
        elif kind == "bias":
            names = bias_names(request.layout, tensors)
            found[kind] = _taken(tensors, names) if channel else _biases(request.layout, tensors)
        else:
            found[kind] = _norms_of_groups(request, tensors) if channel else _norms_of_layers(request)
    return found


def bias_names(layout: Layout, tensors: Mapping[str, Tensor]) -> list[str]:
    """The biases of the layers that make the channels of groups.

    Args:
        layout: the groups.
        tensors: all of the model, by name.

    Returns:
        Names, each once, of those that there are.
    """
    makers = (member.name for key in layout.values() for member in key.members if member.part == "out")
    names = (bias_of(maker)[0] for maker in makers)
    return list(dict.fromkeys(name for name in names if name in tensors))


def bias_of(weight: str) -> tuple[str, int | None]:
    """The name of a weight's bias, and which third of it, if not all.

    Example:
        >>> bias_of("conv.weight")
        ('conv.bias', None)
    """
    path, dot, leaf = weight.rpartition(".")
    if leaf in _SEPARATE:
        return f"{path}{dot}in_proj_bias", _SEPARATE.index(leaf)
    return f"{path}{dot}{leaf.removesuffix('weight')}bias", None


def _biases(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Target -> one number per output; zeros where there is no bias."""
    found: dict[str, Tensor] = {}
    for name, key in layout.items():
        groups, outputs, *_ = grouped_shape(key)
        bias, third = bias_of(name)
        if bias not in tensors:
            found[name] = torch.zeros(groups * outputs, device=tensors[name].device)
            continue
        whole = full(tensors[bias]).detach()
        found[name] = whole if third is None else whole[third * outputs : (third + 1) * outputs]
    return found


def _readers(layout: Layout) -> list[str]:
    found: dict[str, None] = {}
    for name, key in layout.items():
        own = [member.name for member in key.members if member.part == "in"]
        if not own:
            raise ValueError(
                f"no weight reads the channels of {name!r}, so they have no outgoing weights; leave the group out with "
                f"exclude=[{name!r}]"
            )
        found |= dict.fromkeys(own)
    return list(found)


def _taken(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    return {name: full(tensors[name]).detach() for name in names}


def _norms_of_groups(request: Request, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Norm weight -> scales, of the norms among the members of groups."""
    norms = {clean_name(path) for path, module in request.root.named_modules() if isinstance(module, _BatchNorm)}
    found: dict[str, None] = {}
    for name, key in request.layout.items():
        own = [m.name for m in key.members if m.part == "follows" and m.name.endswith("weight") and _owner(m) in norms]
        if not own:
            raise ValueError(_no_norm("group", name))
        found |= dict.fromkeys(own)
    return _taken(tensors, found)


def _owner(member: Any) -> str:
    return member.name.rpartition(".")[0]


def _norms_of_layers(request: Request) -> dict[str, Tensor]:
    """Target -> scales of the norm that reads the layer's output, found by one run."""
    source, root = request.source, request.root
    if source.data is None:
        raise ValueError(
            "evidence bn_scale has to see which batch norm reads a layer's output: give data= (one batch, no labels "
            "needed), or take unit='channel' with example_inputs="
        )
    data = [source.data] if isinstance(source.data, Tensor) else source.data
    batch = to_device(next(iter(limited(data, 1))), next(root.parameters()).device)
    with quietly(root), torch.no_grad():
        places = gate_places(root, request.layout, lambda: forward_of(root, batch, source.step))
    return {name: _scales(name, request.layout[name], place) for name, (place, _) in places.items()}


def _scales(name: str, key: KeyLayout, place: nn.Module) -> Tensor:
    groups, outputs, *_ = grouped_shape(key)
    if not isinstance(place, _BatchNorm) or place.weight is None or place.weight.numel() != groups * outputs:  # pyright: ignore[reportUnnecessaryComparison]
        raise ValueError(_no_norm("layer", name))
    return full(place.weight).detach()


def _no_norm(what: str, name: str) -> str:
    return (
        f"no batch norm with scales stands behind the {what} {name!r}, so bn_scale cannot score it; leave it out with "
        f"exclude=[{name!r}], or take a criterion that reads weights, such as 'l2'"
    )
