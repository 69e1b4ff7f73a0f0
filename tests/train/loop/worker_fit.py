"""Trainings that really die by SIGKILL and are begun again: every one runs in a process of its own.

This file is run as a program: it loads torch once, and each training is a fork of it that has trained nothing yet.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, IterableDataset

from secateur.train import Plan, Pruner, prune
from secateur.train.loop.fit import fit
from secateur.train.loop.fitted import Fitted, Moment
from secateur.train.loop.training import Training

SAMPLES = 38
X = torch.randn(SAMPLES, 12, generator=torch.Generator().manual_seed(1))
Y = torch.arange(SAMPLES) % 3
VALID = (X[:9], Y[:9])


class Shaken(Dataset[tuple[Tensor, Tensor]]):
    """Draws from all three global random states for every sample."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(12) * random.random() * float(np.random.rand())  # noqa: NPY002 - what many data sets do
        return X[index] + noise, Y[index]


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Has no length; shuffles as it goes."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index in torch.randperm(SAMPLES):
            yield X[index], Y[index]


def net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def one_cycle(optimizer: torch.optim.Optimizer, total: int) -> OneCycleLR:
    return OneCycleLR(optimizer, 0.05, total_steps=total)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


FATAL: dict[str, int] = {}
"""``forward``: the forward pass, ``step``: the optimizer step, that is the last thing this process does."""


def count(what: str) -> None:
    if what in FATAL:
        FATAL[what] -= 1
        if FATAL[what] == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def loss_of_step(model: nn.Module, batch: Any) -> Tensor:
    count("forward")
    x, y = batch
    return F.cross_entropy(model(x), y)


def loud(model: nn.Module, batch: Any) -> Tensor:
    """So much that the scaler has to skip the first steps, and would again if it forgot."""
    return 30 * loss_of_step(model, batch)


def after_step(moment: Moment) -> None:
    if moment.at == "step":
        count("step")


def tensors(**options: Any) -> tuple[nn.Module, Fitted]:
    """Adam, cosine, dropout, a gradual pruner; a checkpoint every 2 steps."""
    model = net()
    plan = Plan(0.8, schedule="cubic", begin=2, end=16, every=3)
    training = Training(4, "adam", lr=0.01, lr_schedule="cosine", batch_size=8, step=loss_of_step, clip=0.5, seed=3)
    pruner = Pruner(model, plan)
    fitted = fit(model, (X, Y), training, pruner=pruner, keep=(0, 3), valid=VALID, every=2, **options)
    assert pruner.clock == fitted.steps
    return model, fitted


def workers(**options: Any) -> tuple[nn.Module, Fitted]:
    """Two loader workers that shuffle and shake, accumulation with a ragged end, torch's one-cycle, soft movement."""
    model = net()
    plan = Plan(0.6, criterion="movement", schedule="linear", begin=1, end=5, every=2, policy="soft")
    training = Training(3, momentum, lr_schedule=one_cycle, step=loss_of_step, accumulate=4, seed=1)
    loader = DataLoader(Shaken(), batch_size=4, shuffle=True, num_workers=2)
    return model, fit(model, loader, training, pruner=Pruner(model, plan), every=1, **options)


def here(**options: Any) -> tuple[nn.Module, Fitted]:
    """A loader of this process with a generator of its own, transforms that shake, fixed masks, bf16."""
    model = net()
    prune(model, 0.5)
    training = Training(3, "sgd", step=loss_of_step, amp="bf16", accumulate=2, lr_schedule="linear")
    loader = DataLoader(Shaken(), batch_size=5, shuffle=True, generator=torch.Generator().manual_seed(8))
    return model, fit(model, loader, training, every=1, **options)


def stream(**options: Any) -> tuple[nn.Module, Fitted]:
    """A loader without length; fp16 with its scaler; checkpoints of whole epochs that are not known to be over."""
    model = net()
    training = Training(3, "adamw", weight_decay=0.1, step=loud, amp="fp16", clip=1.0)
    return model, fit(model, DataLoader(Stream(), batch_size=6), training, every=7, **options)


KINDS: dict[str, Callable[..., tuple[nn.Module, Fitted]]] = {
    "tensors": tensors,
    "workers": workers,
    "here": here,
    "stream": stream,
}
DEATHS = {
    "tensors": [{"forward": 1}, {"forward": 4}, {"step": 5}, {"step": 9}, {"forward": 20}],
    "workers": [{"forward": 7}, {"step": 2}, {"forward": 12}, {"step": 5}],
    "here": [{"step": 1}, {"forward": 4}, {"step": 6}, {"step": 11}],
    "stream": [{"forward": 5}, {"step": 8}, {"forward": 13}, {"step": 20}],
}


def run(kind: str, folder: Path, fatal: dict[str, int], result: str) -> int:
    """One training in a fork; its wait status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    status = 1
    try:
        torch.set_num_threads(1)
        FATAL.update(fatal)
        model, fitted = KINDS[kind](checkpoint=folder / f"{kind}.pt", callbacks=after_step)
        rows = [[row.epoch, row.step, row.loss, row.lr, row.metric] for row in fitted.history]
        kept = {step: snapshot.model for step, snapshot in fitted.snapshots.items()}
        state = {"model": model.state_dict(), "rows": rows, "steps": fitted.steps, "kept": kept}
        torch.save(state, folder / result)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


def check_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            check_equal(one[key], other[key], f"{where} {key}")
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), f"{where}: largest difference {(one - other).abs().max()}"
    else:
        assert one == other, f"{where}: {one} and {other}"


def main(kind: str, folder: Path) -> None:
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # loads what else every fork would load for itself
    assert run(kind, folder, {}, "whole.pt") == 0
    whole = torch.load(folder / "whole.pt")
    for death in [*DEATHS[kind], {}]:
        (folder / f"{kind}.pt").unlink(missing_ok=True)
        status = run(kind, folder, death, "never.pt" if death else "again.pt")
        assert os.WIFSIGNALED(status) == bool(death), (death, status)
        if death:
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert not (folder / "never.pt").exists()
            existed = (folder / f"{kind}.pt").exists()
            assert run(kind, folder, {}, "again.pt") == 0
            print(kind, death, "resumed" if existed else "begun anew")
        check_equal(whole, torch.load(folder / "again.pt"), f"{kind} {death}")
        (folder / "again.pt").unlink()
    # what is finished returns at once: a single forward pass would be its death
    assert run(kind, folder, {"forward": 1}, "again.pt") == 0
    check_equal(whole, torch.load(folder / "again.pt"), f"{kind} finished")


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # on machines with few cores
    main(sys.argv[1], Path(sys.argv[2]))
