"""What kept and removed weights become when a mask is put on a network anew: the actions of Zhou et al. 2019.

Each works on one parameter, over the whole of it: kept weights (mask 1) get a value made of the initial ones, removed
weights (mask 0) a value at which they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from secateur.core.canonical import wide

__all__ = ["KEPT", "REMOVED", "KeptAction", "RemovedAction", "act"]


@dataclass(frozen=True, slots=True)
class KeptAction:
    """A row: ``function(init, mask, generator)`` gives values in the shape of ``init``; only kept ones are used."""

    function: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    summary: str


@dataclass(frozen=True, slots=True)
class RemovedAction:
    """A row: ``function(init, final)`` gives values; ``final`` is None where it is not needed."""

    function: Callable[[Tensor, Tensor | None], Tensor]
    summary: str
    needs_final: bool = False


def act(
    init: Tensor,
    mask: Tensor,
    generator: torch.Generator,
    *,
    kept: str = "rewind",
    removed: str = "zero",
    rescale: bool = False,
    final: Tensor | None = None,
) -> Tensor:
    """The values of one parameter under its mask.

    Args:
        init: the weights before training.
        mask: bool, True: kept.
        generator: of shuffles, on the CPU.
        kept: a row of ``KEPT``.
        removed: a row of ``REMOVED``.
        rescale: kept values times ``numel / number kept``.
        final: the weights after training, for ``removed="zero_if_shrunk"``.

    Returns:
        Values in the shape of ``init``, in at least float32.

    Raises:
        ValueError: for unknown names, and where ``final`` is missing.

    Example:
        >>> init, mask = torch.tensor([1.0, -3.0, 2.0]), torch.tensor([True, False, True])
        >>> act(init, mask, torch.Generator(), rescale=True).tolist()
        [1.5, 0.0, 3.0]
        >>> act(init, mask, torch.Generator(), removed="init").tolist()
        [1.0, -3.0, 2.0]

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    if kept not in KEPT or removed not in REMOVED:
        raise ValueError(
            f"kept={kept!r}, removed={removed!r}: take kept= {', '.join(KEPT)}, and removed= {', '.join(REMOVED)}"
        )
    if REMOVED[removed].needs_final and final is None:
        raise ValueError(f"removed={removed!r} compares with the weights after training: give final=, a state dict")
    init, mask = wide(init), mask.bool()
    ones = KEPT[kept].function(init, mask, generator)
    if rescale:
        ones = ones * (mask.numel() / max(1, int(mask.sum())))
    return torch.where(mask, ones, REMOVED[removed].function(init, None if final is None else wide(final)))


def _shuffled(values: Tensor, generator: torch.Generator) -> Tensor:
    order = torch.randperm(values.numel(), generator=generator).to(values.device)
    return values.flatten()[order].reshape(values.shape)


def _reinit(init: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    return _shuffled(init, generator)


def _reshuffle(init: Tensor, mask: Tensor, generator: torch.Generator) -> Tensor:
    made = init.clone()
    made[mask] = _shuffled(init[mask], generator)
    return made


def _spread(init: Tensor) -> Tensor:
    """The population's standard deviation, of the whole layer."""
    return init.double().std(correction=0).to(init.dtype)


_Kept: TypeAlias = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _signed(function: _Kept) -> _Kept:
    return lambda init, mask, generator: function(init, mask, generator).abs() * init.sign()


def _shrunk(init: Tensor, final: Tensor | None) -> Tensor:
    assert final is not None  # act
    return torch.where(final.to(init.device).abs() < init.abs(), 0.0, init)


KEPT: Mapping[str, KeptAction] = {
    "rewind": KeptAction(lambda init, mask, generator: init, "its initial value"),
    "reinit": KeptAction(_reinit, "the initial value of any weight of the layer, shuffled"),
    "reshuffle": KeptAction(_reshuffle, "the initial value of any kept weight, shuffled"),
    "constant": KeptAction(
        lambda init, mask, generator: _shuffled(init.sign(), generator) * _spread(init),
        "the initial standard deviation of the layer, its signs shuffled over the layer",
    ),
    "signed_reinit": KeptAction(_signed(_reinit), "as reinit, with the sign of its own initial value"),
    "signed_reshuffle": KeptAction(_signed(_reshuffle), "as reshuffle, with the sign of its own initial value"),
    "signed_constant": KeptAction(
        lambda init, mask, generator: init.sign() * _spread(init),
        "the initial standard deviation of the layer, with the sign of its own initial value",
    ),
}
"""Mask-1 actions; the standard deviation is the population's."""

REMOVED: Mapping[str, RemovedAction] = {
    "zero": RemovedAction(lambda init, final: torch.zeros_like(init), "zero"),
    "init": RemovedAction(lambda init, final: init, "frozen at its initial value"),
    "zero_if_shrunk": RemovedAction(
        _shrunk, "zero if training made it smaller, else frozen at its initial value", needs_final=True
    ),
}
"""Mask-0 actions."""
