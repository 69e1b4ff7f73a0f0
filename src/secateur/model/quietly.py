"""Running a user's model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import torch
from torch import nn

__all__ = ["quietly"]


@contextmanager
def quietly(model: nn.Module, mode: Literal["eval", "train", "same"] = "eval") -> Iterator[None]:
    """Run ``model`` in eval or train mode, or as it is; afterwards modes, buffers, gradients and RNG are as before.

    Args:
        model: any module.
        mode: ``"eval"``: batch norm frozen, dropout off. ``"train"``: as in training; running
            statistics that the passes change are restored. ``"same"``: every module in its own mode, so that
            what the user froze stays frozen; buffers are restored too.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with quietly(net, "train"):
        ...     _ = net(torch.randn(8, 2))
        >>> int(net[0].num_batches_tracked)
        0
    """
    modes = {module: module.training for module in model.modules()}
    gradients = {parameter: parameter.grad for parameter in model.parameters()}
    buffers = {buffer: buffer.detach().clone() for buffer in model.buffers()} if mode != "eval" else {}
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter in gradients:
                parameter.grad = None
            if mode != "same":
                with suppress(NotImplementedError):  # an exported program has one mode, for good
                    model.train(mode == "train")
            yield
        finally:
            for module, training in modes.items():
                module.training = training
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            for buffer, value in buffers.items():
                buffer.data.copy_(value)  # no new version: a graph that waits for its backward may have saved it
