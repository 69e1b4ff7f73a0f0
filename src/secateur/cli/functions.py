"""``package.module:function`` -> what that function returns, with errors that name the nearest thing there is."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LOSSES", "find_function", "first_inputs", "loss_named", "make_data", "make_model"]

LOSSES = {
    "cross_entropy": "cross_entropy",
    "nll": "nll_loss",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "smooth_l1": "smooth_l1_loss",
    "bce_with_logits": "binary_cross_entropy_with_logits",
}
"""Name of a loss on the command line -> its function in ``torch.nn.functional``."""


def find_function(option: str, spec: str) -> Callable[..., Any]:
    """The function that ``package.module:function`` names; the current directory is importable.

    Args:
        option: the option it was given for, for messages: ``"--model"``.
        spec: as the user wrote it.

    Returns:
        A callable.

    Raises:
        ValueError: if it is not of that form, or there is no such module or function.

    Example:
        >>> find_function("--model", "math:floor")(2.5)
        2
        >>> find_function("--model", "math:flor")
        Traceback (most recent call last):
        ValueError: --model math:flor: module 'math' has no 'flor'; did you mean 'floor'?
    """
    module, colon, path = spec.partition(":")
    if module.endswith(".py"):
        right = module.removesuffix(".py").strip("./").replace("/", ".")
        raise ValueError(f"{option} {spec!r} names a file; did you mean {right}:{path or 'function'}?")
    if not (colon and _is_dotted(module) and _is_dotted(path)):
        raise ValueError(f"{option} {spec!r} does not name a function: write package.module:function")
    found: Any = _import(option, spec, module)
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in dir(found) if not name.startswith("_")]
            owner = f"module {module!r}" if isinstance(found, ModuleType) else repr(found)
            raise ValueError(f"{option} {spec}: {owner} has no {part!r}{_nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{option} {spec} is a {type(found).__name__}, not a function")
    return found


def make_model(spec: str) -> nn.Module:
    """What the function behind ``--model`` returns.

    Args:
        spec: names a function without arguments, or a class, that makes a module.

    Returns:
        The module, in eval mode.

    Raises:
        ValueError: if it needs arguments, is itself a module, or makes something else.
    """
    from torch import nn

    factory = find_function("--model", spec)
    if isinstance(factory, nn.Module):
        raise ValueError(f"--model {spec} is a model already; name a function that makes one")
    model = _call("--model", spec, factory)
    if not isinstance(model, nn.Module):
        raise ValueError(f"--model {spec} returned a {type(model).__name__}; it has to return a torch.nn.Module")
    return model.eval()


def make_data(option: str, spec: str) -> Any:
    """What the function behind ``--data`` returns.

    Args:
        option: for messages.
        spec: names a function without arguments.

    Returns:
        A loader, another iterable of batches, or one ``(inputs, labels)`` pair.

    Raises:
        ValueError: if it returns none of these.
    """
    data = _call(option, spec, find_function(option, spec))
    if not hasattr(data, "__iter__"):
        raise ValueError(
            f"{option} {spec} returned a {type(data).__name__}; it has to return a loader, a list of "
            "(inputs, labels) batches, or one (inputs, labels) pair"
        )
    return data


def loss_named(name: str) -> Callable[..., Any]:
    """The loss for a name of ``LOSSES``, or for ``package.module:function``.

    Raises:
        ValueError: for another name.

    Example:
        >>> loss_named("mse").__name__
        'mse_loss'
    """
    import torch.nn.functional as F

    if ":" in name:
        return find_function("--loss", name)
    if name not in LOSSES:
        known = f"Known: {', '.join(LOSSES)}, or package.module:function"
        raise ValueError(f"--loss {name}: no such loss{_nearest(name, LOSSES)} {known}")
    return getattr(F, LOSSES[name])


def _call(option: str, spec: str, function: Callable[..., Any]) -> Any:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some built-in functions do not say
        parameters = ()
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in fixed]
    if needed:
        raise ValueError(
            f"{option} {spec} needs arguments ({', '.join(needed)}), but it is called without any; "
            "name a function that fills them in"
        )
    return function()


def _import(option: str, spec: str, module: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module != missing and not module.startswith(f"{missing}."):
            raise  # it is there, and imports something that is not
        folder = (
            importlib.import_module(missing.rpartition(".")[0]).__dict__.get("__path__", [])
            if "." in missing
            else [here]
        )
        known = [found.name for found in pkgutil.iter_modules(folder)]
        near = _nearest(missing.rpartition(".")[2], known)
        raise ValueError(f"{option} {spec}: there is no module {missing!r} here or on the path{near}") from error


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def first_inputs(data: Any) -> tuple[Any, Any]:
    """The model's inputs in the first batch, and the data with that batch still in it.

    Args:
        data: what the user's function returned.

    Returns:
        A tuple or mapping of arguments, and data to read from the start.

    Raises:
        ValueError: if a batch is neither an (inputs, labels) pair nor a mapping.
    """
    from secateur.model.batches import limited

    first = next(limited(data, 1))
    again = chain([first], data) if isinstance(data, Iterator) else data
    if isinstance(first, Mapping):
        return dict(first), again
    if isinstance(first, (tuple, list)) and len(first) == 2:
        return (first[0],), again
    raise ValueError(f"a batch of --data is a {type(first).__name__}; known are (inputs, labels) pairs and mappings")
