"""What each input channel adds to sampled outputs of the layers that read it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.core.unit_channel import Channel
from secateur.core.units import unit_name
from secateur.model.evidence.gate_hooks import Stand, reader_stands
from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.source import Request
from secateur.model.evidence.watching import spread, token_mask
from secateur.model.ranks import Ranks
from secateur.types import Layout, Member

__all__ = ["CONTRIBUTION_KINDS", "Contributions", "reading_stands"]

CONTRIBUTION_KINDS: Mapping[str, str] = {
    "contribution_gram": "per pair of units: sum over sampled outputs of the product of what they add to it"
}

_LOCATIONS = 10
"""Of each example."""


def reading_stands(request: Request) -> list[Stand]:
    """The layers that read the units: those of coupled groups, or the targets themselves for unit ``in_channel``.

    Raises:
        ValueError: for other units, and for layers that are not plain.
    """
    layout: Layout = request.layout
    if not isinstance(request.unit, Channel):
        if unit_name(request.unit) != "in_channel":
            raise ValueError(
                f"contributions are of input channels: take unit='channel' or 'in_channel', not {request.unit.spec!r}"
            )
        layout = {name: _as_group(request, name) for name in layout}
    return reader_stands(request.root, layout)


def _as_group(request: Request, name: str) -> Any:
    key = request.layout[name]
    units = request.unit.grid(key)[0]
    owner = tuple(range(key.shape[1])) if len(key.shape) > 1 else ()
    member = Member(name, key.shape, 0 if key.kind == "conv_transpose" else 1, "in", owner)
    return type(key)((units,), "group", members=(member,))


@final
class Contributions(Observer):
    """Grams in float64: ``G_ab = sum_n x_na x_nb``, x_nc what unit c adds to a sampled output (bias left out).

    Of each example ten places, and at each one output channel, by a generator from the seed and the weight's name.
    Tokens whose entry in a batch's ``attention_mask`` is zero are no places of a linear layer.
    """

    def __init__(self, request: Request) -> None:
        self._stands = reading_stands(request)
        self._grams: dict[str, Tensor] = {}
        self._active = False
        self._tokens: Tensor | None = None
        seed = request.source.seed
        self._generators = {
            stand.label: torch.Generator().manual_seed(zlib.crc32(f"{seed}:{stand.label}".encode()))
            for stand in self._stands
        }

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Hooks in front of the readers."""
        hooks = [s.module.register_forward_pre_hook(self._reading(s), with_kwargs=True) for s in self._stands]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Only what the pass itself reads counts."""
        self._active, self._tokens = True, token_mask(one.batch)
        try:
            yield
        finally:
            self._active = False

    def combine(self, ranks: Ranks) -> None:
        """Sums; every rank draws the places of its examples alike."""
        self._grams = ranks.sums(self._grams)

    def result(self) -> Found:
        """Of every group.

        Raises:
            ValueError: for a group whose readers never ran.
        """
        if missing := [stand.gate for stand in self._stands if stand.gate not in self._grams]:
            raise ValueError(f"nothing read the units of {missing[0]!r} in any pass; exclude=[{missing[0]!r}]")
        return {"contribution_gram": dict(self._grams)}

    def _reading(self, stand: Stand) -> Any:
        def hook(module: nn.Module, inputs: Any, kwargs: Any) -> None:
            if self._active:
                x: Tensor = inputs[0] if inputs else next(iter(kwargs.values()))
                self._add(stand, module, x.detach())

        return hook

    @torch.no_grad()
    def _add(self, stand: Stand, module: nn.Module, x: Tensor) -> None:
        assert stand.owner is not None  # of a reader
        owner = torch.where(stand.owner < 0, stand.size, stand.owner)
        weight: Any = module.weight
        weight = weight.detach()
        x = x if x.dim() > 1 else x[None]
        tokens = spread(self._tokens, x, (x.dim() - 1,)) if self._tokens is not None else None
        linear = isinstance(module, nn.Linear)
        valid = tokens.expand(*x.shape[:-1], 1).flatten(1) if linear and tokens is not None else [None] * len(x)
        for example, own_valid in zip(x, valid, strict=True):
            patches = _patches(module, example, own_valid, self._generators[stand.label])  # [places, inputs, kernel]
            chosen = torch.randint(weight.shape[0], (len(patches),), generator=self._generators[stand.label])
            own = (patches.double() * weight[chosen.to(x.device)].reshape(patches.shape).double()).sum(2)
            # On the CPU: index_add on a GPU would add in a random order.
            rows = torch.zeros(len(own), stand.size + 1, dtype=torch.float64)
            rows = rows.index_add_(1, owner, own.cpu())[:, : stand.size]
            self._grams[stand.gate] = self._grams.get(stand.gate, 0) + rows.t() @ rows


def _patches(module: nn.Module, example: Tensor, valid: Tensor | None, generator: torch.Generator) -> Tensor:
    """What sampled outputs of one example see: ``[places, inputs, kernel]``; of a linear layer, places that count."""
    if isinstance(module, nn.Linear):
        rows = example.reshape(-1, example.shape[-1])
        rows = rows if valid is None else rows[valid]
        return rows[_some(len(rows), generator).to(rows.device), :, None]
    if not isinstance(module, nn.Conv2d) or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise ValueError(
            f"contributions to {type(module).__name__} are not sampled: only to linear layers, and 2-D convolutions "
            "with padding in numbers and of zeros. Exclude it"
        )
    columns = F.unfold(
        example[None],
        module.kernel_size,
        dilation=module.dilation,
        padding=module.padding,
        stride=module.stride,
    )[0]
    some = columns[:, _some(columns.shape[1], generator).to(columns.device)]
    return some.t().reshape(some.shape[1], example.shape[0], -1)


def _some(count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(count, generator=generator)[:_LOCATIONS]
