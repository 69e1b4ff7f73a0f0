"""A small network, and runtimes that do not behave: each runs in a process of its own, looked up here by name."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn

from secateur.measure.rivals import Case
from secateur.measure.rivals.builders import Call, eager


class Net(nn.Module):
    """Keyword arguments in, a mapping out, dropout that must be off, and a second output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor, scale: Tensor, cache: None = None) -> dict[str, Any]:
        hidden = self.drop(self.first(x)).relu() * scale
        return {"logits": self.second(hidden), "cache": cache, "states": (hidden,)}


def lying(case: Case) -> Call:
    """Off by one in the second output."""
    honest = eager(case)

    def call() -> Any:
        found = honest()
        return {**found, "states": tuple(state + 1 for state in found["states"])}

    return call


def lying_later(case: Case) -> Call:
    """Right when it is built, wrong when it has been called often enough."""
    honest, calls = eager(case), 0

    def call() -> Any:
        nonlocal calls
        calls += 1
        found = honest()
        return found if calls < 10 else {**found, "logits": found["logits"] * 0}

    return call


def dying_while_built(case: Case) -> Call:
    raise RuntimeError(f"no kernel for {type(case.model).__name__}")


def dying_in_a_round(case: Case) -> Call:
    """Killed by the system once its turn has come, with a word on standard error."""
    honest, calls = eager(case), 0

    def call() -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            os.write(2, b"out of luck\n")
            os.kill(os.getpid(), 9)
        return honest()

    return call


def hanging_in_a_round(case: Case) -> Call:
    """Answers while it is built, then never again."""
    honest, calls = eager(case), 0

    def call() -> Any:
        nonlocal calls
        calls += 1
        if calls > 4:
            time.sleep(3600)
        return honest()

    return call


def chatty(case: Case) -> Call:
    """Prints to standard output, as some runtimes do, and says with how many threads it runs."""
    honest, calls = eager(case), 0
    sys.stdout.write("loading\n")
    os.write(1, b"from C\n")
    assert os.environ["OMP_NUM_THREADS"] == str(case.threads) == str(torch.get_num_threads())

    def call() -> Any:
        nonlocal calls
        calls += 1
        if calls < 10:
            sys.stdout.write('{"ms": 0}\n')
        return honest()

    return call
