"""The passes over the batches: one forward, and one backward where anybody asks for gradients, for all observers.

An observer watches the forward passes (activations, inputs of layers), names tensors whose gradients it wants
(weights, gates), or both. The user's ``.grad``, modes, buffers, RNG and hooks are as before afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.model.batches import forward_of, limited, loss_of, loss_of_output, to_device
from secateur.model.evidence.source import Source
from secateur.model.quietly import quietly
from secateur.model.ranks import Ranks
from secateur.model.sharding import full, is_sharded, reshard

__all__ = ["Found", "Observer", "Pass", "Streamable", "observe", "results"]

Found = dict[str, dict[str, Tensor]]
"""Kind -> name -> tensor."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One batch on its way through the model.

    Attributes:
        batch: on the model's device.
        forward: runs the model on it once more, hooks of the observers included; what it returns is not used.
        differentiated: whether a backward pass follows.
    """

    batch: Any
    forward: Callable[[], Any]
    differentiated: bool


class Observer(ABC):
    """Takes part in the passes over the batches; what a method is not needed for stays as it is here."""

    needs_gradients: ClassVar[bool] = False
    """Whether it needs the loss and a backward pass."""

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Around all passes: hooks and modes."""
        yield

    def prepare(self, one: Pass) -> None:
        """Before the forward pass of a batch, while nobody watches: look at the model with ``one.forward()``."""
        return

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Around the forward pass of one batch, the loss left out where it is not part of ``step``."""
        yield

    def variables(self) -> Mapping[str, Tensor]:
        """What the loss is differentiated by, asked right behind the forward pass; names are the observer's own."""
        return {}

    def take(self, gradients: Mapping[str, Tensor]) -> None:
        """The gradients of one batch, by the names of ``variables``; zeros where the loss does not depend on one."""
        return

    @abstractmethod
    def combine(self, ranks: Ranks) -> None:
        """After all passes: what was summed up here becomes what was summed up on all ranks; collective."""

    @abstractmethod
    def result(self) -> Found:
        """What was found, after all passes, of all ranks that were combined."""


class Streamable(Observer):
    """An observer of forward passes alone, whose sums a checkpoint can hold: it may also watch a training."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What was summed up so far, in tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""


def observe(root: nn.Module, observers: Sequence[Observer], source: Source, ranks: Ranks) -> Found:
    """Run the batches once, and gather what the observers found.

    Args:
        root: an unwrapped module.
        observers: who takes part.
        source: of batches and loss.
        ranks: that read batches of their own each.

    Returns:
        Kind -> name -> tensor.

    Raises:
        ValueError: where the loss cannot be had, or no batch came, on any rank.
    """
    backward = any(one.needs_gradients for one in observers)
    device = next(root.parameters()).device
    data = [source.data] if isinstance(source.data, Tensor) else source.data
    with ranks.together(), quietly(root, source.mode), torch.set_grad_enabled(backward), ExitStack() as stack:
        for one in observers:
            stack.enter_context(one.installed())
        for batch in limited(data, source.batches):
            _pass(root, observers, source, to_device(batch, device), backward)
    return results(observers, ranks)


def results(observers: Sequence[Observer], ranks: Ranks) -> Found:
    """What observers found, all ranks taken together; kind -> name -> tensor."""
    for one in observers:
        one.combine(ranks)
    found: Found = {}
    with ranks.together():
        for one in observers:
            found |= one.result()
    return found


def _pass(root: nn.Module, observers: Sequence[Observer], source: Source, batch: Any, backward: bool) -> None:
    reshard(root)  # FSDP2: after a pass the modules hold gathered copies, whose gradients are not reduced
    by_step = backward and source.step is not None

    def forward() -> Any:
        return loss_of(root, batch, source.loss, source.step) if by_step else forward_of(root, batch, source.step)

    one = Pass(batch, forward, backward)
    for observer in observers:
        observer.prepare(one)
    with ExitStack() as stack:
        for observer in observers:
            stack.enter_context(observer.around(one))
        output = forward()
        named = {(at, name): tensor for at, each in enumerate(observers) for name, tensor in each.variables().items()}
    if not backward:
        return
    value = output if by_step else loss_of_output(output, batch, source.loss)
    gradients = _gradients(value, named)
    for at, each in enumerate(observers):
        each.take({name: gradient for (owner, name), gradient in gradients.items() if owner == at})


def _gradients(value: Tensor, named: Mapping[tuple[int, str], Tensor]) -> dict[tuple[int, str], Tensor]:
    """Gradients by name, without touching ``.grad`` or running the user's accumulation hooks where possible."""
    frozen = [name for (_, name), tensor in named.items() if not tensor.requires_grad]
    if frozen:
        raise ValueError(
            f"{frozen[0]!r} does not require gradients, so its gradient cannot be evidence; "
            "unfreeze it while scoring, exclude it, or use a criterion without gradients (magnitude)"
        )
    inputs = list({id(tensor): tensor for tensor in named.values()}.values())
    if _needs_backward(value, named):
        value.backward()
        made = [None if tensor.grad is None else full(tensor.grad).clone() for tensor in inputs]
        for tensor in inputs:
            tensor.grad = None
    else:
        made = list(torch.autograd.grad(value, inputs, allow_unused=True))
    by_tensor = {id(tensor): gradient for tensor, gradient in zip(inputs, made, strict=True)}
    return {name: _or_zeros(by_tensor[id(tensor)], tensor) for name, tensor in named.items()}


def _or_zeros(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.shape, device=tensor.device) if gradient is None else gradient.detach()


def _needs_backward(value: Tensor, named: Mapping[tuple[int, str], Tensor]) -> bool:
    """Where gradients reach the parameters through ``.grad`` alone.

    The graph of a sharded model holds gathered copies, and re-entrant checkpointing runs a backward of its
    own; ``torch.autograd.grad`` would return nothing for parameters inside, which reads as zero.
    """
    if not (any(is_sharded(tensor) for tensor in named.values()) or _has_reentrant_checkpoint(value)):
        return False
    for (_, name), tensor in named.items():
        if getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{name!r} has a post-accumulate-grad hook (an optimizer in the backward pass?), which collecting "
                "gradients would run; remove it while scoring, or use checkpoint(..., use_reentrant=False)"
            )
    return True


def _has_reentrant_checkpoint(value: Tensor) -> bool:
    seen: set[Any] = set()
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False
