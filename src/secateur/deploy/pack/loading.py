"""A file of `save_packed` -> a packed model; nothing in it is ever executed, and everything in it is checked."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from torch import Tensor, nn

from secateur.deploy.pack.checking import check_graph
from secateur.deploy.pack.packed import PackedModel
from secateur.deploy.pack.parts import Parts
from secateur.deploy.pack.region import RegionModule
from secateur.deploy.pack.saving import FORMAT, KEY, PLAIN, STREAMS, TENSORS, digest
from secateur.io.container import Header, is_count, parse_header, parse_shape, read_slot
from secateur.native.threads import usable_threads
from secateur.runtime.cache import machine
from secateur.runtime.canonical import BlockedCsr
from secateur.runtime.choose import cut_of, pack_layer
from secateur.runtime.conv_layouts import beside_of
from secateur.runtime.convolution import PackedConv
from secateur.runtime.depthwise import DepthwiseCut, PackedDepthwise
from secateur.runtime.formats import Packed
from secateur.runtime.geometry import planes_of, window_of
from secateur.runtime.graph import Graph, Node
from secateur.runtime.layouts import Pieces

__all__ = ["is_packed", "load_packed"]

_ALWAYS_ALLOWED = 1 << 30
_EXPANSION = 1000
_PART = {"inputs", "outputs", "shapes", "leads", "dtype", "nodes"}
_BLOB = {"layout", "threads", "kernel", "version", "cut", "streams"}
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
_MOST = 1 << 16  # threads, or samples


def _names(value: Any) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 16 and all(isinstance(name, str) for name in value)


_TYPES: dict[str, Callable[[Any], bool]] = {
    "str": lambda value: type(value) is str,
    "str | None": lambda value: value is None or type(value) is str,
    "bool": lambda value: type(value) is bool,
    "int": is_count,
    "float": lambda value: type(value) in (int, float),
    "tuple[int, int]": lambda value: isinstance(value, list) and len(value) == 2 and all(map(is_count, value)),
    "tuple[str, ...]": _names,
}
_SOUND = {field.name: _TYPES[str(field.type)] for field in fields(Node) if field.name in PLAIN}
"""Field of a node -> whether a value out of JSON may stand in it; `check_graph` looks at its size."""
_KEYS = {
    "format", "parts", "samples", "threads", "machine", "choices", "plan", "record", "crc32",
}  # fmt: skip


def is_packed(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of `save_packed`; anything that cannot be read is not."""
    try:
        with Path(path).open("rb") as file:
            return KEY in parse_header(file).metadata
    except (OSError, ValueError):
        return False


def load_packed(path: str | os.PathLike[str], max_bytes: int | None = None) -> PackedModel:
    """Read a packed model.

    Args:
        path: the file.
        max_bytes: most bytes that its dense weights may take; None: 1 GiB, or 1000 times the file.

    Returns:
        A model without a dense one beside it. Kernels are those that the file knows for this machine, else those of
        this machine's cache, else they are measured at the first call.

    Raises:
        ValueError: the file is foreign, altered, of a newer version, or larger than allowed.
    """
    with Path(path).open("rb") as file:
        try:
            return _Reader(file, max_bytes).model()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error


@final
class _Brought:
    """Packs weights, or takes the streams that a file brought, if they were cut as this machine cuts them."""

    def __init__(self) -> None:
        self.streams: dict[tuple[str, str, int], tuple[str, dict[str, Any], dict[str, Tensor]]] = {}

    def __call__(self, graph: Graph, node: Node, layout: str, threads: int) -> Packed | PackedConv | PackedDepthwise:
        found = self.streams.get((node.output, layout, threads))
        cut = cut_of(graph, node, layout, threads)
        if found is None or found[1] != asdict(cut):
            return pack_layer(graph, node, layout, threads)
        kernel, _, streams = found
        if not isinstance(cut, Pieces):
            planes, window = planes_of(graph, beside_of(layout)), window_of(node)
            x, y = planes[node.inputs[0]], planes[node.output]
            if isinstance(cut, DepthwiseCut):
                return PackedDepthwise.of_streams(streams, cut, x, y, window)
            return PackedConv.of_streams(streams, cut, x, y, window)
        assert node.weight is not None
        rows, cols = node.weight.shape
        return Packed(kernel, (rows, cols), cut, streams)


@final
class _Reader:
    """One file while it is read."""

    def __init__(self, file: BinaryIO, max_bytes: int | None) -> None:
        size = os.fstat(file.fileno()).st_size
        self.file, self.header = file, parse_header(file)
        self.limit = max(_ALWAYS_ALLOWED, _EXPANSION * size) if max_bytes is None else max_bytes
        self.left = self.limit
        self.record = _record(self.header)
        self.unread = set(self.header.slots)

    def model(self) -> PackedModel:
        """Everything, checked."""
        record = self.record
        threads, samples = record["threads"], record["samples"]
        if not all(is_count(number) and 0 < number <= _MOST for number in (threads, samples)):
            raise ValueError(f"altered: {threads!r} threads, {samples!r} samples")
        parts, choices = record["parts"], record["choices"]
        if not isinstance(parts, list) or not parts or not isinstance(choices, list) or len(parts) != len(choices):
            raise ValueError("altered: no list of programs")
        regions = [self._part(i, part, min(threads, usable_threads())) for i, part in enumerate(parts)]
        if self.unread:
            raise ValueError(f"altered: nobody asks for the tensors {sorted(self.unread)[:5]}")
        if record["machine"] == machine(regions[0].threads):
            for region, known in zip(regions, choices, strict=True):
                region.given = _choices(known)
        run: nn.Module = regions[0] if len(regions) == 1 else nn.Sequential(*regions)
        return PackedModel(Parts(None, None, regions, run, None, samples=samples))

    def _part(self, place: int, part: Any, threads: int) -> RegionModule:
        if not isinstance(part, dict) or set(part) != _PART:
            raise ValueError(f"altered: program {place} does not have the parts of one")
        inputs, outputs, leads = part["inputs"], part["outputs"], part["leads"]
        if not _names(inputs) or not _names(outputs) or len(inputs) != 1 or len(outputs) != 1:
            raise ValueError(f"altered: program {place} has not one input and one output")
        if not isinstance(leads, list) or len(leads) != 1 or not is_count(leads[0]) or not 1 <= leads[0] <= 8:
            raise ValueError(f"altered: program {place} has {leads!r} axes of samples")
        if type(part["dtype"]) is not str or part["dtype"] not in _DTYPES:
            raise ValueError(f"altered: program {place} runs in {part['dtype']!r}")
        if not isinstance(part["shapes"], dict) or not isinstance(part["nodes"], list):
            raise ValueError(f"altered: program {place} has no shapes or nodes")
        shapes = {name: _shape(shape, f"value {name}") for name, shape in part["shapes"].items()}
        brought = _Brought()
        nodes = tuple(self._node(f"{place}.{i}", node, brought) for i, node in enumerate(part["nodes"]))
        graph = Graph(nodes, shapes, tuple(inputs), tuple(outputs))
        check_graph(graph, self.limit)
        region = RegionModule(graph, tuple(leads), threads, cached=True, dtype=_DTYPES[part["dtype"]])
        region.packing = brought
        return region

    def _node(self, at: str, node: Any, brought: _Brought) -> Node:
        if not isinstance(node, dict) or set(node) != {*PLAIN, *TENSORS, "weight", "blobs"}:
            raise ValueError(f"altered: node {at} does not have the fields of one")
        wrong = [name for name in PLAIN if not _SOUND[name](node[name])]
        if wrong:
            raise ValueError(f"altered: fields {wrong} of node {at} are of other types")
        plain = {name: tuple(node[name]) if isinstance(node[name], list) else node[name] for name in PLAIN}
        if not all(type(node[name]) is bool for name in TENSORS) or not isinstance(node["blobs"], list):
            raise ValueError(f"altered: node {at} has fields of other types")
        tensors = {name: self._read(f"{at}.{name}") for name in TENSORS if node[name]}
        if any(tensor.dtype != torch.float32 for tensor in tensors.values()):
            raise ValueError(f"altered: node {at} has numbers of another dtype")
        weight = None if node["weight"] is None else self._weight(f"{at}.weight", node["weight"])
        for i, blob in enumerate(node["blobs"]):
            self._blob(f"{at}.blob.{i}", str(node["output"]), blob, brought)
        fields: dict[str, Any] = {**plain, **tensors, "weight": weight}
        return Node(**fields)

    def _weight(self, at: str, found: Any) -> Tensor:
        if not isinstance(found, dict) or set(found) != {"shape", "form"}:
            raise ValueError(f"altered: {at} is not described")
        shape = _shape(found["shape"], at)
        rows, cols = shape[0], math.prod(shape[1:])
        self.left -= 4 * rows * cols
        if self.left < 0:
            raise ValueError(f"its dense weights take more than {self.limit} bytes; if you trust it, raise max_bytes=")
        if found["form"] == "dense":
            weight = self._read(f"{at}.dense")
        elif found["form"] == "csr":
            names = ("header", "starts", "columns", "values")
            tensors = {name: self._read(f"{at}.{name}") for name in names}
            if tensors["header"].tolist()[1:3] != [rows, cols] or not 1 <= int(tensors["header"][-1]) <= 64:
                raise ValueError(f"altered: {at} is of another shape than {shape}")
            weight = BlockedCsr.from_tensors(tensors).weight()
        else:
            raise ValueError(f"altered: {at} has the form {found['form']!r}")
        if tuple(weight.shape) != (rows, cols) or weight.dtype != torch.float32:
            raise ValueError(f"altered: {at} is {weight.dtype} of shape {tuple(weight.shape)}, not {shape}")
        return weight.contiguous().view(shape)

    def _blob(self, at: str, output: str, blob: Any, brought: _Brought) -> None:
        """Keep the streams; whether they fit is seen when they are wanted."""
        if not isinstance(blob, dict) or set(blob) != _BLOB:
            raise ValueError(f"altered: {at} is not described")
        texts = type(blob["layout"]) is type(blob["kernel"]) is str
        if not _names(blob["streams"]) or not texts or not is_count(blob["threads"]):
            raise ValueError(f"altered: {at} is not described")
        streams = {name: self._read(f"{at}.{name}") for name in blob["streams"]}
        if blob["version"] == STREAMS:
            brought.streams[output, blob["layout"], blob["threads"]] = blob["kernel"], blob["cut"], streams

    def _read(self, key: str) -> Tensor:
        crc = self.record["crc32"].get(key)
        if key not in self.unread or type(crc) is not int:
            raise ValueError(f"altered: tensor {key} is missing, or asked for twice")
        self.unread.discard(key)
        return read_slot(self.file, self.header, key, crc)


def _record(header: Header) -> dict[str, Any]:
    text = header.metadata.get(KEY, "")
    record = json.loads(text)
    version: Any = record.get("format") if isinstance(record, dict) else None
    if not is_count(version) or not version:
        raise ValueError("altered: its record names no format version")
    if version > FORMAT:
        raise ValueError(f"format version {version} is newer than {FORMAT}; update secateur to read this file")
    if header.metadata.get(f"{KEY}.sha256") != digest(text, header.slots):
        raise ValueError("altered: the header does not match its checksum; fetch or save the file again")
    if set(record) != _KEYS or not isinstance(record["crc32"], dict):
        raise ValueError(f"altered: its record does not have exactly the keys {sorted(_KEYS)}")
    return record


def _choices(known: Any) -> dict[int, Any]:
    if not isinstance(known, dict) or not all(isinstance(entry, Mapping) for entry in known.values()):
        raise ValueError("altered: no table of choices")
    return {int(size): dict(entry) for size, entry in known.items() if size.isdecimal() and len(size) < 10}


def _shape(value: Any, what: str) -> tuple[int, ...]:
    shape = parse_shape(value, what)
    if not 1 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(f"altered: {what} has the shape {list(shape)}")
    return shape
