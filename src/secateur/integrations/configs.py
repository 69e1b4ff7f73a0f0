"""Configurations of ``transformers`` that describe a model which was made smaller.

Which number of a configuration stands for which width differs from class to class. The table here only proposes:
an edited configuration is taken if the class, built from it, has every tensor of the smaller model, name by name and
shape by shape, loads its values strictly, and returns the same output.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from secateur.model.graph.examples import Example
from secateur.model.graph.probe import difference, outputs_of

__all__ = ["FIELDS", "Role", "check_pretrained", "epsilons", "number", "rebuilt", "rebuilt_with_layers"]

Role: TypeAlias = Literal["mlp", "heads", "hidden", "layers", "experts", "vocabulary"]

FIELDS: Mapping[Role, tuple[str, ...]] = {
    "mlp": (
        "intermediate_size",
        "moe_intermediate_size",
        "shared_expert_intermediate_size",
        "n_inner",
        "d_ff",
        "ffn_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "mlp_dim",
        "hidden_dim",
    ),
    "heads": (
        "num_attention_heads",
        "encoder_attention_heads",
        "decoder_attention_heads",
        "num_heads",
        "n_head",
        "n_heads",
    ),
    "hidden": ("hidden_size", "d_model", "n_embd", "dim"),
    "layers": ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers", "n_layer"),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "vocabulary": ("vocab_size",),
}
"""What a configuration may call a width; all of those that a class has are proposed together, then each alone."""

_SHARED_HEADS = ("num_key_value_heads", "num_kv_heads")
_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "norm_epsilon")
_OF_MODULES = ("eps", "variance_epsilon", "epsilon")
_LAYER_INDICES = ("mlp_only_layers", "cross_attention_layers")
_LAYER_THRESHOLDS = ("max_window_layers", "first_k_dense_replace")


def check_pretrained(model: nn.Module) -> Any:
    """The model as a ``PreTrainedModel``.

    Raises:
        ValueError: if it is none.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"{type(model).__name__} is no model of the transformers package (a PreTrainedModel with a config); unwrap "
            "it if it is inside another module. For any other module there is secateur.shrink"
        )
    return model


def number(config: Any, role: Role) -> int | None:
    """The first of the role's numbers that a configuration has.

    Example:
        >>> from types import SimpleNamespace
        >>> number(SimpleNamespace(d_ff=8), "mlp")
        8
    """
    values = (getattr(config, name, None) for name in FIELDS[role])
    return next((value for value in values if type(value) is int), None)


def rebuilt(small: Any, role: Role, old: int, new: int, examples: Sequence[Example]) -> Any:
    """The same model as an instance that its own class builds from an edited configuration.

    Args:
        small: the model after its tensors were cut, with the old configuration.
        role: which width changed, everywhere.
        old: what it was.
        new: what it is.
        examples: inputs on which both have to agree.

    Returns:
        A new instance with the tensors of ``small``, its dtype, modes and ``requires_grad``; ``save_pretrained`` and
        ``from_pretrained`` give it back.

    Raises:
        ValueError: if no edit of the configuration describes the model.
    """
    found = _fitted(small, _edits(small.config, role, old, new), examples)
    if isinstance(found, str):
        raise ValueError(
            f"the configuration of {type(small).__name__} cannot say that {role} went from {old} to {new}: {found}"
        )
    return found


def rebuilt_with_layers(small: Any, count: int, kept: Sequence[int], examples: Sequence[Example]) -> Any:
    """``rebuilt`` for a stack that lost blocks: lists with an entry per layer follow.

    Args:
        small: the model with a shorter stack.
        count: how many blocks the stack had.
        kept: the numbers of those that stayed.
        examples: inputs on which both have to agree.

    Returns:
        A new instance.

    Raises:
        ValueError: if no edit of the configuration describes the model.
    """

    def edits() -> Iterator[Any]:
        for config in _edits(small.config, "layers", count, len(kept)):
            _follow_layers(config, count, kept)
            yield config

    found = _fitted(small, edits(), examples)
    if isinstance(found, str):
        raise ValueError(
            f"the configuration of {type(small).__name__} cannot say that layers {list(kept)} of {count} are left: "
            f"{found}"
        )
    return found


def _edits(config: Any, role: Role, old: int, new: int) -> Iterator[Any]:
    """Edited copies of a configuration, the likeliest first."""
    names = [name for name in FIELDS[role] if hasattr(config, name) and getattr(config, name) in (old, None)]
    others = [name for name, value in vars(config).items() if type(value) is int and value == old and name not in names]
    for chosen in [names, *([name] for name in names if len(names) > 1), *([name] for name in others)]:
        for pin in (_pinned_head_dim, lambda _: None) if role in {"heads", "hidden"} else (lambda _: None,):
            edited = copy.deepcopy(config)
            pin(edited)
            for name in chosen:
                setattr(edited, name, new)
            for name in _SHARED_HEADS if role == "heads" else ():
                if type(getattr(edited, name, None)) is int:
                    setattr(edited, name, max(1, getattr(config, name) * new // old))
            yield edited


def _pinned_head_dim(config: Any) -> None:
    """The width of a head, which many classes else derive from the numbers that change."""
    heads, hidden = number(config, "heads"), number(config, "hidden")
    if getattr(config, "head_dim", None) is None and heads and hidden:
        config.head_dim = hidden // heads


def _follow_layers(config: Any, count: int, kept: Sequence[int]) -> None:
    for name, value in list(vars(config).items()):
        if isinstance(value, (list, tuple)) and len(value) == count and "layer" in name and name not in _LAYER_INDICES:
            setattr(config, name, type(value)(value[index] for index in kept))
    for name in _LAYER_INDICES:
        if isinstance(getattr(config, name, None), (list, tuple)):
            setattr(config, name, [place for place, index in enumerate(kept) if index in getattr(config, name)])
    for name in _LAYER_THRESHOLDS:
        if type(getattr(config, name, None)) is int:
            setattr(config, name, sum(index < getattr(config, name) for index in kept))


def _fitted(small: Any, configs: Iterator[Any], examples: Sequence[Example]) -> Any:
    """The first instance that agrees; else what was wrong with the first proposal."""
    wanted = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    first = ""
    for config in configs:
        _follow_epsilon(config, small)
        problem = _misfit(type(small), config, wanted)
        if not problem:
            built = _filled(small, config)
            problem = _unequal(small, built, examples)
            if not problem:
                return built
        first = first or problem
    return first or "none of its numbers is that width"


def _follow_epsilon(config: Any, small: nn.Module) -> None:
    """The epsilon of the norms, where all of them have one and the same."""
    found = {value for _, _, value in epsilons(small)}
    if len(found) == 1:
        for name in _EPSILONS:
            if isinstance(getattr(config, name, None), float):
                setattr(config, name, next(iter(found)))


def epsilons(model: nn.Module) -> Iterator[tuple[str, str, float]]:
    """Name of a norm, the attribute that holds its epsilon, and its value.

    Example:
        >>> list(epsilons(nn.LayerNorm(2)))
        [('', 'eps', 1e-05)]
    """
    for name, module in model.named_modules():
        for attribute in _OF_MODULES:
            value = getattr(module, attribute, None)
            if isinstance(value, float):
                yield name, attribute, value


def _misfit(kind: Callable[[Any], nn.Module], config: Any, wanted: Mapping[str, tuple[int, ...]]) -> str:
    """How the tensors of the class, built from a configuration without memory, differ from the wanted ones."""
    try:
        with torch.device("meta"):
            empty = kind(copy.deepcopy(config))
    except Exception as error:  # noqa: BLE001 - the class may raise anything about its numbers; it is reported
        return f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    for name in [*wanted, *shapes]:
        if shapes.get(name) != wanted.get(name):
            return f"{name} would be {shapes.get(name, 'absent')}, and is {wanted.get(name, 'absent')}"
    return ""


def _filled(small: Any, config: Any) -> Any:
    """An instance of the class with the tensors of the model."""
    config.architectures = [type(small).__name__]
    state = {name: tensor.detach().clone() for name, tensor in small.state_dict().items()}
    with torch.random.fork_rng(devices=[]):
        built = type(small)(config)
    built.to(device=small.device)
    built.load_state_dict(state, strict=True, assign=True)
    built.tie_weights()
    modes = {name: module.training for name, module in small.named_modules()}
    for name, module in built.named_modules():
        module.training = modes.get(name, small.training)
    wanted = {name: parameter.requires_grad for name, parameter in small.named_parameters()}
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(wanted.get(name, True))
    built.name_or_path = small.name_or_path
    if getattr(small, "generation_config", None) is not None:
        built.generation_config = copy.deepcopy(small.generation_config)
    return built


def _unequal(small: nn.Module, built: nn.Module, examples: Sequence[Example]) -> str:
    for one, other in zip(epsilons(small), epsilons(built), strict=False):
        if one[:2] == other[:2] and abs(one[2] - other[2]) > 1e-6 * abs(one[2]):
            return f"{one[0]}.{one[1]} would be {other[2]:g}, and is {one[2]:g}: its norms have different widths"
    for example in examples:
        problem = difference(outputs_of(small, example), outputs_of(built, example), exact=True)
        if problem:
            return f"built from it, {problem}"
    return ""
