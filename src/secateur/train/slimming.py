"""The training penalty of network slimming: scales of batch norms shrink unless the loss holds them."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage]
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from secateur.core.real import is_real
from secateur.model.names import unwrap

__all__ = ["slimming"]


@contextmanager
def slimming(model: nn.Module, strength: float = 1e-4, *, start: float | None = None) -> Generator[None]:
    """Train with ``L + strength * sum |gamma|`` over all batch norms: ``gamma.grad += strength * sign(gamma)``.

    In ``with slimming(model):`` every optimizer that steps a batch norm's scale adds the penalty's subgradient once per
    step: after the backward passes, however many the step gathers, with gradients unscaled, before masks and clipping.
    It works in ``sc.fit`` and in a loop of your own, with a closure too. Weight decay on the scales stays as
    the optimizer has it. Afterwards ``sc.prune(model, 0.5, criterion="bn_scale", unit="channel", ...)``.

    Args:
        model: any module; wrappers are looked through.
        strength: lambda; the paper takes 1e-4 (VGG) and 1e-5 (ResNet-164, DenseNet-40).
        start: set all scales to this before; the paper takes 0.5. None: as they are.

    Raises:
        ValueError: for a model without trainable batch norm scales, and a strength that is no positive number.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        >>> with slimming(net, 0.25):
        ...     net(torch.zeros(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> net[1].weight.tolist()
        [0.75, 0.75]

    Reference:
        Liu, Li, Shen, Huang, Yan, Zhang 2017, arXiv 1708.06519.
    """
    if not (is_real(strength) and strength > 0):
        raise ValueError(f"strength={strength!r}: a positive number; the paper takes 1e-4 and 1e-5")
    if start is not None and not is_real(start):
        raise ValueError(
            f"start={start!r}: the value of all scales when training begins, a number such as 0.5, or None"
        )
    if not _scales(model):
        raise ValueError(f"{type(unwrap(model)).__name__} has no batch norm with scales to train, so nothing can slim")
    if start is not None:
        with torch.no_grad():
            for scale in _scales(model):
                scale.fill_(start)

    def penalise(optimizer: Optimizer) -> None:
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for scale in _scales(model):
            if id(scale) in stepped:
                push = strength * scale.detach().sign()
                scale.grad = push if scale.grad is None else scale.grad + push

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        if closure is None:
            penalise(optimizer)
            return None
        behind = _behind(closure, lambda: penalise(optimizer))  # its backward pass is inside of the step
        return args[:1], {**kwargs, "closure": behind}

    handle = register_optimizer_step_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def _behind(closure: Callable[[], Any], penalise: Callable[[], None]) -> Callable[[], Any]:
    def both() -> Any:
        loss = closure()
        penalise()
        return loss

    return both


def _scales(model: nn.Module) -> list[Tensor]:
    """Found anew each time, as conversions replace parameters."""
    norms = (module for module in unwrap(model).modules() if isinstance(module, _BatchNorm))
    return [norm.weight for norm in norms if norm.weight is not None and norm.weight.requires_grad]  # pyright: ignore[reportUnnecessaryComparison]
