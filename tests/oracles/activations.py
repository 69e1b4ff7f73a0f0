"""Activation statistics, element by element in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.evidence.moments import NEAR_ZERO
from secateur.model.targets import find_targets

__all__ = ["KINDS", "activation_statistics", "check_statistics", "read_activations"]

_FILTER = parse_unit("filter")[0]
KINDS = ["activation_mean", "activation_signed", "activation_zeros"]


def activation_statistics(parts: list[Tensor], exact: bool = True, axis: int = 1) -> dict[str, Tensor]:
    """The three statistics of a list of activations, channel by channel, element by element."""
    rows = [part.double().movedim(axis, 0) for part in parts]
    first = rows[0].flatten().tolist()
    limit = 0.0 if exact else NEAR_ZERO * (sum(v * v for v in first) / len(first)) ** 0.5
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for channel in range(rows[0].shape[0]):
        values = [value for row in rows for value in row[channel].flatten().tolist()]
        found["activation_mean"].append(sum(map(abs, values)) / len(values))
        found["activation_signed"].append(sum(values) / len(values))
        found["activation_zeros"].append(sum(abs(value) <= limit for value in values) / len(values))
    return {kind: torch.tensor(numbers, dtype=torch.float64) for kind, numbers in found.items()}


def read_activations(net: nn.Module, data: Any, batches: int = 9, **more: Any) -> dict[str, dict[str, Tensor]]:
    return collect(net, KINDS, find_targets(net), _FILTER, Source(data, batches=batches, **more))


def check_statistics(found: dict[str, dict[str, Tensor]], name: str, slow: dict[str, Tensor]) -> None:
    for kind in KINDS:
        torch.testing.assert_close(found[kind][name], slow[kind], rtol=1e-9, atol=1e-12, msg=f"{kind} of {name}")
