"""What ``targets=`` and ``exclude=`` select: parameters by name, glob, type or module."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from secateur.model.names import aliases, clean_name, parameters_by_name, unwrap
from secateur.types import KeyLayout, Layout

__all__ = ["Selector", "other_parameters", "refuse_half_tied", "select", "selected_by"]

Selector: TypeAlias = "str | type[nn.Module] | nn.Module | Sequence[str | type[nn.Module] | nn.Module]"
"""A parameter or module name, a glob over them, a module type, a module, or several of these."""


def other_parameters(root: nn.Module, known: Layout, dimensions: int = 0) -> dict[str, KeyLayout]:
    """The parameters that are no default targets (LSTM weights, raw parameters): they can be named all the same."""
    found = {n: p for n, p in parameters_by_name(root).items() if n not in known and p.dim() >= dimensions}
    return {name: KeyLayout(tuple(parameter.shape)) for name, parameter in found.items()}


def select(root: nn.Module, selector: Selector, known: Layout, others: Layout, argument: str) -> set[str]:
    """What the selector matches among the default kinds; where it matches none of those, among the others."""
    return set[str]().union(*(found for _, found in selected_by(root, selector, known, others, argument)))


def selected_by(
    root: nn.Module, selector: Selector, known: Layout, others: Layout, argument: str
) -> list[tuple[Any, set[str]]]:
    """Each item of a selector with the first names of what it matches: of the others only where nothing known does.

    Raises:
        ValueError: for an item that matches nothing, with the nearest names there are.
    """
    given: Any = selector
    if not isinstance(given, (str, type, nn.Module, Iterable)):
        raise ValueError(
            f"{argument}={given!r}: give a name, a glob, a module type or a module of the model, or several"
        )
    items = [given] if isinstance(given, (str, type, nn.Module)) else list(given)
    chosen: list[tuple[Any, set[str]]] = []
    for item in items:
        found = _match(root, item, known) or _match(root, item, others)
        if not found:
            raise ValueError(_nothing_matches(root, item, {**known, **others}, argument))
        chosen.append((item, found))
    return chosen


def _match(root: nn.Module, item: Any, known: Layout) -> set[str]:
    first = {name: group[0] for group in aliases(root).values() for name in group}
    if isinstance(item, str):
        exact = {first[name] for name in first if name == item}
        if exact:
            return exact
        parameters = {first[name] for name in first if fnmatchcase(name, item) and first[name] in known}
        owned = {first[n] for n in first if first[n] in known and _inside(n, item)}
        return parameters | owned
    owners = {clean_name(path): module for path, module in root.named_modules()}
    inner = unwrap(item) if isinstance(item, nn.Module) else None
    if inner is not None:
        paths = [path for path, module in owners.items() if module is inner]
        return {first[n] for n in first if first[n] in known and any(_inside(n, p) or p == "" for p in paths)}
    if isinstance(item, type):
        return {first[n] for n in first if first[n] in known and isinstance(owners.get(n.rpartition(".")[0]), item)}
    raise ValueError(f"{item!r} selects no parameters: give a name, a glob, a module type or a module of the model")


def _inside(name: str, pattern: str) -> bool:
    """Whether a module that matches ``pattern`` holds the parameter ``name``, at any depth."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts)))


def _nothing_matches(root: nn.Module, item: Any, known: Layout, argument: str) -> str:
    names = list(known)
    shown = ", ".join(names[:12]) + (f", ... ({len(names)} in all)" if len(names) > 12 else "")
    modules = [clean_name(path) for path, _ in root.named_modules() if path]
    near = difflib.get_close_matches(item, names + modules, n=3, cutoff=0.5) if isinstance(item, str) else []
    given = item if isinstance(item, (str, type)) else type(item).__name__
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"{argument}={given!r} matches nothing in {type(root).__name__}.{hint} Prunable parameters: {shown}"


def refuse_half_tied(
    root: nn.Module, targets: Selector | None, exclude: Selector, names: dict[str, tuple[str, ...]], known: Layout
) -> None:
    """Targeting one name of a shared tensor and excluding another cannot be obeyed."""
    wanted = _literal_names(targets)
    unwanted = _literal_names(exclude)
    for group in names.values():
        one, other = set(group) & wanted, set(group) & unwanted
        if one and other and one != other:
            raise ValueError(
                f"{sorted(one)[0]!r} is targeted and {sorted(other)[0]!r} is excluded, but they are the same tensor "
                f"(tied: {', '.join(group)}); target both or exclude both"
            )


def _literal_names(selector: Selector | None) -> set[str]:
    if selector is None or isinstance(selector, (type, nn.Module)):
        return set()
    items = [selector] if isinstance(selector, str) else selector
    return {item for item in items if isinstance(item, str)}
