"""A packed model as one file: what its programs compute, with weights that no kernel or machine has marked.

A safetensors file. Its header holds, as ``secateur.packed``, a JSON record:

    format   1
    parts    graphs, each fed by the one before it: shapes, inputs, outputs, leads (axes before those of a sample),
             dtype that layers may run in, nodes with the fields of `secateur.runtime.graph.Node`. The weight of
             node n of part p is under
             ``p.n.weight.starts``, ``.columns``, ``.values``, ``.header`` (blocked CSR; convolutions as M x C*kh*kw) or
             ``p.n.weight.dense``, others under ``p.n.bias`` and ``p.n.scale``
    blobs    of a node: packed streams under ``p.n.blob.i.name``, and what they were packed for
    choices  of a part: size class -> what was fastest on ``machine``
    samples, threads, machine, plan, record, crc32

and as ``secateur.packed.sha256`` the digest of that text and of every key, dtype and shape.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from torch import Tensor

from secateur.deploy.pack.packed import PackedModel
from secateur.deploy.pack.region import RegionModule
from secateur.io.atomic import replacing
from secateur.io.container import Slot, assign_slots, crc32, write_file
from secateur.runtime.cache import machine
from secateur.runtime.candidates import pattern_of
from secateur.runtime.canonical import BlockedCsr
from secateur.runtime.choose import cut_of
from secateur.runtime.formats import Packed
from secateur.runtime.graph import Node

__all__ = ["FORMAT", "KEY", "PLAIN", "STREAMS", "TENSORS", "digest", "save_packed"]

FORMAT = 1
STREAMS = 2
"""Raised when a kernel reads its streams in another order than before."""

KEY = "secateur.packed"
TENSORS = ("bias", "scale")
PLAIN = tuple(field.name for field in fields(Node) if field.name not in {"weight", *TENSORS})
"""The fields of a node that are JSON."""

_SPARSE = 0.5  # a weight with more of its places taken is smaller dense: 4 bytes per place against 8 per weight


def save_packed(
    model: PackedModel,
    path: str | os.PathLike[str],
    plan: Mapping[str, Any] | None = None,
    record: Mapping[str, Any] | None = None,
    blobs: bool = False,
) -> int:
    """Write a packed model that is nothing but programs.

    Args:
        model: from `pack`.
        path: file to make or replace.
        plan: plain JSON.
        record: plain JSON.
        blobs: write the packed streams too, for machines that choose as this one does.

    Returns:
        Bytes written.

    Raises:
        ValueError: torch runs between the programs, or there are none.
    """
    parts = _chain(model)
    stored: dict[str, Tensor] = {}
    text = json.dumps(
        {
            "format": FORMAT,
            "parts": [_part(i, part, stored, blobs) for i, part in enumerate(parts)],
            "samples": max(next(iter(part.entries().values()), {"samples": 1})["samples"] for part in parts),
            "threads": parts[0].threads,
            "machine": machine(parts[0].threads),
            "choices": [{str(size): entry for size, entry in part.entries().items()} for part in parts],
            "plan": plan,
            "record": record,
            "crc32": {key: crc32(tensor) for key, tensor in stored.items()},
        },
        separators=(",", ":"),
    )
    slots = assign_slots(stored)
    metadata = {"format": "pt", KEY: text, f"{KEY}.sha256": digest(text, slots)}
    with replacing(path) as file:
        return write_file(file, stored, slots, metadata)


def digest(text: str, slots: Mapping[str, Slot]) -> str:
    """What tells damage of the header."""
    table = json.dumps([[key, slot.code, list(slot.shape)] for key, slot in sorted(slots.items())])
    return hashlib.sha256(f"{table}\n{text}".encode(errors="surrogatepass")).hexdigest()


def _chain(model: PackedModel) -> list[RegionModule]:
    """The programs, each of which reads what the one before it made, and nothing else."""
    advice = (
        "a packed file holds programs alone: sc.save the sparse model itself, sc.load it into the model, and pack "
        "again, which is quick on a machine that has packed it before"
    )
    if not model.regions:
        raise ValueError(f"nothing of this model runs in programs ({model.explain().reason}); {advice}")
    run = model.chain
    if run is not None:
        return run
    between = model.between
    listed = ", ".join(list(dict.fromkeys(between))[:8]) or "several inputs or outputs"
    raise ValueError(f"torch runs a part of this model beside its programs ({listed}); {advice}")


def _part(place: int, part: RegionModule, stored: dict[str, Tensor], blobs: bool) -> dict[str, Any]:
    graph = part.graph
    nodes: list[dict[str, Any]] = []
    for number, node in enumerate(graph.nodes):
        at = f"{place}.{number}"
        found: dict[str, Any] = {name: getattr(node, name) for name in PLAIN}
        for name in TENSORS:
            tensor: Tensor | None = getattr(node, name)
            found[name] = tensor is not None
            if tensor is not None:
                stored[f"{at}.{name}"] = tensor.detach().float().contiguous()
        found["weight"] = None if node.weight is None else _weight(f"{at}.weight", node.weight, stored)
        found["blobs"] = _blobs(f"{at}.blob", part, node, stored) if blobs and node.weight is not None else []
        nodes.append(found)
    return {
        "inputs": list(graph.inputs),
        "outputs": list(graph.outputs),
        "shapes": {name: list(shape) for name, shape in graph.shapes.items()},
        "leads": list(part.leads),
        "dtype": str(part.dtype).removeprefix("torch."),
        "nodes": nodes,
    }


def _weight(at: str, weight: Tensor, stored: dict[str, Tensor]) -> dict[str, Any]:
    matrix = weight.detach().flatten(1)
    mask = matrix != 0
    if int(mask.sum()) > _SPARSE * mask.numel():
        stored[f"{at}.dense"] = matrix.contiguous()
        return {"shape": list(weight.shape), "form": "dense"}
    pattern = pattern_of(weight)
    unit = int(pattern.removeprefix("blocks ").removesuffix("x1")) if pattern.endswith("x1") else 1
    for name, tensor in BlockedCsr.from_dense(matrix, mask, unit).tensors().items():
        stored[f"{at}.{name}"] = tensor.contiguous()
    return {"shape": list(weight.shape), "form": "csr"}


def _blobs(at: str, part: RegionModule, node: Node, stored: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The streams of every choice that is known, each once."""
    place = [other.output for other in part.graph.nodes if other.weight is not None].index(node.output)
    chosen = {
        (entry["layouts"][place], 1 if entry["backend"] == "one" else part.threads) for entry in part.entries().values()
    }
    found: list[dict[str, Any]] = []
    for number, (layout, threads) in enumerate(sorted(chosen)):
        packed = part.packing(part.graph, node, layout, threads)
        kernel = packed.layout if isinstance(packed, Packed) else packed.cut.layout
        streams = packed.tensors()
        for name, stream in streams.items():
            stored[f"{at}.{number}.{name}"] = stream
        cut = asdict(cut_of(part.graph, node, layout, threads))
        found.append(
            {
                "layout": layout,
                "threads": threads,
                "kernel": kernel,
                "version": STREAMS,
                "cut": cut,
                "streams": sorted(streams),
            }
        )
    return found
