"""Two gloo processes on this machine, and the single process with the whole batch that they must agree with."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.model.masks import Masks

WORLD = 2


def spawn(work: Callable[[int, Path], None], folder: Path) -> None:
    """Run ``work(rank, folder)`` in two processes; what one raises fails the test with its traceback."""
    torch.multiprocessing.spawn(_process, (work, folder), nprocs=WORLD)


def _process(rank: int, work: Callable[[int, Path], None], folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60))
    try:
        work(rank, folder)
        dist.barrier()
        (folder / f"done{rank}").touch()
    finally:
        dist.destroy_process_group()
    # torch keeps a group that DDP has used, and its threads: one that releases a tensor while the interpreter ends
    # aborts the process, after all is done (pytorch/pytorch#190489, pull #179291). What was raised has left by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def make_uneven(seed: int = 0) -> nn.Sequential:
    """float64; first axes 5, 7 and 1, so that two shards are never equal and one is empty. No batch norm."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 5, 2), nn.Tanh(), nn.Flatten(), nn.Linear(20, 7), nn.Tanh(), nn.Linear(7, 1)]
    return nn.Sequential(*layers).double()


def make_data(steps: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (
            torch.randn(size, 2, 3, 3, generator=generator, dtype=torch.float64),
            torch.randn(size, 1, generator=generator, dtype=torch.float64),
        )
        for _ in range(steps)
    ]


def share(batch: tuple[Tensor, Tensor], rank: int) -> tuple[Tensor, Tensor]:
    """This rank's half of a batch."""
    return batch[0].chunk(WORLD)[rank], batch[1].chunk(WORLD)[rank]


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Full weights by clean name, gathered from all ranks."""
    return {name.removeprefix("module."): whole(p.detach()).clone() for name, p in model.named_parameters()}


def expect_same_everywhere(value: dict[str, Tensor]) -> None:
    found: list[Any] = [None] * WORLD
    dist.all_gather_object(found, value)
    assert found[0].keys() == found[1].keys()
    for name in value:
        assert torch.equal(found[0][name], found[1][name]), f"{name} differs between the ranks"


def expect_close(model: nn.Module, oracle: nn.Module) -> None:
    found = weights_of(model)
    for name, value in oracle.named_parameters():
        assert torch.allclose(found[name], value.detach(), rtol=1e-11, atol=1e-13), name


def expect_zeros(model: nn.Module, masks: Masks) -> None:
    found = weights_of(model)
    for name, mask in masks.items():
        assert not bool(mask.all())
        assert torch.count_nonzero(found[name][~mask]) == 0, f"{name} has removed weights that are not zero"
    masks.check()
