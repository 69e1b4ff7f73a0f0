"""Names and specs: ``"block(4, 1)"`` and ``"cubic(power=2)"`` to table rows and back.

A spec is ``name`` or ``name(argument, key=value)`` with plain Python literals inside. It is read
with ``ast`` and never evaluated, so a spec that comes from a file cannot run anything.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, cast

from secateur.types import AllocationEntry, CriterionEntry, ScheduleEntry

__all__ = ["format_spec", "hyperparameters", "lookup", "needs", "parse_spec", "resolve", "settings_of", "spec_of"]

T = TypeVar("T")
E = TypeVar("E", CriterionEntry, AllocationEntry, ScheduleEntry)

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def parse_spec(spec: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Split a spec string into its name, positional and keyword arguments.

    Args:
        spec: ``"name"`` or ``"name(1, key=2.0)"``; arguments are Python literals.

    Returns:
        ``(name, args, kwargs)``.

    Raises:
        ValueError: where the string is not of that form.

    Example:
        >>> parse_spec("block(4, 1)")
        ('block', (4, 1), {})
        >>> parse_spec("cubic(power=2)")
        ('cubic', (), {'power': 2})
    """
    wrong = ValueError(
        f"{spec!r} is no name: write 'name' or 'name(argument, key=value)' with numbers, strings, "
        "True, False or None as values, for example 'block(4, 1)' or 'cubic(power=2)'"
    )
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(\(.*\))?\s*", spec, re.DOTALL)
    if match is None:
        raise wrong
    name, call = match.groups()
    if call is None:
        return name, (), {}
    try:
        node = ast.parse(f"call{call}", mode="eval").body  # the name itself may be a word of Python, like 'global'
    except (SyntaxError, ValueError):
        raise wrong from None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise wrong
    try:
        args = tuple(ast.literal_eval(argument) for argument in node.args)
        pairs = [(keyword.arg, ast.literal_eval(keyword.value)) for keyword in node.keywords]
    except (ValueError, TypeError):
        raise wrong from None
    if any(key is None for key, _ in pairs):
        raise wrong
    return name, args, {cast("str", key): value for key, value in pairs}


def format_spec(name: str, args: Iterable[Any] = (), kwargs: Mapping[str, Any] | None = None) -> str:
    """The spec string that ``parse_spec`` reads back.

    Example:
        >>> format_spec("block", (4, 1))
        'block(4, 1)'
        >>> format_spec("l1")
        'l1'
    """
    inside = [repr(value) for value in args] + [f"{key}={value!r}" for key, value in (kwargs or {}).items()]
    return f"{name}({', '.join(inside)})" if inside else name


def needs(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the positional parameters: the evidence or inputs that a function asks for.

    Raises:
        ValueError: for ``*args`` and for a positional parameter with a default, which is neither
            evidence nor a hyper-parameter.

    Example:
        >>> def snip(weight, grad_abs, *, scale=1.0): ...
        >>> needs(snip)
        ('weight', 'grad_abs')
    """
    found: list[str] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            raise ValueError(
                f"{_label(function)} takes *{parameter.name}: name every input, since inputs are passed by name"
            )
        if parameter.kind in _POSITIONAL:
            if parameter.default is not inspect.Parameter.empty:
                raise ValueError(
                    f"{_label(function)}: parameter {parameter.name!r} has a default but is positional; positional "
                    "parameters name the inputs, so make a hyper-parameter keyword-only: "
                    f"'*, {parameter.name}={parameter.default!r}'"
                )
            found.append(parameter.name)
    return tuple(found)


def hyperparameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the keyword-only parameters.

    Example:
        >>> def cubic(progress, initial, final, *, power=3.0): ...
        >>> hyperparameters(cubic)
        ('power',)
    """
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Values of the keyword-only parameters: what a spec bound, else the defaults.

    Example:
        >>> def cubic(progress, initial, final, *, power=3.0): ...
        >>> settings_of(functools.partial(cubic, power=2.0))
        {'power': 2.0}
    """
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def lookup(kind: str, table: Mapping[str, T], name: str) -> T:
    """The row of a table, or an error that lists the known names and the nearest one.

    Args:
        kind: what the table holds, for the message: ``"criterion"``.
        table: name -> row.
        name: the name asked for.

    Raises:
        ValueError: for a name that is not in the table.

    Example:
        >>> lookup("unit", {"filter": 1, "row": 2}, "filtre")
        Traceback (most recent call last):
        ValueError: unknown unit 'filtre': did you mean 'filter'? Known: filter, row
    """
    if name in table:
        return table[name]
    raise ValueError(f"unknown {kind} {name!r}:{_nearest(str(name), table)} Known: {', '.join(sorted(table))}")


def resolve(kind: str, table: Mapping[str, E], value: str | E | Callable[..., Any], wrap: Callable[..., E]) -> E:
    """The table row for a spec, a row, or a bare function; hyper-parameters of a spec are bound.

    A string ``"package.module:function"`` finds a function of a module that is imported already;
    it imports nothing.

    Args:
        kind: what the table holds, for messages.
        table: name -> row.
        value: spec string, row of the table's type, or a function.
        wrap: makes a row of a bare function.

    Raises:
        ValueError: for an unknown name, an unknown or ill-typed hyper-parameter, or a value that is none of these.

    Example:
        >>> from secateur.core.schedules import SCHEDULES
        >>> row = resolve("schedule", SCHEDULES, "cubic(power=1)", wrap=lambda function: function)
        >>> row.function(0.5, 0.0, 0.8)
        0.4
    """
    if isinstance(value, str):
        if ":" in value and "(" not in value:
            return wrap(_imported(kind, value))
        name, args, kwargs = parse_spec(value)
        row = lookup(kind, table, name)
        if not args and not kwargs:
            return row
        return dataclasses.replace(row, function=_bind(f"{kind} {name!r}", row.function, args, kwargs))
    if isinstance(value, CriterionEntry | AllocationEntry | ScheduleEntry):
        return cast("E", value)
    if not callable(value):
        raise ValueError(f"{kind} {value!r}: give a name ({', '.join(sorted(table))}) or a function")
    needs(value)  # refuses parameters that could not be filled, where the user can see it
    return wrap(value)


def spec_of(kind: str, table: Mapping[str, E], value: str | E | Callable[..., Any]) -> str:
    """The string that ``resolve`` turns back into the same row.

    Args:
        kind: what the table holds, for messages.
        table: name -> row.
        value: spec string, row, or function (also a ``functools.partial`` of one).

    Returns:
        A spec, or ``"package.module:function"`` for an importable function that is in no table.

    Raises:
        ValueError: for a function without an importable name (lambda, closure, bound partial).

    Example:
        >>> import functools
        >>> from secateur.core.schedules import SCHEDULES, cubic
        >>> spec_of("schedule", SCHEDULES, functools.partial(cubic, power=2.0))
        'cubic(power=2.0)'
    """
    if isinstance(value, str):
        if ":" in value and "(" not in value:
            return value
        name, args, kwargs = parse_spec(value)
        lookup(kind, table, name)
        return format_spec(name, args, kwargs)
    function: Callable[..., Any]
    function = value.function if isinstance(value, CriterionEntry | AllocationEntry | ScheduleEntry) else value
    options: dict[str, Any] = {}
    bound_by_position = False
    while isinstance(function, functools.partial):
        partial = cast("functools.partial[Any]", function)
        options = {**partial.keywords, **options}
        bound_by_position |= bool(partial.args)
        function = partial.func
    if not bound_by_position:
        for name, row in table.items():
            if row.function is function:
                return format_spec(name, (), options)
        if not options and _importable(function):
            return f"{function.__module__}:{function.__qualname__}"
    raise ValueError(
        f"{kind} {_label(function)} has no importable name, so it cannot be written down: use it without saving, "
        f"define it at the top level of a module, or take one of {', '.join(sorted(table))}"
    )


def _bind(label: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    known = hyperparameters(function)
    listing = ", ".join(known) if known else "none"
    if args:
        raise ValueError(f"{label}: write hyper-parameters with their names, key=value; it has: {listing}")
    for key, given in kwargs.items():
        if key not in known:
            raise ValueError(f"{label} has no hyper-parameter {key!r}:{_nearest(key, known)} It has: {listing}")
        default = inspect.signature(function).parameters[key].default
        if _is_number(default) and not _is_number(given):
            raise ValueError(f"{label}: hyper-parameter {key}={given!r} should be a number like {default!r}")
    return functools.partial(function, **kwargs)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(name.lower(), names, n=1)
    return f" did you mean {close[0]!r}?" if close else ""


def _label(function: Callable[..., Any]) -> str:
    return f"function {getattr(function, '__qualname__', repr(function))!r}"


def _imported(kind: str, name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    if module not in sys.modules:
        raise ValueError(f"{kind} {name!r}: module {module!r} is not imported yet; import it first")
    found: Any = sys.modules[module]
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ValueError(f"{kind} {name!r}: module {module!r} has no function {path!r}")
    return found


def _importable(function: Callable[..., Any]) -> bool:
    found: Any = sys.modules.get(getattr(function, "__module__", None) or "")
    for part in getattr(function, "__qualname__", "?").split("."):
        found = getattr(found, part, None)
    return found is function
