"""A model run with other tensors in the place of its parameters, which stay untouched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.model.batches import limited, loss_of, to_device
from secateur.model.evidence.source import Request
from secateur.model.graph.trace import slow_paths
from secateur.model.names import clean_name
from secateur.model.quietly import quietly
from secateur.model.sharding import is_sharded

__all__ = ["alone", "batches_of", "loss_with", "not_recomputed", "places", "run_with"]


@final
class _Called(nn.Module):
    """Lets ``functional_call`` run any function of the model."""

    def __init__(self, root: nn.Module, function: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.root = root
        self._function = function

    def forward(self) -> Any:
        """The function, while the model has the other tensors."""
        return self._function(self.root)


def places(root: nn.Module) -> dict[str, str]:
    """Clean name of every parameter and buffer -> the name that the module itself uses (behind wrappers)."""
    named = (*root.named_parameters(), *root.named_buffers())
    return {clean_name(name): name for name, _ in named}


def run_with(root: nn.Module, tensors: Mapping[str, Tensor], function: Callable[[nn.Module], Any]) -> Any:
    """``function(root)`` while parameters and buffers of these clean names are the tensors given.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> run_with(net, {"weight": torch.tensor([[3.0]])}, lambda model: float(model(torch.ones(1))))
        3.0
    """
    own = places(root)
    renamed = {f"root.{own[name]}": tensor for name, tensor in tensors.items()}
    called = _Called(root, function)
    called.training = root.training
    return functional_call(called, renamed, ())


def loss_with(request: Request, tensors: Mapping[str, Tensor], batch: Any) -> Tensor:
    """The loss of one batch, with these tensors in the place of parameters."""
    source = request.source
    return run_with(request.root, tensors, lambda model: loss_of(model, batch, source.loss, source.step))


def batches_of(request: Request) -> Iterator[Any]:
    """The batches that the request may read, on the model's device."""
    source, device = request.source, next(request.root.parameters()).device
    data = [source.data] if isinstance(source.data, Tensor) else source.data
    return (to_device(batch, device) for batch in limited(data, source.batches))


@contextmanager
def alone(request: Request) -> Iterator[None]:
    """Passes outside the shared ones: the source's mode, gradients on, plain operators, nothing left behind.

    Raises:
        ValueError: for a sharded model.
    """
    kinds = ", ".join(request.kinds)
    for name, tensor in request.root.named_parameters():
        if is_sharded(tensor):
            raise ValueError(
                f"{clean_name(name)!r} is sharded, and evidence {kinds} is not collected from sharded models; score "
                "the model before fully_shard"
            )
    with quietly(request.root, request.source.mode), _differentiable(request.root), torch.enable_grad():
        yield


@contextmanager
def not_recomputed(request: Request) -> Iterator[None]:
    """Refuse activation checkpointing: what it computes again would be with the model's own parameters.

    Raises:
        ValueError: where the model checkpoints activations in the block.
    """
    message = (
        f"evidence {', '.join(request.kinds)} cannot be collected through activation checkpointing, which runs parts "
        "of the model again by itself; turn it off while scoring"
    )
    with torch.autograd.graph.disable_saved_tensors_hooks(message):
        try:
            yield
        except RuntimeError as error:
            if message in str(error) or "saved tensor hooks" in str(error):  # the second: torch.func
                raise ValueError(message) from error
            raise


@contextmanager
def _differentiable(root: nn.Module) -> Iterator[None]:
    """Operators that can be differentiated twice, and for many samples at once: fused attention and cells cannot.

    Without oneDNN convolutions take several times as long, so it is off for recurrent layers alone.
    """
    if any(isinstance(module, nn.RNNBase) for module in root.modules()):
        with slow_paths():
            yield
        return
    fast = torch.backends.mha.get_fastpath_enabled()
    with sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
