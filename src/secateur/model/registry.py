"""Which masks belong to which model: one weak table beside the models, never inside them.

A model keeps one trace only, a load hook that re-applies its masks after ``load_state_dict``. The hook
looks the table up weakly and pickles as a do-nothing function of the standard library, so that a saved
model names no symbol of this package and a copy is not tracked.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, final
from weakref import WeakKeyDictionary

from torch import nn

from secateur.model.names import unwrap

if TYPE_CHECKING:
    from secateur.model.masks import Masks

__all__ = ["find_masks", "forget_masks", "register_masks"]

_MASKS: WeakKeyDictionary[nn.Module, Masks] = WeakKeyDictionary()
_HOOKED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


@final
class _Remask:
    """Load hook without state; see the module's docstring for what it pickles to."""

    def __call__(self, module: nn.Module, incompatible_keys: Any) -> None:
        masks = _MASKS.get(module)
        if masks is not None:
            masks.after_load()

    def __reduce__(self) -> tuple[Any, ...]:
        # NullHandler.handle(self, record) does nothing and returns None, which is what torch asks of a load hook.
        return getattr, (logging.NullHandler, "handle")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return logging.NullHandler.handle


_remask = _Remask()


def find_masks(model: nn.Module) -> Masks | None:
    """The masks registered for a model, or None.

    Args:
        model: the module that was pruned, wrapped or not.

    Returns:
        Its masks; None if it was never pruned, if its masks were undone, or if it is a copy.

    Example:
        >>> find_masks(nn.Linear(2, 2)) is None
        True
    """
    return _MASKS.get(unwrap(model))


def register_masks(model: nn.Module, masks: Masks) -> None:
    """Make ``masks`` the masks of ``model``: load_state_dict re-applies them from now on."""
    root = unwrap(model)
    _MASKS[root] = masks
    if root not in _HOOKED:
        _HOOKED[root] = root.register_load_state_dict_post_hook(_remask)


def forget_masks(model: nn.Module) -> None:
    """The model is dense again as far as this package is concerned."""
    root = unwrap(model)
    _MASKS.pop(root, None)
    hook = _HOOKED.pop(root, None)
    if hook is not None:
        hook.remove()
