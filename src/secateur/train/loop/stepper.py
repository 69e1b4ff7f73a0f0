"""One optimizer step: forward, backward, clip, update."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.model.batches import Batch, loss_of
from secateur.train.loop.training import Training

__all__ = ["Stepper", "not_finite"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@final
class Stepper:
    """Makes optimizer steps as a training asks.

    Masks and pruners are attached to the optimizer before this is made: their hooks run first, so that gradients are
    masked before they are clipped. Where a scaler is used, gradients are unscaled before either.

    Args:
        model: any module.
        optimizer: owns its parameters.
        training: loss, clip, amp.
        device: of the model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, training: Training, device: torch.device) -> None:
        self._model, self._optimizer, self._training = model, optimizer, training
        self._here = device.type == "cpu"  # elsewhere reading a loss waits for the device
        self._cast: AbstractContextManager[Any] = nullcontext()
        if training.amp is not None:
            self._cast = torch.autocast(device.type, dtype=_DTYPES[training.amp])
        self.scaler = torch.amp.GradScaler(device.type) if training.amp == "fp16" else None
        if training.clip is not None:
            optimizer.register_step_pre_hook(self._clip)

    def __call__(self, group: Sequence[Batch], step: int) -> float | Tensor:
        """One step over the batches of a group, each with the same weight.

        Args:
            group: batches on the model's device, at least one.
            step: of the clock, for messages.

        Returns:
            The mean loss: a number on the processor, a tensor elsewhere.

        Raises:
            ValueError: for a loss that is not finite, where that is seen at once: before the weights change.
        """
        training, scaler, share = self._training, self.scaler, 1 / len(group)
        self._optimizer.zero_grad()
        total: float | Tensor = 0.0
        for batch in group:
            with self._cast:
                loss = loss_of(self._model, batch, training.loss, training.step)
            value = loss.item() if self._here else loss.detach().float()
            if self._here and not math.isfinite(value):
                raise not_finite(float(value), f"at step {step}", training)
            total = total + value * share
            if share != 1:
                loss = loss * share
            (loss if scaler is None else scaler.scale(loss)).backward()  # pyright: ignore[reportUnknownMemberType]
        if scaler is None:
            self._optimizer.step()
        else:
            scaler.unscale_(self._optimizer)  # fused optimizers would do it after the hooks that mask and clip
            scaler.step(self._optimizer)
            scaler.update()
        return total

    def _clip(self, optimizer: Optimizer, *_: Any) -> None:
        assert self._training.clip is not None
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        nn.utils.clip_grad_norm_(parameters, self._training.clip)


def not_finite(loss: float, where: str, training: Training) -> ValueError:
    """The error for a loss that is infinite or NaN."""
    tries = ["a smaller learning rate"]
    tries += ["clip=1.0"] if training.clip is None else []
    tries += ["amp='bf16' or None instead of 'fp16'"] if training.amp == "fp16" else []
    return ValueError(
        f"the loss is {loss} {where}: training has come apart. Try {' or '.join(tries)}; also look for NaN or huge "
        "values in the data"
    )
