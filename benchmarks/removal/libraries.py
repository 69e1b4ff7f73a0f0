"""The two libraries that the benchmarks compare, each as one function that removes a share of the channels."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.oracles.removal import leaves

__all__ = ["LIBRARIES", "PACKAGES", "Removed", "heads_told", "output_layers", "versions"]

_FUSED_OR_QUERY = ("qkv", "q_proj", "wq", "c_attn", "query", "q", "q_lin")
_KEY_AND_VALUE = ("k_proj", "v_proj", "wk", "wv", "key", "value", "k", "v")


@dataclass(frozen=True)
class Removed:
    """The smaller model and the seconds of each phase."""

    model: nn.Module
    phases: dict[str, float]


Library = Callable[[nn.Module, Any, float], Removed]


def torch_pruning(model: nn.Module, inputs: Any, sparsity: float) -> Removed:
    """As its README has it: the base pruner, magnitude of groups, the same share of every layer, one shot.

    It is told what it cannot find out: the output layers, and how many heads a projection has.
    """
    import torch_pruning as tp

    outputs, heads = output_layers(model, inputs), heads_told(model)
    start = time.perf_counter()
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False,
        pruning_ratio=sparsity,
        ignored_layers=outputs,
        num_heads=heads,
        forward_fn=_forward,  # its own guess unpacks a batch of one image
        output_transform=leaves,
    )
    planned = time.perf_counter()
    pruner.step()
    return Removed(model, {"plan": planned - start, "remove": time.perf_counter() - planned})


def secateur(model: nn.Module, inputs: Any, sparsity: float) -> Removed:
    """Two calls, the second with its probes; nothing is told but the example inputs."""
    return _secateur(model, inputs, sparsity, exact=True)


def secateur_inexact(model: nn.Module, inputs: Any, sparsity: float) -> Removed:
    """Also what changes the values of others, as torch-pruning does: the stream of a network with layer norms."""
    return _secateur(model, inputs, sparsity, exact=False)


def _secateur(model: nn.Module, inputs: Any, sparsity: float, exact: bool) -> Removed:
    import secateur as sc

    start = time.perf_counter()
    options: dict[str, Any] = {"criterion": "l2", "allocation": "uniform", "example_inputs": inputs, "exact": exact}
    sc.prune(model, sparsity, unit="channel", undo=False, **options)
    planned = time.perf_counter()
    small = sc.shrink(model, example_inputs=inputs, exact=exact, inplace=True)
    return Removed(small, {"plan": planned - start, "remove": time.perf_counter() - planned})


def secateur_one_call(model: nn.Module, inputs: Any, sparsity: float) -> Removed:
    """Without masks in between: groups are found once, not by both calls."""
    import secateur as sc

    start = time.perf_counter()
    small = sc.shrink(
        model, sparsity=sparsity, criterion="l2", allocation="uniform", example_inputs=inputs, inplace=True
    )
    return Removed(small, {"remove": time.perf_counter() - start})


LIBRARIES: dict[str, Library] = {
    "torch-pruning": torch_pruning,
    "secateur": secateur,
    "secateur, one call": secateur_one_call,
    "secateur, exact=False": secateur_inexact,
}
PACKAGES = {name: "torch_pruning" if name == "torch-pruning" else "secateur" for name in LIBRARIES}
"""What is imported before the clock starts."""


def _forward(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Layers whose result is (the memory of) an output; where there is none, the layer that is called last."""
    made: list[tuple[nn.Module, Tensor]] = []
    layers = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))]
    hooks = [m.register_forward_hook(lambda m, _, output: made.append((m, output))) for m in layers]
    with torch.no_grad():
        memory = {tensor.untyped_storage().data_ptr() for tensor in leaves(_forward(model, inputs))}
    for hook in hooks:
        hook.remove()
    found = [m for m, output in made if output.untyped_storage().data_ptr() in memory]
    return list(dict.fromkeys(found or [m for m, _ in made[-1:]]))


def heads_told(model: nn.Module) -> dict[nn.Module, int]:
    """Projection -> heads, read from the attributes and the names that attention modules usually have."""
    told: dict[nn.Module, int] = {}
    for module in model.modules():
        query = _first_count(module, ("num_heads", "heads", "n_head", "num_attention_heads"))
        keys = _first_count(module, ("num_key_value_heads", "kv_heads", "n_kv_heads")) or query
        for names, count in ((_FUSED_OR_QUERY, query), (_KEY_AND_VALUE, keys)):
            layers = [getattr(module, name, None) for name in names] if count else []
            told |= {layer: count for layer in layers if isinstance(layer, nn.Linear) and count}
    return told


def _first_count(module: nn.Module, names: Sequence[str]) -> int | None:
    """The first of these attributes that is a whole number, also in the module's ``config``."""
    places = (module, getattr(module, "config", None))
    values = [getattr(place, name, None) for place in places if place is not None for name in names]
    return next((value for value in values if isinstance(value, int) and value > 1), None)


def versions() -> dict[str, str]:
    """Of the libraries compared."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torch-pruning", "secateur")}
