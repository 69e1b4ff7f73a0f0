"""Collectors of activation evidence: passes over the user's batches, watched from below.

A first run with two rows of a batch finds the operators whose outputs are the activations (``graph.sites``). The
passes over the batches then count operators and read those outputs. Where a batch runs other operators than the first
run did (another branch, another size), its own run is looked at first.

Modes, gradients, RNG, buffers and hooks are as before afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from secateur.core.unit_channel import Channel
from secateur.core.units import unit_name
from secateur.model.batches import StepFunction, limited, to_device
from secateur.model.graph.examples import Example, call, resized, tensors_in
from secateur.model.graph.site import Sites
from secateur.model.graph.sites import find_sites
from secateur.model.graph.trace import slow_paths, tensor_names
from secateur.model.quietly import quietly
from secateur.model.sharding import is_sharded
from secateur.model.watching import Watch
from secateur.types import Layout, Unit

__all__ = ["ACTIVATION_KINDS", "collect_activations"]

ACTIVATION_KINDS: Mapping[str, str] = {
    "activation_mean": "per unit: mean of the activation's absolute value",
    "activation_signed": "per unit: mean of the activation",
    "activation_zeros": "per unit: share of zeros among the activations",
}

_ROWS = 2
"""Of the run that finds the sites."""


def collect_activations(
    root: nn.Module,
    kinds: Sequence[str],
    layout: Layout,
    unit: Unit,
    data: Any,
    *,
    step: StepFunction | None = None,
    batches: int = 1,
    mode: Literal["eval", "train"] = "eval",
) -> dict[str, dict[str, Tensor]]:
    """Statistics of the activations of each output channel, pooled over batches, positions and tokens.

    ``mean |a|``, ``mean a`` and ``share of [a = 0]``, summed up in float64. Calls of one layer count together. Tokens
    whose entry in a batch's ``attention_mask`` ``[B, T]`` is zero are left out.

    Args:
        root: an unwrapped module.
        kinds: keys of ``ACTIVATION_KINDS``.
        layout: the targets: parameters, or coupled groups, whose producers are measured.
        unit: ``filter`` or ``channel``.
        data: batches, or one: a tensor, an ``(inputs, labels)`` pair, or a mapping that goes in as ``model(**batch)``.
        step: ``step(model, batch)`` for batches of any other shape; what it returns is not used.
        batches: how many to read.
        mode: of the passes.

    Returns:
        Kind -> weight -> one number per output channel, float64, on the weight's device.

    Raises:
        ValueError: for missing data, other units, layers that never run, and a model whose operators change from run
            to run on one batch.

    Example:
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.targets import find_targets
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU())
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-2.0]]))
        >>> unit, _ = parse_unit("filter")
        >>> x = torch.tensor([[1.0], [2.0], [-1.0]])
        >>> collect_activations(net, ["activation_mean"], find_targets(net), unit, x)["activation_mean"]["0.weight"]
        tensor([1.0000, 0.6667], dtype=torch.float64)
    """
    if data is None:
        raise ValueError(
            f"evidence {', '.join(kinds)} comes from activations: give data= (a loader, or one batch); "
            "no loss is needed"
        )
    producers, tensors = _producers(layout, unit), tensor_names(root)
    if sharded := [name for name in producers if name in tensors and is_sharded(tensors[name])]:
        raise ValueError(
            f"{sharded[0]!r} is sharded, and activations are not collected from sharded models; score the model before "
            "fully_shard"
        )
    device = next(iter(tensors.values())).device
    reading = _Reading(root, producers, step)
    with quietly(root, mode), torch.no_grad(), slow_paths():
        for batch in limited([data] if isinstance(data, Tensor) else data, batches):
            reading.read(to_device(batch, device))
    found: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for name, sums in _complete(reading.sums, layout, unit).items():
        total, signed, zeros, count = sums
        for kind, value in zip(ACTIVATION_KINDS, (total, signed, zeros), strict=True):
            if kind in found:
                found[kind][name] = (value / count).to(tensors[name].device)
    return found


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


def _complete(sums: Mapping[str, Tensor], layout: Layout, unit: Unit) -> dict[str, Tensor]:
    """The layers all of whose channels were seen; of a coupled group one such layer is enough."""
    seen = {name: total for name, total in sums.items() if bool((total[3] > 0).all())}
    for name, key in layout.items():
        makers = [member.name for member in key.members if member.part == "out"] or [name]
        if not any(maker in seen for maker in makers):
            raise ValueError(
                f"in no pass over the data the trace saw the outputs of {', '.join(map(repr, makers))} being made by a "
                f"product with its weight, so there are no activations to score {name!r} by; exclude=[{name!r}], or "
                "take a criterion that reads weights"
            )
    return seen


@final
class _Reading:
    """Sums over batches: producer -> ``[sum |a|, sum a, zeros, count] x channels``."""

    def __init__(self, root: nn.Module, producers: Mapping[str, int], step: StepFunction | None) -> None:
        self._root, self._producers, self._step = root, producers, step
        tensors = tensor_names(root)
        sizes = {name: tensors[name].shape[dim] for name, dim in producers.items() if name in tensors}
        self.sums = {name: torch.zeros(4, size, dtype=torch.float64) for name, size in sizes.items()}
        self._limits: dict[tuple[str, int], float] = {}
        self._sites: Sites | None = None

    def read(self, batch: Any) -> None:
        """Add what one batch says."""
        run = self._runner(batch)
        if self._sites is None:
            self._sites = self._first_sites(batch, run)
        watch = self._watched(self._sites, batch, run)
        if watch.difference is not None:
            self._sites = find_sites(self._root, run, self._producers)
            watch = self._watched(self._sites, batch, run)
        if watch.difference is not None:
            one = watch.difference
            raise ValueError(
                f"two runs of the model on the same batch call different operators: {one.expected} and then {one.got} "
                f"in {one.where}. Activations are read by counting operators; make the forward pass deterministic "
                "while scoring, or take a criterion that reads weights or gradients"
            )
        self._limits |= watch.limits
        for name, sums in watch.sums.items():
            self.sums[name] += sums

    def _watched(self, sites: Sites, batch: Any, run: Callable[[], Any]) -> Watch:
        watch = Watch(sites, self.sums, self._limits, _token_mask(batch))
        with watch:
            run()
        watch.finish()
        return watch

    def _runner(self, batch: Any) -> Callable[[], Any]:
        step = self._step
        if step is not None:
            return lambda: step(self._root, batch)
        example = _example(batch)
        return lambda: call(self._root, example)

    def _first_sites(self, batch: Any, run: Callable[[], Any]) -> Sites:
        """From two rows, as ids of large activations take room; from the whole batch where that is not possible."""
        first = next(tensors_in(batch), None)
        if self._step is None and first is not None and first.dim() > 0 and first.shape[0] > _ROWS:
            small = resized(_example(batch), _ROWS)
            try:
                return find_sites(self._root, lambda: call(self._root, small), self._producers)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                # A model of one fixed batch size. Whatever else was wrong comes up again, on the user's own batch.
                return find_sites(self._root, run, self._producers)
        return find_sites(self._root, run, self._producers)


def _example(batch: Any) -> Example:
    if isinstance(batch, Mapping):
        return Example((), dict(batch))
    if isinstance(batch, Tensor):
        return Example((batch,))
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return Example((batch[0],))
    shape = f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise ValueError(
        f"a batch is a {shape}; known are tensors, (inputs,), (inputs, labels) and mappings that go in as "
        "model(**batch). For anything else give step=lambda model, batch: model(...)"
    )


def _token_mask(batch: Any) -> Tensor | None:
    given = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(given, Tensor):
        return None
    if given.dim() != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(given.shape)}; padding is left out by a mask [batch, tokens]. Give step= "
            "if padding should count"
        )
    return given != 0
