"""Collectors of activation evidence: passes over the user's batches, watched from below.

A first run with two rows of a batch finds the operators whose outputs are the activations (``graph.sites``). The
passes over the batches then count operators and read those outputs. Where a batch runs other operators than the first
run did (another branch, another size), its own run is looked at first.

Modes, gradients, RNG, buffers and hooks are as before afterwards.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, final

from torch import Tensor

from secateur.core.unit_channel import Channel
from secateur.core.units import unit_name
from secateur.model.batches import forward_of
from secateur.model.evidence.example_axis import ExampleAxis
from secateur.model.evidence.passes import Found, Pass, Streamable
from secateur.model.evidence.reader_table import READERS
from secateur.model.evidence.readers import Reader
from secateur.model.evidence.site_examples import site_examples
from secateur.model.evidence.source import Request
from secateur.model.evidence.watching import Watch
from secateur.model.graph.examples import Example, call, resized, tensors_in
from secateur.model.graph.site import Sites
from secateur.model.graph.sites import find_sites
from secateur.model.graph.trace import slow_paths, tensor_names
from secateur.model.ranks import Ranks
from secateur.model.sharding import is_sharded
from secateur.types import Layout, Unit

__all__ = ["ACTIVATION_KINDS", "Activations"]

ACTIVATION_KINDS: Mapping[str, str] = {kind: what for reader in READERS for kind, what in reader.kinds.items()}

_ROWS = 2
"""Of the run that finds the sites."""

_LISTED = 4


@final
class Activations(Streamable):
    """Watches the operators whose outputs are the activations of the targets' channels, for all readers that are asked.

    Calls of one layer count together. Tokens whose entry in a batch's ``attention_mask`` ``[B, T]`` is zero are left
    out. An expert that no token reached, while others of its list ran, counts as one that never fires; a warning says
    so.

    Args:
        request: what is asked.
        readers: makes readers, of how many channels each layer has; None: those of the request's kinds.

    Raises:
        ValueError: for other units than ``filter`` and ``channel``, sharded models, layers that never run, and a model
            whose operators change from run to run on one batch.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.evidence import Source, collect
        >>> from secateur.model.targets import find_targets
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-2.0]]))
        >>> unit, _ = parse_unit("filter")
        >>> source = Source(torch.tensor([[1.0], [2.0], [-1.0]]))
        >>> collect(net, ["activation_mean"], find_targets(net), unit, source)["activation_mean"]["0.weight"]
        tensor([1.0000, 0.6667], dtype=torch.float64)
    """

    def __init__(
        self, request: Request, readers: Callable[[Mapping[str, int]], Sequence[Reader]] | None = None
    ) -> None:
        self._root, self._layout, self._step = request.root, request.layout, request.source.step
        producers, tensors = _producers(request.layout, request.unit), tensor_names(request.root)
        if sharded := [name for name in producers if name in tensors and is_sharded(tensors[name])]:
            raise ValueError(
                f"{sharded[0]!r} is sharded, and activations are not collected from sharded models; score the model "
                "before fully_shard"
            )
        self._producers = producers
        self._devices = {name: tensors[name].device for name in producers if name in tensors}
        self._sizes = sizes = {name: tensors[name].shape[dim] for name, dim in producers.items() if name in tensors}
        made = [(row, set(row.kinds) & set(request.kinds)) for row in READERS]
        asked = [row.make(sizes, frozenset(kinds)) for row, kinds in made if kinds] if readers is None else []
        self._readers: Sequence[Reader] = asked if readers is None else readers(sizes)
        for reader in self._readers:
            reader.configure(request.settings)
        self._sites: Sites | None = None
        self._examples: Mapping[tuple[str, int], ExampleAxis] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Fused operators hide what is inside them."""
        with slow_paths():
            yield

    def prepare(self, one: Pass) -> None:
        """Find the sites by the first batch."""
        if self._sites is None:
            self._sites = self._first_sites(one)
            self._look_for_examples(one)

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Read what the pass makes; where it went another way than the one looked at, look at it, and read a rerun."""
        assert self._sites is not None  # prepare
        watch = Watch(self._sites, self._readers, one.batch, self._examples)
        with watch:
            yield
        watch.finish()
        if watch.difference is not None:
            self._sites = find_sites(self._root, one.forward, self._producers)
            self._look_for_examples(one)
            watch = Watch(self._sites, self._readers, one.batch, self._examples)
            with watch:
                one.forward()
            watch.finish()
        if watch.difference is not None:
            difference = watch.difference
            raise ValueError(
                f"two runs of the model on the same batch call different operators: {difference.expected} and then "
                f"{difference.got} in {difference.where}. Activations are read by counting operators; make the forward "
                "pass deterministic while scoring, or take a criterion that reads weights or gradients"
            )
        for reader in self._readers:
            reader.commit()

    def combine(self, ranks: Ranks) -> None:
        """Reader by reader."""
        for reader in self._readers:
            reader.combine(ranks)

    def result(self) -> Found:
        """What the readers found of the layers all of whose channels were seen; of a coupled group one is enough."""
        found: Found = {}
        for reader in self._readers:
            seen = reader.seen()
            idle = self._idle(seen)
            for kind, tensors in reader.result().items():
                for name in idle:
                    tensors[name] = reader.nothing(self._sizes[name])[kind]
                found[kind] = {name: tensors[name].to(self._devices[name]) for name in tensors}
        return found

    def state_dict(self) -> dict[str, Any]:
        """Of the readers; where the activations are is found anew."""
        return {"readers": [reader.state_dict() for reader in self._readers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        for reader, own in zip(self._readers, state["readers"], strict=True):
            reader.load_state_dict(own)

    def _idle(self, seen: frozenset[str]) -> list[str]:
        """Layers of experts that no token reached; any other layer has to be seen."""
        idle: list[str] = []
        for name, key in self._layout.items():
            makers = [member.name for member in key.members if member.part == "out"] or [name]
            if any(maker in seen for maker in makers):
                continue
            if not all(maker in self._sizes and _sibling_of(maker, seen) for maker in makers):
                raise ValueError(
                    f"in no pass over the data the trace saw the outputs of {', '.join(map(repr, makers))} being "
                    f"made by a product with its weight, so there are no activations to score {name!r} by; "
                    f"exclude=[{name!r}], or take a criterion that reads weights"
                )
            idle += makers
        if idle:
            more = f" and {len(idle) - _LISTED} more" if len(idle) > _LISTED else ""
            warnings.warn(
                f"no token reached {', '.join(map(repr, idle[:_LISTED]))}{more}, though others of the same list ran: "
                "they count as layers that never fire, and go first. Read more batches (batches=), or exclude them",
                stacklevel=2,
            )
        return idle

    def _look_for_examples(self, one: Pass) -> None:
        if self._sites is not None and any(reader.by_example for reader in self._readers):
            run = partial(forward_of, self._root, step=self._step)
            self._examples = site_examples(self._sites, one.batch, run)

    def _first_sites(self, one: Pass) -> Sites:
        """From two rows, as ids of large activations take room; from the whole batch where that is not possible."""
        first = next(tensors_in(one.batch), None)
        if self._step is None and first is not None and first.dim() > 0 and first.shape[0] > _ROWS:
            small = resized(_example(one.batch), _ROWS)
            try:
                return find_sites(self._root, lambda: call(self._root, small), self._producers)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                # A model of one fixed batch size. Whatever else was wrong comes up again, on the user's own batch.
                return find_sites(self._root, one.forward, self._producers)
        return find_sites(self._root, one.forward, self._producers)


def _producers(layout: Layout, unit: Unit) -> dict[str, int]:
    """Weight -> the axis of its outputs."""
    if not isinstance(unit, Channel) and unit_name(unit) != "filter":
        raise ValueError(f"activations are collected per output channel, for unit filter or channel, not {unit.spec!r}")
    found: dict[str, int] = {}
    for name, key in layout.items():
        if key.kind == "group":
            for member in key.members:
                if member.part == "out":
                    found.setdefault(member.name, member.dim)
            continue
        if key.kind == "embedding" or (key.kind == "conv_transpose" and key.groups > 1):
            what = "an embedding" if key.kind == "embedding" else "a grouped transposed convolution"
            raise ValueError(f"{name!r} is {what}, whose filters have no activations of their own; exclude=[{name!r}]")
        found[name] = 1 if key.kind == "conv_transpose" else 0
    return found


def _sibling_of(name: str, seen: frozenset[str]) -> bool:
    """Whether a layer was seen whose name differs in one number: another expert of the same list."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        if part.isdigit():
            before, behind = parts[:at], parts[at + 1 :]
            for other in seen:
                own = other.split(".")
                if len(own) == len(parts) and own[at].isdigit() and own[:at] == before and own[at + 1 :] == behind:
                    return True
    return False


def _example(batch: Any) -> Example:
    if isinstance(batch, Mapping):
        return Example((), dict(batch))
    return Example((batch,) if isinstance(batch, Tensor) else (batch[0],))
