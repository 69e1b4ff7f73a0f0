"""Attributes of plain layers, from the shapes of their tensors: one function per kind."""

from __future__ import annotations

from itertools import groupby
from math import prod
from typing import Any

from secateur.model.removal.plan import Value
from secateur.model.removal.resized import Resized

__all__ = [
    "batch_norm",
    "bilinear",
    "convolution",
    "embedding",
    "group_norm",
    "layer_norm",
    "linear",
    "prelu",
    "transposed_linear",
]


def linear(layer: Resized) -> dict[str, Value]:
    """``weight [out, in]``."""
    weight = layer.shape("weight", 2)
    if weight is None:
        return {}
    layer.expect("bias", weight[:1])
    return {"in_features": weight[1], "out_features": weight[0]}


def transposed_linear(layer: Resized) -> dict[str, Value]:
    """``weight [in, out]``, as GPT-2 has it."""
    weight = layer.shape("weight", 2)
    if weight is None:
        return {}
    layer.expect("bias", weight[1:])
    return {"nx": weight[0], "nf": weight[1]}


def bilinear(layer: Resized) -> dict[str, Value]:
    """``weight [out, in1, in2]``."""
    weight = layer.shape("weight", 3)
    if weight is None:
        return {}
    layer.expect("bias", weight[:1])
    return {"in1_features": weight[1], "in2_features": weight[2], "out_features": weight[0]}


def convolution(layer: Resized) -> dict[str, Value]:
    """``weight [out, in / groups, ...]``, or transposed ``[in, out / groups, ...]``."""
    weight = layer.shape("weight")
    if weight is None:
        return {}
    groups = layer.whole("groups") if "groups" in layer.given else _groups(layer, weight)
    if groups < 1 or weight[0] % groups:
        raise ValueError(f"{layer.where}: {weight[0]} channels cannot stand in {groups} equal groups")
    rows, other = weight[0], weight[1] * groups
    inputs, outputs = (rows, other) if _of(layer, "transposed") else (other, rows)
    layer.expect("bias", (outputs,))
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _groups(layer: Resized, weight: tuple[int, ...]) -> int:
    """Groups of a convolution after its weight was sliced.

    A group whose rows are all gone is a group less; the others must keep equally many rows each, next
    to each other.
    """
    old, transposed = _of(layer, "groups"), _of(layer, "transposed")
    if old == 1:
        return 1
    rows = _of(layer, "in_channels" if transposed else "out_channels")
    per_group = rows // old
    kept = layer.positions("weight", 0)
    if kept is None:
        other = _of(layer, "out_channels" if transposed else "in_channels") // old
        depthwise = other == weight[1] == 1
        return weight[0] // per_group if depthwise and weight[0] % per_group == 0 else old
    runs = [(group, len(list(run))) for group, run in groupby(position // per_group for position in kept)]
    if len({group for group, _ in runs}) != len(runs) or len({length for _, length in runs}) != 1:
        raise ValueError(
            f"{layer.where}: of its {old} groups of {per_group} channels the plan keeps "
            f"{', '.join(f'{length} of group {group}' for group, length in runs[:8])}; every group that stays needs "
            "equally many channels, next to each other"
        )
    return len(runs)


def batch_norm(layer: Resized) -> dict[str, Value]:
    """Batch and instance norms: one entry per channel in each tensor that is there."""
    names = ("weight", "bias", "running_mean", "running_var")
    found = [shape for shape in map(layer.shape, names) if shape is not None]
    for name in names[: len(names) if found else 0]:
        layer.expect(name, found[0])
    return {"num_features": found[0][0]} if found else {}


def layer_norm(layer: Resized) -> dict[str, Value]:
    """Layer and RMS norms: the weight has the normalized shape."""
    weight = layer.shape("weight")
    if weight is None:
        return {}
    layer.expect("bias", weight)
    return {"normalized_shape": weight}


def group_norm(layer: Resized) -> dict[str, Value]:
    """Channels from the weight; the number of groups is the plan's, or stays."""
    weight = layer.shape("weight", 1)
    if weight is None:
        return {}
    layer.expect("bias", weight)
    groups = layer.whole("num_groups")
    if groups < 1 or weight[0] % groups:
        raise ValueError(
            f"{layer.where}: {weight[0]} channels cannot stand in {groups} equal groups; keep a multiple of {groups}, "
            "or give num_groups among the removal's attributes"
        )
    return {"num_channels": weight[0], "num_groups": groups}


def embedding(layer: Resized) -> dict[str, Value]:
    """``weight [entries, width]``; the padding entry moves with its row."""
    weight = layer.shape("weight", 2)
    if weight is None:
        return {}
    sizes: dict[str, Value] = {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if _of(layer, "padding_idx") is None:
        return sizes
    padding = layer.whole("padding_idx")
    rows = layer.positions("weight", 0)
    if rows is not None and "padding_idx" not in layer.given:
        if padding not in rows:
            raise ValueError(
                f"{layer.where}: the plan removes row {padding}, its padding_idx; keep that row, or give padding_idx "
                "among the removal's attributes"
            )
        padding = rows.index(padding)
    if not 0 <= padding < weight[0]:
        raise ValueError(f"{layer.where}: padding_idx {padding} is no row of {weight[0]}")
    return {**sizes, "padding_idx": padding}


def prelu(layer: Resized) -> dict[str, Value]:
    """One slope, or one per channel."""
    weight = layer.shape("weight")
    return {} if weight is None else {"num_parameters": prod(weight)}


def _of(layer: Resized, key: str) -> Any:
    return getattr(layer.module, key)
