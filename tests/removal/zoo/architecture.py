"""A row of the table of networks that removal has to manage, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["Architecture", "Build", "image", "seeded", "signal", "tokens", "vectors"]

Build = Callable[[], nn.Module]
Inputs = Callable[[int], Any]


@dataclass(frozen=True)
class Architecture:
    """One network.

    Attributes:
        name: of the test.
        make: the network, the same at every call, in eval mode, with statistics that are not the initial ones.
        inputs: batch size -> a tensor, a tuple of positional or a dict of keyword arguments.
        min_groups: exact groups of unit "channel" (two units and more) that a perfect tool finds at least; the note
            says which.
        stage: which of the issue's two lists it is on.
        macs_at_half: share of the MACs that is left at most when half of every group is gone.
        tolerance: of the comparison with the masked network, relative to its largest output and never below it.
        note: why there are so many groups.
        min_units: units of all those groups together; what couples too much has fewer.
        consumer_law: zeroing the consumers alone silences every unit. Not so where channels meet each other before a
            weight reads them (the root mean square), or are made and read by the same rows (tied weights).
        heads: units of each group of unit "head".
        head_dims: units of each group of unit "head_dim".
    """

    name: str
    make: Build
    inputs: Inputs
    min_groups: int
    stage: Literal["first", "then"]
    macs_at_half: float | None = None
    tolerance: float = 1e-5
    note: str = ""
    min_units: int = 0
    consumer_law: bool = True
    heads: tuple[int, ...] = ()
    head_dims: tuple[int, ...] = ()


def _unsettle(model: nn.Module) -> None:
    """Make everything that starts as a constant (biases, affine, running statistics) different per position."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


def seeded(build: Build, seed: int = 0) -> Build:
    """The same network at every call, whatever the global generator is at."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build()
            _unsettle(model)
        return model.eval()

    return make


def _generator(batch: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 + batch)


def vectors(*shape: int, dtype: torch.dtype = torch.float32) -> Callable[[int], Tensor]:
    """Batch size -> normal numbers ``[batch, *shape]``."""
    return lambda batch: torch.randn(batch, *shape, generator=_generator(batch)).to(dtype)


def image(channels: int = 3, size: int = 16) -> Callable[[int], Tensor]:
    """Batch size -> square images."""
    return vectors(channels, size, size)


def signal(channels: int, length: int) -> Callable[[int], Tensor]:
    """Batch size -> sequences of numbers, channels first."""
    return vectors(channels, length)


def tokens(vocabulary: int = 40, length: int = 10) -> Callable[[int], Tensor]:
    """Batch size -> token ids."""
    return lambda batch: torch.randint(0, vocabulary, (batch, length), generator=_generator(batch))
