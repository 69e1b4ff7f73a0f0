"""Small networks on a few digits, and a clock that needs no time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from secateur.measure.count import count
from secateur.measure.latency import Speed
from secateur.measure.measure import measure
from secateur.records import Latency, Record, Score, Trial
from secateur.train.compress import figures, reporting
from secateur.train.loop.fit import fit
from secateur.train.loop.training import Training

__all__ = ["Digits", "conv_net", "digits", "mlp", "no_clock", "recovery", "state", "trained_mlp", "trial"]

Pair = tuple[Tensor, Tensor]
recovery = Training(1, lr=2e-3, lr_schedule="linear", loss=F.cross_entropy)


@dataclass(frozen=True)
class Digits:
    train: Pair
    valid: Pair
    test: Pair


@cache
def digits() -> Digits:
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    return Digits((x[:600], y[:600]), (x[600:900], y[600:900]), (x[900:1200], y[900:1200]))


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))


@cache
def _weights() -> dict[str, Tensor]:
    net = mlp()
    fit(net, digits().train, Training(12, lr=3e-3, loss=F.cross_entropy), progress=False)
    return net.state_dict()


def trained_mlp() -> nn.Sequential:
    net = mlp()
    net.load_state_dict(_weights())
    return net


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds are multiply-adds: what a clock would tell of a large model, and always the same."""

    def speed(dense: nn.Module, sparse: nn.Module, inputs: Any, batches: tuple[int, ...], **_: Any) -> Speed:
        ms = [count(model, inputs, masks={}).macs / 1e6 for model in (dense, sparse)]
        rows = tuple((Latency(batches[0], 1, each, each, each, 5),) for each in ms)
        return Speed((rows[0], rows[1]), (ms[0] / ms[1],), (1.0,), ((0.95, 1.05),))

    def untimed(*models: Any, **choices: Any) -> Record:
        return measure(*models, **(choices | {"batches": ()}))

    monkeypatch.setattr(figures, "against_itself", speed)
    monkeypatch.setattr(reporting, "measure", untimed)


def trial(key: str = "a", **figures: Any) -> Trial:
    """A point with the figures given, the others dull."""
    drop = figures.pop("drop", 0.0)
    own: dict[str, Any] = {"family": "f", "strength": 0.5, "sparsities": (0.5,), "untrained": None, "test": None}
    own |= {"bytes": 1000, "params": 100, "macs": 100, "ms": 1.0, "speedup": 1.0, "spread": (0.9, 1.1)}
    own |= {"epochs": 1, "steps": 1, "seconds": 1.0}
    valid = Score("valid", figures.pop("value", 90.0 - drop), drop)
    return Trial(key=key, valid=valid, **(own | figures))
