"""Where activations are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Site", "Sites"]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """Where activations of a layer are read.

    Attributes:
        producer: the weight.
        operator: whose output it is.
        own: no nonlinear operator follows; it is the layer's own output.
        exact: the operator makes exact zeros.
        dims: how many axes the output has.
        axes: along which channels lie.
        sizes: of the output along them.
        index: the channel at each place along these axes ``[places]``, -1 for other layers' channels.
        where: the line of code.
    """

    producer: str
    operator: str
    own: bool
    exact: bool
    dims: int
    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    index: Tensor
    where: str

    def __str__(self) -> str:
        what = f"its own output, {self.operator}" if self.own else self.operator
        return f"{self.producer}: {what} in {self.where}"


@dataclass(frozen=True, slots=True, eq=False)
class Sites:
    """What one run did.

    Attributes:
        operators: all that were called, in order.
        at: number of a call -> what is read there.
    """

    operators: tuple[Any, ...]
    at: Mapping[int, tuple[Site, ...]]

    def __iter__(self) -> Iterator[Site]:
        for sites in self.at.values():
            yield from sites
