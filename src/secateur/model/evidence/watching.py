"""Watching the operators of one run from below, and reading activations where they are made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.evidence.example_axis import ExampleAxis
from secateur.model.evidence.readers import Reader, Reading
from secateur.model.graph.site import Site, Sites
from secateur.model.graph.trace import where

__all__ = ["Difference", "Watch", "spread", "token_mask"]


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
        readers: what reads there; they begin anew, and keep what they read when they are told to ``commit``.
        batch: of this run; its ``attention_mask`` ``[B, T]`` says which tokens are padding.
        examples: producer, number of the reading -> where examples lie in it.

    Attributes:
        difference: where the run went another way; what was read is then worth nothing.
    """

    def __init__(
        self,
        sites: Sites,
        readers: Sequence[Reader],
        batch: Any,
        examples: Mapping[tuple[str, int], ExampleAxis] | None = None,
    ) -> None:
        super().__init__()
        self._examples = examples or {}
        self.difference: Difference | None = None
        self._sites, self._readers, self._tokens = sites, readers, token_mask(batch)
        self._count = 0
        self._calls: Counter[str] = Counter()
        for reader in readers:
            reader.begin(batch)

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
        valid = None if self._tokens is None else spread(self._tokens, out, site.axes)
        number = self._calls[site.producer]
        self._calls[site.producer] += 1
        examples = self._examples.get((site.producer, number), ExampleAxis())
        reading = Reading(site, number, out.detach(), valid, out, examples)
        for reader in self._readers:
            reader.read(reading)


def spread(tokens: Tensor, out: Tensor, channels: tuple[int, ...]) -> Tensor | None:
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


def token_mask(batch: Any) -> Tensor | None:
    """Which tokens ``[B, T]`` of a batch are not padding; None where the batch does not say."""
    given = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(given, Tensor):
        return None
    if given.dim() != 2:
        raise ValueError(
            f"attention_mask has shape {tuple(given.shape)}; padding is left out by a mask [batch, tokens]. Give step= "
            "if padding should count"
        )
    return given != 0
