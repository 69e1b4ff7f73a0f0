"""Which parameters are pruned: the default targets, and what ``targets=`` and ``exclude=`` select.

Default: the weights of convolutions, linear layers and attention projections. Not biases, norms,
embeddings, or a head tied to an embedding. A unit that removes outputs leaves the last layer alone.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.model.names import aliases, clean_name, parameters_by_name, unwrap
from secateur.types import KeyLayout, Kind, Layout, Role

__all__ = ["REMOVES_OUTPUTS", "Selector", "find_targets"]

Selector: TypeAlias = "str | type[nn.Module] | nn.Module | Sequence[str | type[nn.Module] | nn.Module]"
"""A parameter or module name, a glob over them, a module type, a module, or several of these."""

REMOVES_OUTPUTS = frozenset({"filter", "layer"})
"""Units whose removal from the last layer would remove classes."""

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def find_targets(
    model: nn.Module, targets: Selector | None = None, exclude: Selector | None = None, *, unit: str = "weight"
) -> dict[str, KeyLayout]:
    """The target parameters with their layouts, in the order of registration.

    Args:
        model: any module; wrappers are looked through.
        targets: what to prune; None: the default targets.
        exclude: what of that to leave dense.
        unit: name of the unit; ``"filter"`` and ``"layer"`` leave the output layer out by default.

    Returns:
        Parameter name -> layout. A parameter with several names stands under the first.

    Raises:
        ValueError: if a selector matches nothing, selects a parameter with fewer than two
            dimensions, or targets one name of a tied parameter and excludes another.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> {name: (key.kind, key.role) for name, key in find_targets(net).items()}
        {'0.weight': ('conv', 'first'), '3.weight': ('linear', 'output')}
        >>> list(find_targets(net, targets=nn.Conv2d))
        ['0.weight']
    """
    root = unwrap(model)
    candidates = _candidates(root)
    names = aliases(root)
    tied = {name for name, group in names.items() if len(group) > 1}
    known = {first: layout for first, layout in candidates.items() if first in names}
    chosen = (
        {n for n, k in known.items() if k.kind != "embedding" and not (n in tied and _ties_embedding(root, names[n]))}
        if targets is None
        else _select(root, targets, known, _others(root, known, dimensions=2), "targets")
    )
    if targets is None:
        _say_what_is_skipped(root)
    if targets is None and unit in REMOVES_OUTPUTS:
        chosen = {name for name in chosen if known[name].role != "output"}
    if exclude is not None:
        dropped = _select(root, exclude, known, _others(root, known), "exclude")
        _refuse_half_tied(root, targets, exclude, names, known)
        chosen -= dropped
    explicit = chosen - set(known)
    layout = known | {name: _layout_by_shape(name, parameters_by_name(root)[name]) for name in explicit}
    found = {name: layout[name] for name in parameters_by_name(root) if name in chosen}
    if not found:
        raise ValueError(
            f"nothing to prune in {type(root).__name__}: no convolution, linear layer or attention projection is left "
            f"(targets={targets!r}, exclude={exclude!r}, unit={unit!r}); name the parameters with targets="
        )
    return found


def _candidates(root: nn.Module) -> dict[str, KeyLayout]:
    """Every parameter whose owner says how it is used, with its role."""
    found: dict[str, tuple[Kind, int, Tensor]] = {}
    depthwise: set[str] = set()
    for path, module in root.named_modules():
        for attribute, kind, groups in _weights_of(module):
            parameter = module._parameters.get(attribute)
            if parameter is None or parameter.dim() < 2:
                continue
            name = clean_name(f"{path}.{attribute}" if path else attribute)
            found[name] = (kind, groups, parameter)
            if groups > 1 and groups == getattr(module, "in_channels", None):
                depthwise.add(name)
    layers = [name for name, (kind, _, _) in found.items() if kind != "embedding"]
    roles: dict[str, Role] = {}
    for name, (kind, _, _) in found.items():
        roles[name] = "embedding" if kind == "embedding" else "depthwise" if name in depthwise else "hidden"
    if layers:
        roles[layers[0]] = "first"
        roles[layers[-1]] = "output"
    return {name: KeyLayout(tuple(p.shape), kind, g, roles[name]) for name, (kind, g, p) in found.items()}


def _weights_of(module: nn.Module) -> Iterable[tuple[str, Kind, int]]:
    if isinstance(module, _ConvTransposeNd):
        yield "weight", "conv_transpose", module.groups
    elif isinstance(module, _ConvNd):
        yield "weight", "conv", module.groups
    elif isinstance(module, nn.Linear):
        yield "weight", "linear", 1
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "weight", "embedding", 1
    elif isinstance(module, nn.MultiheadAttention):
        for attribute in _ATTENTION:
            yield attribute, "linear", 1


def _say_what_is_skipped(root: nn.Module) -> None:
    """Layers whose weight is computed anew at every call have no parameter to prune; nobody should overlook them."""
    skipped = [
        clean_name(path)
        for path, module in root.named_modules()
        if isinstance(module, (nn.Linear, _ConvNd)) and "weight" not in module._parameters
    ]
    if skipped:
        warnings.warn(
            f"{', '.join(map(repr, skipped[:5]))}{' and others' if skipped[5:] else ''} stay dense: the weight is "
            "computed by a parametrization (weight_norm, torch.nn.utils.prune), so there is no plain parameter. "
            "Fold it first, with torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove",
            stacklevel=4,
        )


def _ties_embedding(root: nn.Module, group: tuple[str, ...]) -> bool:
    owners = {clean_name(path): module for path, module in root.named_modules()}
    return any(isinstance(owners.get(name.rpartition(".")[0]), (nn.Embedding, nn.EmbeddingBag)) for name in group)


def _others(root: nn.Module, known: Layout, dimensions: int = 0) -> dict[str, KeyLayout]:
    """The parameters that are no default targets (LSTM weights, raw parameters): they can be named all the same."""
    found = {n: p for n, p in parameters_by_name(root).items() if n not in known and p.dim() >= dimensions}
    return {name: KeyLayout(tuple(parameter.shape)) for name, parameter in found.items()}


def _select(root: nn.Module, selector: Selector, known: Layout, others: Layout, argument: str) -> set[str]:
    """What the selector matches among the default kinds; where it matches none of those, among the others."""
    items = [selector] if isinstance(selector, (str, type, nn.Module)) else list(selector)
    chosen: set[str] = set()
    for item in items:
        found = _match(root, item, known) or _match(root, item, others)
        if not found:
            raise ValueError(_nothing_matches(root, item, {**known, **others}, argument))
        chosen |= found
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


def _refuse_half_tied(
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


def _layout_by_shape(name: str, parameter: Tensor) -> KeyLayout:
    if parameter.dim() < 2:
        raise ValueError(
            f"{name!r} has shape {tuple(parameter.shape)}; only parameters with two or more dimensions can be targets. "
            "Biases and norms stay dense, or go with their unit"
        )
    return KeyLayout(tuple(parameter.shape), "linear" if parameter.dim() == 2 else "conv")
