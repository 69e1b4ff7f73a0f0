"""The optimizers whose steps keep masks in force."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer

from secateur.model.sharding import local

__all__ = ["Attachments"]


def _before_the_update(before: Callable[[], None]) -> Callable[..., tuple[Any, Any] | None]:
    """A step pre-hook that calls ``before`` when the step's gradients are there: now, or after its closure."""

    def hook(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)  # args[0] is the optimizer
        if closure is None:
            before()
            return None

        def evaluate() -> Any:
            loss = closure()
            before()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": evaluate}
        return (*args[:1], evaluate, *args[2:]), kwargs

    return hook


@final
class Attachments:
    """Step hooks on optimizers, which are held weakly."""

    def __init__(self) -> None:
        self._optimizers: list[tuple[Any, list[Any]]] = []

    def attach(
        self,
        optimizer: Optimizer,
        masked: Mapping[str, Tensor],
        before: Callable[[], None],
        after: Callable[..., None],
        *,
        replace: bool = False,
    ) -> None:
        """Call ``before`` and ``after`` around every step.

        Where a step makes its gradients itself, by a closure (LBFGS, Lightning), ``before`` runs after each closure.
        An optimizer that is attached already keeps its hooks, unless ``replace`` asks for the new ones.

        Raises:
            ValueError: if the optimizer holds none of the ``masked`` parameters.
        """
        optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps the user's optimizer
        for index, (known, handles) in enumerate(self._optimizers):
            if known() is optimizer:
                if not replace:
                    return
                del self._optimizers[index]
                self._remove(handles)
                break
        owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any(id(parameter) in owned for parameter in masked.values()):
            raise ValueError(
                f"{type(optimizer).__name__} holds none of the masked parameters ({', '.join(list(masked)[:3])}, ...); "
                "give it model.parameters() of the pruned model. A copy made by deepcopy has no masks, and "
                "fully_shard makes new parameters: build the optimizer after it"
            )
        handles = [
            optimizer.register_step_pre_hook(_before_the_update(before)),
            optimizer.register_step_post_hook(after),
        ]
        self._optimizers.append((ref(optimizer), handles))

    def detach(self) -> None:
        """Remove the hooks from all optimizers."""
        for _, handles in self._optimizers:
            self._remove(handles)
        self._optimizers.clear()

    @staticmethod
    def _remove(handles: list[Any]) -> None:
        for handle in handles:
            handle.remove()

    def reset_state(self, parameter: Tensor, changed: Tensor) -> None:
        """Zero the optimizers' memory of weights that leave or return, or momentum would move them.

        Args:
            parameter: as the optimizer holds it.
            changed: bool, local shape; True where the mask changed.
        """
        for known, _ in self._optimizers:
            optimizer = known()
            for value in () if optimizer is None else optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape and value.dim() > 0:
                    piece = local(value)
                    piece[changed.to(piece.device)] = 0
