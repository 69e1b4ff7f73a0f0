"""Which parameters are pruned: the default targets, and what ``targets=`` and ``exclude=`` select.

Default: the weights of convolutions, linear layers and attention projections. Not biases, norms,
embeddings, or a head tied to an embedding. A unit that removes outputs leaves the last layer alone.
Biases of those layers are targets where they are named (``"*.bias"``), one by one, with unit weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.model.names import aliases, clean_name, parameters_by_name, unwrap
from secateur.model.selectors import Selector, other_parameters, refuse_half_tied, select
from secateur.types import KeyLayout, Kind, Role

__all__ = ["REMOVES_OUTPUTS", "find_targets", "known_weights"]

REMOVES_OUTPUTS = frozenset({"filter", "layer"})
"""Units whose removal from the last layer would remove classes."""

_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_BIASES = frozenset({"bias", "in_proj_bias"})
_OPENED = "secateur.attention"
"""What the class of an opened attention calls itself, wherever it is from; its weights are named alike."""


def find_targets(
    model: nn.Module, targets: Selector | None = None, exclude: Selector | None = None, *, unit: str = "weight"
) -> dict[str, KeyLayout]:
    """The target parameters with their layouts, in the order of registration.

    Args:
        model: any module; wrappers are looked through.
        targets: what to prune; None: the default targets. Biases have to be named: what matches weights means those.
        exclude: what of that to leave dense.
        unit: name of the unit; ``"filter"`` and ``"layer"`` leave the output layer out by default.

    Returns:
        Parameter name -> layout. A parameter with several names stands under the first.

    Raises:
        ValueError: if a selector matches nothing, selects a parameter with fewer than two
            dimensions that is no bias of a layer, or biases for another unit than ``"weight"``, or targets one name of
            a tied parameter and excludes another.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> {name: (key.kind, key.role) for name, key in find_targets(net).items()}
        {'0.weight': ('conv', 'first'), '3.weight': ('linear', 'output')}
        >>> list(find_targets(net, targets=nn.Conv2d))
        ['0.weight']
        >>> list(find_targets(net, targets=["*.weight", "*.bias"]))
        ['0.weight', '0.bias', '3.weight', '3.bias']
    """
    root = unwrap(model)
    candidates = known_weights(root)
    names = aliases(root)
    tied = {name for name, group in names.items() if len(group) > 1}
    known = {first: layout for first, layout in candidates.items() if first in names}
    biases = _biases_of(root, candidates)
    chosen = (
        {n for n, k in known.items() if k.kind != "embedding" and not (n in tied and _ties_embedding(root, names[n]))}
        if targets is None
        else select(root, targets, known, biases | other_parameters(root, known, dimensions=2), "targets")
        | _named_biases(targets, biases)
    )
    if targets is None:
        _say_what_is_skipped(root)
    if targets is None and unit in REMOVES_OUTPUTS:
        chosen = {name for name in chosen if known[name].role != "output"}
    if exclude is not None:
        dropped = select(root, exclude, known | biases, other_parameters(root, known), "exclude")
        refuse_half_tied(root, targets, exclude, names, known)
        chosen -= dropped
    explicit = chosen - set(known)
    if unit != "weight" and explicit & set(biases):
        raise ValueError(
            f"{min(explicit & set(biases))!r} is a bias: biases are pruned one by one, with unit 'weight'. Leave them "
            f"out of targets= for unit {unit!r}; unit 'channel' takes along those of what it removes"
        )
    plain = {name: _layout_by_shape(name, parameters_by_name(root)[name]) for name in explicit - set(biases)}
    layout = known | biases | plain
    found = {name: layout[name] for name in parameters_by_name(root) if name in chosen}
    if not found:
        raise ValueError(
            f"nothing to prune in {type(root).__name__}: no convolution, linear layer or attention projection is left "
            f"(targets={targets!r}, exclude={exclude!r}, unit={unit!r}); name the parameters with targets="
        )
    return found


def known_weights(root: nn.Module) -> dict[str, KeyLayout]:
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


def _biases_of(root: nn.Module, weights: Mapping[str, KeyLayout]) -> dict[str, KeyLayout]:
    """The biases of layers, each with the role of the weight beside it, whoever else that weight belongs to."""
    first = {name: group[0] for group in aliases(root).values() for name in group}
    found: dict[str, KeyLayout] = {}
    for path, module in root.named_modules():
        prefix = clean_name(f"{path}." if path else "")
        own = [f"{prefix}{name}" for name, *_ in _weights_of(module)]
        roles: list[Role] = [weights[name].role for name in own if name in weights]
        for attribute in _BIASES if own else ():
            bias = module._parameters.get(attribute)
            if bias is not None and bias.dim() == 1:
                layout = KeyLayout(tuple(bias.shape), "bias", role=roles[0] if roles else "hidden")
                found.setdefault(first[f"{prefix}{attribute}"], layout)
    return found


def _named_biases(targets: Selector, biases: Iterable[str]) -> set[str]:
    """What a glob that ends in "bias" says, though something else of that name (a module) may match it as well."""
    items = [targets] if isinstance(targets, str) or not isinstance(targets, Iterable) else targets
    globs = [item for item in items if isinstance(item, str) and item.endswith("bias")]
    return {name for name in biases if any(fnmatchcase(name, glob) for glob in globs)}


def _weights_of(module: nn.Module) -> Iterable[tuple[str, Kind, int]]:
    if isinstance(module, _ConvTransposeNd):
        yield "weight", "conv_transpose", module.groups
    elif isinstance(module, _ConvNd):
        yield "weight", "conv", module.groups
    elif isinstance(module, nn.Linear):
        yield "weight", "linear", 1
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "weight", "embedding", 1
    elif isinstance(module, nn.MultiheadAttention) or getattr(type(module), "kind", None) == _OPENED:
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
            stacklevel=5,
        )


def _ties_embedding(root: nn.Module, group: tuple[str, ...]) -> bool:
    owners = {clean_name(path): module for path, module in root.named_modules()}
    return any(isinstance(owners.get(name.rpartition(".")[0]), (nn.Embedding, nn.EmbeddingBag)) for name in group)


def _layout_by_shape(name: str, parameter: Tensor) -> KeyLayout:
    if parameter.dim() < 2:
        raise ValueError(
            f"{name!r} has shape {tuple(parameter.shape)}; only parameters with two or more dimensions "
            "and the biases of convolutions, linear layers and attention can be targets. Norms stay dense, or go with "
            "their unit"
        )
    return KeyLayout(tuple(parameter.shape), "linear" if parameter.dim() == 2 else "conv")
