"""Functions as text: ``"torch.optim.sgd:SGD(lr=0.1)"``, to write a training down and to tell two apart."""

from __future__ import annotations

import ast
import math
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import nn

from secateur.core.names import format_spec, parse_spec

__all__ = ["function_from", "function_record", "function_text"]


def function_text(value: object) -> str:
    """A function, class, partial or callable object as text; enough to tell two apart, where they can be.

    Args:
        value: anything callable.

    Returns:
        ``"module:name"``, with the arguments of a partial and the plain settings of an object.

    Example:
        >>> import torch
        >>> function_text(partial(torch.optim.SGD, lr=0.1))
        'torch.optim.sgd:SGD(lr=0.1)'
        >>> function_text(nn.MSELoss())
        "torch.nn.modules.loss:MSELoss(reduction='mean')"
    """
    if isinstance(value, partial):
        bound = cast("partial[Any]", value)
        return format_spec(function_text(bound.func), bound.args, bound.keywords)
    if hasattr(value, "__qualname__"):
        return f"{getattr(value, '__module__', '?')}:{getattr(value, '__qualname__', '?')}"
    kind = type(value)
    settings = {key: each for key, each in vars(value).items() if not key.startswith("_") and _is_plain(each)}
    settings.pop("training" if isinstance(value, nn.Module) else "", None)
    return format_spec(f"{kind.__module__}:{kind.__qualname__}", (), settings)


def function_record(kind: str, value: object) -> str:
    """The text from which ``function_from`` finds the function again.

    Args:
        kind: what the function is, for messages: ``"loss"``.
        value: a function or class that can be imported by name, or a partial of one with plain named arguments.

    Returns:
        ``"module:name"`` or ``"module:name(key=value)"``.

    Raises:
        ValueError: for a lambda, a closure, an object, or a partial with other arguments.

    Example:
        >>> function_record("loss", nn.functional.cross_entropy)
        'torch.nn.functional:cross_entropy'
    """
    bound = cast("partial[Any]", value) if isinstance(value, partial) else None
    function = cast("Any", value) if bound is None else cast("Any", bound.func)
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", "?")
    options = {} if bound is None else bound.keywords
    positional = bound is not None and bool(bound.args)
    if module is None or _walk(module, name) is not function or positional or not all(map(_is_plain, options.values())):
        raise ValueError(
            f"{kind} {function_text(cast('Any', value))} cannot be written down: use it without saving, or give a "
            "function at the top level of a module, or functools.partial of one with named plain arguments"
        )
    return format_spec(f"{module}:{name}", (), options)


def function_from(kind: str, text: str) -> Callable[..., Any]:
    """The function that a text names; only modules that are imported already are looked at.

    Args:
        kind: what the function is, for messages.
        text: as ``function_record`` writes it.

    Returns:
        The function, or a partial of it.

    Raises:
        ValueError: where the module is not imported, or has no such function.

    Example:
        >>> function_from("loss", "torch.nn.functional:mse_loss") is nn.functional.mse_loss
        True
    """
    path, opening, rest = text.partition("(")
    module, colon, name = path.partition(":")
    if not colon:
        raise ValueError(f"{kind} {text!r}: write 'module:function', or give the function itself")
    if module not in sys.modules:
        raise ValueError(f"{kind} {text!r}: module {module!r} is not imported yet; import it first")
    found = _walk(module, name)
    if not callable(found):
        raise ValueError(f"{kind} {text!r}: module {module!r} has no function {name!r}")
    _, arguments, options = parse_spec(f"call({rest}") if opening else ("", (), cast("dict[str, Any]", {}))
    return partial(found, *arguments, **options) if arguments or options else found


def _walk(module: str, name: str) -> Any:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _is_plain(value: object) -> bool:
    """Whether the text of a value reads back as the value."""
    if isinstance(value, (tuple, list)):
        return all(_is_plain(each) for each in cast("list[Any]", value))
    if isinstance(value, Mapping):
        return all(_is_plain(each) for each in cast("Mapping[Any, Any]", value).values())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (type(value) in (bool, int, str) and ast.literal_eval(repr(value)) == value)
