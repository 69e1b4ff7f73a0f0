"""Evidence of forward passes, read while the user trains: no batch is run for its sake."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import update_wrapper
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from secateur.model.evidence.passes import Found, Pass, Streamable, results
from secateur.model.graph.examples import tensors_in
from secateur.model.names import unwrap
from secateur.model.quietly import quietly
from secateur.model.ranks import ranks_of

__all__ = ["TrainingPasses"]


@final
class TrainingPasses:
    """Shows observers the forward passes of a training, while ``watch`` is on.

    A pass counts when the root module is called in train mode with gradients; one that raises counts for nothing. The
    first is preceded by a small run that finds where to look; it leaves modes, buffers, gradients and random state
    alone. While it is on, fused attention and oneDNN are off in the passes, and backwards, so they take longer.

    Args:
        model: any module; wrappers are looked through. Of a ``DistributedDataParallel`` each rank watches its own
            passes, and evidence is of those of all ranks.
        make: makes the observers, anew for each ``restart``.

    Raises:
        ValueError: for compiled modules, whose operators nobody sees.

    Example:
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.evidence import streamers
        >>> from secateur.model.targets import find_targets
        >>> net = nn.Linear(2, 1)
        >>> make = lambda: streamers(net, ["input_norm"], find_targets(net), parse_unit("weight")[0])
        >>> passes = TrainingPasses(net, make)
        >>> passes.watch(True)
        >>> _ = net(torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
        >>> passes.evidence()["input_norm"]["weight"]
        tensor([[5., 1.]], dtype=torch.float64)
    """

    def __init__(self, model: nn.Module, make: Callable[[], Sequence[Streamable]]) -> None:
        for name, module in model.named_modules():
            scripted = isinstance(module, torch.jit.ScriptModule)
            if scripted or "_orig_mod" in module._modules or module._compiled_call_impl is not None:
                raise ValueError(
                    f"{name or 'the model'} is compiled, so its forward passes cannot be watched while you train; give "
                    "the Pruner data= (calibration batches), or compile after pruning"
                )
        self._model, self._root, self._make = model, unwrap(model), make
        self._observers = list(make())
        self._passes = 0
        self._watched: _Watched | None = None
        self._backward: ExitStack | None = None

    @property
    def passes(self) -> int:
        """How many counted since the last restart."""
        return self._passes

    def watch(self, on: bool) -> None:
        """Stand in front of the root's ``forward``, or leave it."""
        if on and self._watched is None:
            self._watched = _Watched(self._root, self._pass)
            self._root.forward = self._watched
        elif not on and self._watched is not None:
            self._watched.leave()
            self._watched = None
            self._backward_ends()

    def evidence(self) -> Found:
        """Kind -> name -> tensor, over the passes since the last restart.

        Raises:
            ValueError: where there was none, and for what observers could not read.
        """
        ranks = ranks_of(self._model)
        with ranks.together():
            if not self._passes:
                raise ValueError(
                    "no forward pass in train mode was seen yet, so there are no activations to score by: begin "
                    "pruning after the first steps (Plan(begin=...)), or give the Pruner data="
                )
            observers = self._copies() if ranks.several else self._observers
        return results(observers, ranks)

    def restart(self) -> None:
        """Begin anew."""
        self._observers, self._passes = list(self._make()), 0

    def state_dict(self) -> dict[str, Any]:
        """Sums so far, for a checkpoint."""
        return {"passes": self._passes, "observers": [one.state_dict() for one in self._observers]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self.restart()
        self._passes = int(state["passes"])
        for one, own in zip(self._observers, state["observers"], strict=True):
            one.load_state_dict(own)

    def _copies(self) -> list[Streamable]:
        """Observers that can take in what other ranks saw, while these go on with their own."""
        made = list(self._make())
        for one, own in zip(made, self._observers, strict=True):
            one.load_state_dict(own.state_dict())
        return made

    def _pass(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One forward pass of the training, seen by the observers."""

        def again() -> Any:
            with _aside(self._root):
                return forward(*args, **kwargs)

        self._backward_ends()
        torch.clear_autocast_cache()  # else the first run casts weights, and the second does not
        one = Pass(_batch(forward, args, kwargs), again, differentiated=True)
        with ExitStack() as stack:
            for observer in self._observers:
                stack.enter_context(observer.installed())
            for observer in self._observers:
                with _aside(self._root):
                    _prepare(observer, one)
            for observer in self._observers:
                stack.enter_context(observer.around(one))
            output = forward(*args, **kwargs)
        for tensor in tensors_in(output):
            if tensor.grad_fn is not None:
                tensor.register_hook(self._backward_begins)
        self._passes += 1
        return output

    def _backward_begins(self, _: Tensor) -> None:
        """What checkpointing computes again has to call the operators that the forward pass called."""
        if self._backward is None:
            self._backward = ExitStack()
            for observer in self._observers:
                self._backward.enter_context(observer.installed())
            engine: Any = Variable._execution_engine
            engine.queue_callback(self._backward_ends)

    def _backward_ends(self) -> None:
        """Called behind the backward pass; if that raised, before the next forward pass."""
        if self._backward is not None:
            self._backward.close()
            self._backward = None


@final
class _Watched:
    """Takes the place of a module's ``forward``; copies of the module have their own again."""

    def __init__(self, root: nn.Module, run: Callable[..., Any]) -> None:
        self._root, self._run, self._busy = root, run, False
        self._before: Any = root.__dict__.get("forward")
        self._forward: Callable[..., Any] = root.forward
        update_wrapper(self, self._forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Watched in train mode with gradients; runs inside of a watched one are part of it."""
        if self._busy or not (self._root.training and torch.is_grad_enabled()):
            return self._forward(*args, **kwargs)
        self._busy = True
        try:
            return self._run(self._forward, args, kwargs)
        finally:
            self._busy = False

    def __reduce__(self) -> Any:
        """Of a copy, the forward of its class."""
        return (getattr, (self._root, "forward")) if self._before is None else (_same, (self._before,))

    def leave(self) -> None:
        """Put back what was there, unless somebody else stands in front by now."""
        if self._root.__dict__.get("forward") is not self:
            self._run = _unwatched
        elif self._before is None:
            del self._root.forward
        else:
            self._root.forward = self._before


def _prepare(observer: Streamable, one: Pass) -> None:
    try:
        observer.prepare(one)
    except ValueError as error:
        raise ValueError(f"{error}. Or give the Pruner data= (calibration batches, read in eval mode)") from error


def _same(forward: Any) -> Any:
    return forward


def _unwatched(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return forward(*args, **kwargs)


@contextmanager
def _aside(root: nn.Module) -> Iterator[None]:
    """Around runs that are not of the training."""
    try:
        with quietly(root, "same"):
            yield
    finally:
        torch.clear_autocast_cache()


def _batch(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a loader would have given: one tensor, or arguments by name."""
    if len(args) == 1 and not kwargs:
        return args[0]
    signature = inspect.signature(forward)
    named: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return args
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return named
