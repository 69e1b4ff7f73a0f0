"""One module after its tensors have changed shape: what its tensors say now, whatever makes them.

A weight may be a plain parameter, the result of parametrizations, or a plain attribute that a forward
pre-hook makes (the older weight_norm, spectral_norm and ``torch.nn.utils.prune``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from secateur.model.removal.journal import Journal
from secateur.model.removal.named import Shape
from secateur.model.removal.plan import Value

__all__ = ["Resized"]

# Hook type -> (attribute it makes, its value). Private names of torch, the only ones there are.
_HOOKS: tuple[tuple[type, Callable[[Any], str], Callable[[Any, nn.Module], Tensor]], ...] = (
    (WeightNorm, lambda hook: hook.name, lambda hook, module: hook.compute_weight(module)),
    (SpectralNorm, lambda hook: hook.name, lambda hook, module: hook.compute_weight(module, False)),
    (BasePruningMethod, lambda hook: hook._tensor_name, lambda hook, module: hook.apply_mask(module)),
)
_CARRIERS = ("{}_orig", "{}_v")
"""Parameters of the old hooks that have the shape and the positions of what they make."""


@final
class Resized:
    """What a derivation of attributes may look at.

    Args:
        name: of the module, for messages.
        module: its tensors are new, its attributes still old.
        kept: id of a tensor -> axis -> positions that stayed; empty where they are not known.
        given: attributes that the plan sets explicitly.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        kept: Mapping[int, Mapping[int, tuple[int, ...]]],
        given: Mapping[str, Value],
    ) -> None:
        self.name = name
        self.module = module
        self.given = given
        self._kept = kept
        self._shapes: dict[str, Shape | None] = {}

    @property
    def where(self) -> str:
        """The module in words."""
        return f"{self.name or 'the model'} ({type(self.module).__name__})"

    def shape(self, name: str, dims: int | None = None) -> Shape | None:
        """Shape of a tensor of the module now; None if it has none of that name (with ``dims`` axes)."""
        if name not in self._shapes:
            self._shapes[name] = _shape_of(self.module, name)
        found = self._shapes[name]
        return found if found is None or dims is None or len(found) == dims else None

    def expect(self, name: str, shape: Shape) -> None:
        """Refuse a tensor that is there but does not fit the others.

        Raises:
            ValueError: naming module, tensor and shapes.
        """
        found = self.shape(name)
        if found is not None and found != shape:
            raise ValueError(
                f"{self.where}: {name} would be {found} beside tensors that ask for {shape}; "
                "slice every tensor of the module by the same units"
            )

    def positions(self, name: str, dim: int) -> tuple[int, ...] | None:
        """Which positions stayed along an axis; None: all, or not known."""
        carrier = _carrier(self.module, name)
        return None if carrier is None else self._kept.get(id(carrier), {}).get(dim)

    def whole(self, key: str) -> int:
        """An integer attribute: as the plan sets it, else as it is."""
        value = self.given.get(key, getattr(self.module, key))
        if not isinstance(value, int):
            raise ValueError(f"{self.where}: {key} is {value!r}, and must be an integer")
        return value

    def remake(self, journal: Journal) -> None:
        """Make the plain attributes that hooks keep up to date again, so that they are not stale."""
        for hook in list(self.module._forward_pre_hooks.values()):
            for kind, name_of, value_of in _HOOKS:
                if isinstance(hook, kind):
                    with torch.no_grad():
                        journal.set_attribute(self.module, name_of(hook), value_of(hook, self.module))


def _shape_of(module: nn.Module, name: str) -> Shape | None:
    head, _, rest = name.partition(".")
    if rest:
        child = module._modules.get(head)
        return None if child is None else _shape_of(child, rest)
    if is_parametrized(module, name):
        return tuple(_evaluated(module.parametrizations[name]).shape)  # pyright: ignore
    tensor = module._parameters.get(name)
    tensor = module._buffers.get(name) if tensor is None else tensor
    tensor = _carrier(module, name) if tensor is None else tensor
    return None if tensor is None else tuple(tensor.shape)


def _evaluated(chain: nn.Module) -> Tensor:
    """What the parametrizations make, without a step of power iteration and without a draw from the RNG."""
    modes = {module: module.training for module in chain.modules()}
    devices = sorted({t.device.index or 0 for t in chain.parameters() if t.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            return chain.eval()()
    finally:
        for module, training in modes.items():
            module.training = training


def _carrier(module: nn.Module, name: str) -> Tensor | None:
    """The stored tensor whose positions are those of ``name``."""
    if is_parametrized(module, name):
        originals = list(module.parametrizations[name].parameters(recurse=False))  # pyright: ignore
        return max(originals, key=lambda tensor: tensor.numel(), default=None)
    plain = module._parameters.get(name)
    if plain is not None:
        return plain
    found = [module._parameters.get(pattern.format(name)) for pattern in _CARRIERS]
    return next((tensor for tensor in found if tensor is not None), None)
