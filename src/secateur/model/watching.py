"""Watching the operators of one run from below, and reading activations where they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.graph.site import Site, Sites
from secateur.model.graph.trace import where

__all__ = ["NEAR_ZERO", "Difference", "Watch"]

NEAR_ZERO = 0.05
"""Where an activation function gives no exact zeros, what is at most this share of the root mean square (over the
site's values in the first batch) counts as zero."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Where a run left the way of the one that found the sites."""

    expected: str
    got: str
    where: str


@final
class Watch(TorchDispatchMode):
    """Reads the sites of one run, as long as it calls the operators that it should.

    Args:
        sites: what the run that was looked at did.
        sums: producer -> ``[4, channels]``, for the shapes.
        limits: what counts as zero, per producer and number of its site.
        tokens: bool ``[B, T]``, False for padding.

    Attributes:
        sums: of this run, per producer ``[sum |a|, sum a, zeros, count] x channels``, float64.
        limits: those given, and what the first batch fixed.
        difference: where the run went another way; sums are then worth nothing.
    """

    def __init__(
        self, sites: Sites, sums: Mapping[str, Tensor], limits: Mapping[tuple[str, int], float], tokens: Tensor | None
    ) -> None:
        super().__init__()
        self.sums = {name: torch.zeros_like(total) for name, total in sums.items()}
        self.limits = dict(limits)
        self.difference: Difference | None = None
        self._sites, self._tokens = sites, tokens
        self._count = 0
        self._read: dict[str, int] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, as the tracer."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.difference is None:
            self._check(func)
        if self.difference is None:
            for site in self._sites.at.get(self._count, ()):
                self._add(site, out if isinstance(out, Tensor) else out[0])
            self._count += 1
        return out

    def finish(self) -> None:
        """All operators must have come."""
        operators = self._sites.operators
        if self.difference is None and self._count < len(operators):
            self.difference = Difference(str(operators[self._count]), "nothing more", "the model's code")

    def _check(self, func: Any) -> None:
        operators = self._sites.operators
        expected = operators[self._count] if self._count < len(operators) else None
        if expected is not func:
            self.difference = Difference("nothing more" if expected is None else str(expected), str(func), where())

    def _add(self, site: Site, out: Tensor) -> None:
        if out.dim() != site.dims or tuple(out.shape[axis] for axis in site.axes) != site.sizes:
            self.difference = Difference(f"{site.operator} of channels {site.sizes}", str(tuple(out.shape)), where())
            return
        valid = None if self._tokens is None else _spread(self._tokens, out, site.axes)
        values = out if valid is None else torch.where(valid, out, torch.zeros((), dtype=out.dtype, device=out.device))
        sizes = values.abs()
        zero = values == 0 if site.exact else sizes <= self._limit(site, values, valid)
        zero = zero if valid is None else zero & valid
        rows = torch.stack([_sum(part, site).cpu() for part in (sizes, values, zero)] + [_counts(values, valid, site)])
        there = site.index >= 0
        self.sums[site.producer].index_add_(1, site.index[there], rows[:, there])

    def _limit(self, site: Site, values: Tensor, valid: Tensor | None) -> float:
        """What counts as zero at a site, fixed by the first batch."""
        place = self._read[site.producer] = self._read.get(site.producer, -1) + 1
        if (site.producer, place) not in self.limits:
            there = site.index >= 0
            squares = _sum(values.double().square(), site).cpu()[there]
            mean = float(squares.sum()) / max(float(_counts(values, valid, site)[there].sum()), 1.0)
            self.limits[site.producer, place] = NEAR_ZERO * mean**0.5
        return self.limits[site.producer, place]


def _sum(values: Tensor, site: Site) -> Tensor:
    """Over all axes but those of channels; ``[places]``."""
    rest = [axis for axis in range(values.dim()) if axis not in site.axes]
    return (values.sum(rest, dtype=torch.float64) if rest else values.double()).reshape(-1)


def _counts(values: Tensor, valid: Tensor | None, site: Site) -> Tensor:
    """How many values there are at each place; padding lies beside the axes of channels."""
    places = site.index.numel()
    each = values.numel() / places
    if valid is not None:
        each *= float(valid.double().mean())
    return torch.full((places,), float(round(each)), dtype=torch.float64)


def _spread(tokens: Tensor, out: Tensor, channels: tuple[int, ...]) -> Tensor | None:
    """The token mask ``[B, T]`` along the axes of an activation; None where it has no tokens.

    Known are ``[B, T, ...]``, ``[B * T, ...]`` and ``[B, channels or heads, T, ...]``.
    """
    batch, length = tokens.shape
    free = [axis not in channels for axis in range(out.dim())]
    if out.dim() >= 2 and out.shape[:2] == tokens.shape and free[0] and free[1]:
        shape: list[int] = [batch, length, *[1] * (out.dim() - 2)]
    elif out.dim() >= 2 and out.shape[0] == batch * length and length > 1 and free[0]:
        shape = [batch * length, *[1] * (out.dim() - 1)]
    elif out.dim() >= 3 and (out.shape[0], out.shape[2]) == (batch, length) and free[0] and free[2]:
        shape = [batch, 1, length, *[1] * (out.dim() - 3)]
    else:
        return None
    return tokens.to(out.device).reshape(shape)
