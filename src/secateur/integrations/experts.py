"""Experts out of mixture-of-experts layers: slices of 3-D parameters, or modules in a list, with the router's rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.integrations.configs import FIELDS, check_pretrained, number, rebuilt
from secateur.model.graph.examples import Example, as_examples
from secateur.model.graph.probe import difference, outputs_of
from secateur.model.names import unwrap
from secateur.model.removal import Removal, remove
from secateur.model.removal.named import other_names, tensors_by_name

__all__ = ["ExpertLayer", "expert_usage", "find_experts", "remove_experts"]


@dataclass(frozen=True)
class ExpertLayer:
    """One mixture-of-experts layer.

    Attributes:
        name: of the module that holds router and experts.
        count: how many experts it has.
        top: how many of them a token uses.
        router: parameter names whose rows are experts: the router's weight, then what goes with it.
        stacked: parameter names whose first axis is experts; empty where they are modules.
        listed: name of the ``nn.ModuleList`` of experts; None where they are stacked.
    """

    name: str
    count: int
    top: int
    router: tuple[str, ...]
    stacked: tuple[str, ...]
    listed: str | None


def find_experts(model: nn.Module) -> dict[int, ExpertLayer]:
    """The mixture-of-experts layers of a ``transformers`` model, by number of the layer.

    A module counts if it has a child ``experts``, a list of modules or a module with 3-D parameters of one first axis,
    and a child whose 2-D ``weight`` has a row for each of them.

    Args:
        model: a ``PreTrainedModel``.

    Returns:
        Number of the layer (the last number in the module's name) -> what is there.

    Example:
        >>> find_experts(nn.Linear(2, 2))
        {}
    """
    root, found = unwrap(model), dict[int, ExpertLayer]()
    for name, module in root.named_modules():
        experts = module._modules.get("experts")
        digits = [part for part in name.split(".") if part.isdigit()]
        if experts is None or not digits:
            continue
        stacked = {key: p for key, p in experts.named_parameters(recurse=False) if p.dim() in (2, 3)}
        listed = isinstance(experts, nn.ModuleList) and len(experts) > 1
        sizes = {p.shape[0] for p in stacked.values()}
        if not listed and len(sizes) != 1:
            continue
        count = len(experts) if isinstance(experts, nn.ModuleList) else sizes.pop()
        router = _router(module, count)
        if router:
            found[int(digits[-1])] = ExpertLayer(
                name,
                count,
                _top(module, root),
                tuple(f"{name}.{key}" for key in router),
                () if listed else tuple(f"{name}.experts.{key}" for key in stacked),
                f"{name}.experts" if listed else None,
            )
    return found


def remove_experts(model: nn.Module, experts: Mapping[int, Sequence[int]], *, example_inputs: Any) -> Any:
    """Take experts out of mixture-of-experts layers.

    The result computes what the model computes when the router's logits of those experts are ``-inf``: their share
    goes to the others. If every such layer keeps equally many, the configuration follows, and the result is an
    instance that its class builds from it: ``save_pretrained`` and ``from_pretrained`` give it back. If not, no
    configuration describes it: use ``secateur.save`` and ``secateur.load(path, into=model)``.

    Args:
        model: a ``PreTrainedModel`` like Mixtral; it is not changed.
        experts: number of the layer -> experts to remove.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.

    Returns:
        The model with fewer experts.

    Raises:
        ValueError: for unknown layers or experts, if fewer experts stay than a token uses, and if the probe fails.

    Example:
        >>> import torch, transformers
        >>> config = transformers.MixtralConfig(
        ...     vocab_size=8,
        ...     hidden_size=8,
        ...     intermediate_size=8,
        ...     num_hidden_layers=1,
        ...     num_attention_heads=2,
        ...     num_key_value_heads=2,
        ...     num_local_experts=4,
        ...     num_experts_per_tok=2,
        ...     max_position_embeddings=8,
        ... )
        >>> net = transformers.MixtralForCausalLM(config).eval()
        >>> small = remove_experts(net, {0: [1]}, example_inputs={"input_ids": torch.tensor([[1, 2, 3]])})
        >>> small.config.num_local_experts
        3
    """
    root, examples = check_pretrained(unwrap(model)), as_examples(example_inputs)
    layers = find_experts(root)
    gone = {layer: _checked(layer, numbers, layers) for layer, numbers in experts.items()}
    kept = {
        layer: tuple(one for one in range(found.count) if one not in gone.get(layer, ()))
        for layer, found in layers.items()
    }
    small = copy.deepcopy(root)
    for layer, found in layers.items():
        if gone.get(layer):
            _take_out(small, found, kept[layer])
    problem = _disagree(root, small, layers, gone, examples)
    if problem:
        raise ValueError(f"nothing was changed: without experts {dict(experts)} {problem}")
    counts = {len(numbers) for numbers in kept.values()}
    old = number(root.config, "experts")
    if len(counts) > 1 or old is None or counts == {old}:
        return small
    return rebuilt(small, "experts", old, counts.pop(), examples)


def expert_usage(model: nn.Module, example_inputs: Any) -> dict[int, Tensor]:
    """The share of the router's probability that each expert gets, by layer.

    ``u_e = mean_t softmax(router logits of token t)_e``

    Args:
        model: a ``PreTrainedModel`` like Mixtral.
        example_inputs: typical inputs, not noise.

    Returns:
        Number of the layer -> ``[experts]``, float32, on the CPU.

    Example:
        >>> expert_usage(nn.Linear(2, 2), torch.zeros(1, 2))
        {}
    """
    root, layers = unwrap(model), find_experts(model)
    tensors = dict(root.named_parameters())
    watch = _Routers({id(tensors[found.router[0]]): layer for layer, found in layers.items()})
    with watch:
        for example in as_examples(example_inputs):
            outputs_of(root, example)
    return {layer: torch.cat(watch.seen[layer]).mean(dim=0) for layer in layers if layer in watch.seen}


class _Routers(TorchFunctionMode):
    """Sees the logits that the routers make; those of some experts become ``-inf``."""

    def __init__(self, weights: Mapping[int, int], gone: Mapping[int, Sequence[int]] | None = None) -> None:
        super().__init__()
        self.weights, self.gone = weights, gone or {}
        self.seen: dict[int, list[Tensor]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not nn.functional.linear:
            return out
        layer = self.weights.get(id(args[1] if len(args) > 1 else (kwargs or {}).get("weight")))
        if layer is not None:
            self.seen.setdefault(layer, []).append(out.detach().reshape(-1, out.shape[-1]).float().softmax(-1).cpu())
            gone = torch.tensor(self.gone.get(layer, ()), dtype=torch.int64, device=out.device)
            out = out.index_fill(-1, gone, float("-inf"))
        return out


def _router(module: nn.Module, count: int) -> list[str]:
    """Parameters and buffers beside the experts with a row for each of them, the 2-D weight first."""
    rows = [
        (name, tensor)
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        if not name.startswith("experts.") and tensor.dim() in (1, 2) and tensor.shape[0] == count
    ]
    owners = [name.rpartition(".")[0] for name, tensor in rows if tensor.dim() == 2]
    if len(owners) != 1:
        return []
    mine = [(name, tensor) for name, tensor in rows if name.rpartition(".")[0] in (owners[0], "")]
    return [name for name, _ in sorted(mine, key=lambda item: -item[1].dim())]


def _top(module: nn.Module, root: Any) -> int:
    """How many experts a token uses."""
    for owner in (*module.modules(), getattr(root, "config", None)):
        for name in ("top_k", "num_experts_per_tok"):
            if type(getattr(owner, name, None)) is int:
                return getattr(owner, name)
    return 1


def _checked(layer: int, numbers: Sequence[int], layers: Mapping[int, ExpertLayer]) -> tuple[int, ...]:
    if layer not in layers:
        raise ValueError(f"layer {layer} has no experts; layers with experts: {list(layers)}")
    found = layers[layer]
    wrong = [one for one in numbers if type(one) is not int or not 0 <= one < found.count]
    if wrong:
        raise ValueError(f"layer {layer} has experts 0 to {found.count - 1}, not {wrong}")
    if found.count - len(set(numbers)) < found.top:
        raise ValueError(
            f"layer {layer}: of {found.count} experts {found.count - len(set(numbers))} would stay, and each token "
            f"uses {found.top}; remove at most {found.count - found.top}"
        )
    return tuple(sorted(set(numbers)))


def _take_out(small: nn.Module, found: ExpertLayer, kept: tuple[int, ...]) -> None:
    tensors, others = tensors_by_name(small), other_names(small)
    names = {others.get(name, name) for name in (*found.router, *found.stacked)}
    attributes = {
        name: {key: len(kept)}
        for name, module in small.get_submodule(found.name).named_modules(prefix=found.name)
        for key in (*FIELDS["experts"], "n_experts")
        if type(getattr(module, key, None)) is int and getattr(module, key) == found.count and key in vars(module)
    }
    remove(small, Removal({name: {0: kept} for name in names if name in tensors}, attributes))
    if found.listed is not None:
        experts = small.get_submodule(found.listed)
        assert isinstance(experts, nn.ModuleList)
        for one in sorted(set(range(found.count)) - set(kept), reverse=True):
            del experts[one]


def _disagree(
    root: nn.Module,
    small: nn.Module,
    layers: Mapping[int, ExpertLayer],
    gone: Mapping[int, tuple[int, ...]],
    examples: Sequence[Example],
) -> str:
    tensors = dict(root.named_parameters())
    watch = _Routers({id(tensors[layers[layer].router[0]]): layer for layer in gone}, gone)
    for example in examples:
        with watch:
            expected = outputs_of(root, example)
        silent = [layer for layer in gone if layer not in watch.seen]
        if silent:
            return f"the logits of the routers of layers {silent} were not seen: they are made in an unknown way"
        problem = difference(expected, outputs_of(small, example), exact=True)
        if problem:
            return problem
    return ""
