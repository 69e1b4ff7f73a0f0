"""The numbers that modules remember about their tensors, kept true: one table by type of module."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from secateur.model.removal import layers, sequence_layers
from secateur.model.removal.journal import Journal
from secateur.model.removal.named import modules_by_name
from secateur.model.removal.plan import Value
from secateur.model.removal.resized import Resized

__all__ = ["AMBIGUOUS", "derivation", "update_attributes"]

Derivation: TypeAlias = Callable[[Resized], dict[str, Value]]

_BY_TYPE: dict[type[nn.Module], Derivation] = {
    nn.Linear: layers.linear,
    nn.Bilinear: layers.bilinear,
    _ConvNd: layers.convolution,
    _NormBase: layers.batch_norm,
    nn.LayerNorm: layers.layer_norm,
    nn.RMSNorm: layers.layer_norm,
    nn.GroupNorm: layers.group_norm,
    nn.Embedding: layers.embedding,
    nn.EmbeddingBag: layers.embedding,
    nn.PReLU: layers.prelu,
    nn.RNNBase: sequence_layers.recurrent,
    nn.RNNCellBase: sequence_layers.cell,
    nn.MultiheadAttention: sequence_layers.attention,
}
_BY_NAME: dict[str, Derivation] = {"transformers.pytorch_utils.Conv1D": layers.transposed_linear}
"""Types of packages that need not be installed."""

AMBIGUOUS = ("groups", "padding_idx")
"""Of the derived attributes those that follow from which positions stayed, not from the shapes alone."""


def derivation(module: nn.Module) -> Derivation | None:
    """The table's row for a module: that of the most derived of its types; None for unknown types.

    Example:
        >>> derivation(nn.Conv2d(1, 1, 1)).__name__
        'convolution'
        >>> derivation(nn.ReLU()) is None
        True
    """
    for kind in type(module).__mro__:
        found = _BY_TYPE.get(kind) or _BY_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
        if found is not None:
            return found
    return None


def update_attributes(
    root: nn.Module,
    kept: Mapping[int, Mapping[int, tuple[int, ...]]],
    changed: set[int],
    explicit: Mapping[str, Mapping[str, Value]],
    journal: Journal,
) -> dict[str, tuple[str, ...]]:
    """Set the attributes of every module of which a tensor has changed, then the explicit ones.

    Args:
        root: an unwrapped module whose tensors have their new shapes.
        kept: id of a tensor -> axis -> positions that stayed, where known.
        changed: ids of the tensors that have changed.
        explicit: module name -> attribute -> value.
        journal: what takes everything back.

    Returns:
        Module name -> attributes that the shapes do not tell, of the modules touched.

    Raises:
        ValueError: if tensors of a module do not fit together, or an attribute cannot be set.
    """
    names = modules_by_name(root)
    unknown = sorted(set(explicit) - set(names))
    if unknown:
        raise ValueError(f"the removal sets attributes of {unknown}, which are no modules of the model")
    given = _by_module(names, explicit)
    told: dict[str, tuple[str, ...]] = {}
    visited: set[int] = set()
    for name, module in names.items():
        touched = any(id(tensor) in changed for tensor in _own_tensors(module))
        if id(module) in visited or not (touched or id(module) in given):
            continue
        visited.add(id(module))
        values = given.get(id(module), {})
        derived: dict[str, Value] = {}
        if touched:
            layer = Resized(name, module, kept, values)
            derived = _derived(layer, journal)
        beyond = tuple(dict.fromkeys([*values, *_ambiguous(module, derived)]))
        if beyond:
            told[name] = beyond
        for key, value in {**derived, **values}.items():
            _check_agreement(name, module, key, derived.get(key, value), value)
            _set(journal, name, module, key, value, key in values)
    return told


def _by_module(
    names: Mapping[str, nn.Module], explicit: Mapping[str, Mapping[str, Value]]
) -> dict[int, dict[str, Value]]:
    """Explicit values by module object: one module may have several names."""
    found: dict[int, dict[str, Value]] = {}
    for name, values in explicit.items():
        if values:
            found.setdefault(id(names[name]), {}).update(values)
    return found


def _derived(layer: Resized, journal: Journal) -> dict[str, Value]:
    row = derivation(layer.module)
    try:
        layer.remake(journal)
        return {} if row is None else row(layer)
    except RuntimeError as error:  # what makes a weight has tensors of its own, which were not sliced along
        raise ValueError(f"{layer.where}: its tensors no longer fit together: {error}") from error


def _ambiguous(module: nn.Module, derived: Mapping[str, Value]) -> Iterator[str]:
    """The attributes are still the old ones here: a convolution that had one group still has one."""
    return (key for key in AMBIGUOUS if key in derived and (key != "groups" or module.groups != 1))


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that its row of the table looks at."""
    yield from (tensor for tensor in module._parameters.values() if tensor is not None)
    yield from (tensor for tensor in module._buffers.values() if tensor is not None)
    children = ["parametrizations", *(["out_proj"] if isinstance(module, nn.MultiheadAttention) else [])]
    for child in filter(None, map(module._modules.get, children)):
        yield from child.parameters()
        yield from child.buffers()


def _check_agreement(name: str, module: nn.Module, key: str, derived: Value, value: Value) -> None:
    if derived != value:
        raise ValueError(
            f"{name or 'the model'} ({type(module).__name__}): the removal sets {key} to {value!r}, its tensors say "
            f"{derived!r}; leave it out"
        )


def _set(journal: Journal, name: str, module: nn.Module, key: str, value: Value, explicit: bool) -> None:
    where = f"{name or 'the model'} ({type(module).__name__})"
    if not hasattr(module, key):
        if not explicit:  # a subclass that keeps its sizes elsewhere
            return
        raise ValueError(f"{where} has no attribute {key!r}; attributes can be changed, not added")
    old = getattr(module, key)
    if isinstance(getattr(type(module), key, None), property) or not _same_kind(old, value):
        raise ValueError(
            f"{where}: {key} is {old!r} and cannot be set to {value!r}; plain numbers and tuples of integers can"
        )
    journal.set_attribute(module, key, _like(old, value))


def _same_kind(old: object, value: Value) -> bool:
    if isinstance(value, tuple):
        return isinstance(old, (tuple, list)) and all(type(entry) is int for entry in value)
    return isinstance(old, (int, float)) and not isinstance(old, bool) and not isinstance(value, bool)


def _like(old: Any, value: Value) -> Any:
    return list(value) if isinstance(old, list) and isinstance(value, tuple) else value
