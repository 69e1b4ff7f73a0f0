"""Smaller models of ``transformers`` that ``from_pretrained`` loads: widths, heads, layers and experts at once."""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.core import CriterionLike, batches_needed
from secateur.integrations.configs import check_pretrained, number, rebuilt
from secateur.integrations.depth import find_stack, least_influential, remove_layers
from secateur.integrations.experts import expert_usage, find_experts, remove_experts
from secateur.integrations.stream import with_old_epsilon
from secateur.integrations.vocabulary import shrink_vocabulary
from secateur.integrations.widths import (
    Amount,
    Wish,
    checked_amount,
    default_multiple,
    kept_count,
    numbers_to_remove,
    place_of,
)
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.evidence import Source
from secateur.model.graph.examples import as_examples
from secateur.model.graph.group import Group, Groups
from secateur.model.graph.groups import find_groups
from secateur.model.graph.probe import Probes
from secateur.model.graph.verify import work_out
from secateur.model.names import unwrap
from secateur.model.removal.registry import carry_mark

__all__ = ["remove_experts", "remove_layers", "shrink_pretrained", "shrink_vocabulary"]

_Width = Literal["mlp", "heads", "hidden"]


def shrink_pretrained(
    model: nn.Module,
    *,
    example_inputs: Any,
    mlp: Amount | None = None,
    heads: Amount | None = None,
    hidden: Amount | None = None,
    layers: Amount | Sequence[int] | None = None,
    experts: Amount | Mapping[int, Sequence[int]] | None = None,
    criterion: CriterionLike | Mapping[str, Tensor] = "magnitude",
    multiple: int | None = None,
    uniform: bool = True,
    exact: bool = True,
    data: Any = None,
    loss: LossFunction | None = None,
    step: StepFunction | None = None,
    batches: int | None = None,
) -> Any:
    """A smaller model of ``transformers``, of its own class, with a configuration that says so.

    Everywhere a float is the share to remove and an integer is what stays, as the configuration counts it. Every layer
    keeps equally many, the best of its own by score. Removed in this order: experts, layers, heads, MLP width, hidden
    width; each step is probed against the masked model, then built again from the edited configuration, loaded
    strictly and compared. ``save_pretrained`` and ``AutoModelFor....from_pretrained`` give the result back.

    Args:
        model: a ``PreTrainedModel``; it is not changed.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of these.
            Batch 2 and a few tokens will do, unless layers or experts are chosen by them.
        mlp: the inner width of the MLPs, or of the experts (``intermediate_size``).
        heads: attention heads (``num_attention_heads``); with grouped queries whole key/value heads with their
            queries go. Classes that derive the width of a head from others (BERT, GPT-2) cannot express it.
        hidden: the width of the residual stream (``hidden_size``); exact through RMS norms, whose weights and epsilon
            follow; through layer norms with ``exact=False`` only.
        layers: numbers of layers to remove; or how many: those that turn ``example_inputs`` least go first.
        experts: number of the layer -> experts to remove; or how many: those that the routers of ``example_inputs``
            use least go first.
        criterion: what scores units, as for ``secateur.prune``; or scores by group name, as ``secateur.groups`` names
            and counts them.
        multiple: widths that stay are rounded to multiples of it; heads and given integers are not. None: 64, for
            widths under 512 the largest power of two that is at most an eighth of the width (for experts in one 3-D
            parameter at least 8, which ``grouped_mm`` needs).
        uniform: False: units go from all layers by one ranking. No configuration describes that: a warning says how
            to save and load the result.
        exact: refuse what changes the values of what stays.
        data: batches, for criteria that read gradients.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``.
        batches: how many batches to read; None: as the criterion's table says.

    Returns:
        The smaller model. It is a new instance: parameters, modes, ``requires_grad`` and dtype are kept, hooks are not.

    Raises:
        ValueError: if nothing is asked for, nothing can be removed, or no configuration describes the result.

    Example:
        >>> import torch, transformers
        >>> config = transformers.LlamaConfig(
        ...     vocab_size=16,
        ...     hidden_size=16,
        ...     intermediate_size=32,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ...     num_key_value_heads=2,
        ...     max_position_embeddings=16,
        ... )
        >>> net = transformers.LlamaForCausalLM(config).eval()
        >>> small = shrink_pretrained(net, example_inputs={"input_ids": torch.arange(6)[None]}, mlp=0.5, heads=0.5)
        >>> small.config.intermediate_size, small.config.num_attention_heads, small.config.num_key_value_heads
        (16, 2, 1)

    Reference:
        Layers: Men et al. 2024, arXiv 2403.03853.
    """
    root = check_pretrained(unwrap(model))
    widths = {"heads": heads, "mlp": mlp, "hidden": hidden}
    wanted = {what: checked_amount(amount, what) for what, amount in widths.items() if amount is not None}
    if not wanted and layers is None and experts is None:
        raise ValueError("nothing is asked for: give mlp=, heads=, hidden=, layers= or experts=")
    read = 1 if isinstance(criterion, Mapping) or batches is not None else batches_needed(criterion)
    source = Source(data, loss, step, read if batches is None else batches)
    task = _Task(example_inputs, Wish(criterion, source, multiple), uniform, exact)
    small = root
    if experts is not None:
        small = remove_experts(small, _experts(small, experts, example_inputs), example_inputs=example_inputs)
    if layers is not None:
        numbers = _layers(small, layers, example_inputs, exact)
        small = remove_layers(small, numbers, example_inputs=example_inputs, exact=exact)
    for what, amount in wanted.items():
        small = _narrowed(small, what, amount, task)  # pyright: ignore[reportArgumentType]
    if not uniform and wanted:
        warnings.warn(
            "widths differ from layer to layer, which no configuration describes: save_pretrained would write a model "
            "that does not load. Save with secateur.save(model, path), and load with secateur.load(path, into=...) "
            f"into {type(root).__name__}(model.config)",
            stacklevel=2,
        )
    return small


@dataclass(frozen=True)
class _Task:
    example_inputs: Any
    wish: Wish
    uniform: bool
    exact: bool


def _narrowed(model: Any, what: _Width, amount: Amount, task: _Task) -> Any:
    """One kind of width, in all layers."""
    small, implementation = _with_plain_experts(model)
    unit = "head" if what == "heads" else "channel"
    groups = find_groups(small, task.example_inputs, unit=unit, exact=task.exact)
    chosen = {name: group for name, group in groups.items() if what == "heads" or place_of(group) == what}
    if not chosen:
        raise ValueError(f"{what}={amount}: {_nothing(small, groups, what)}")
    scores = task.wish.scores(small, chosen)
    families: dict[int, dict[str, Group]] = defaultdict(dict)
    for name, group in chosen.items():
        families[group.units][name] = group
    if len(families) > 1 and isinstance(amount, int):
        raise ValueError(f"{what}={amount}: there are the widths {sorted(families)}; give the share to remove")
    for units, family in families.items():
        stays, multiple = _stays(small, what, units, amount, family, task.wish)
        numbers = numbers_to_remove(
            {name: scores[name] for name in family}, stays, multiple, what, uniform=task.uniform
        )
        if any(numbers.values()):
            small = _described(_cut(small, what, family, numbers, task), what, units, numbers, task)
    if implementation is not None:
        small.config._experts_implementation = implementation
    return small


def _cut(
    model: Any, what: _Width, family: Mapping[str, Group], numbers: Mapping[str, Sequence[int]], task: _Task
) -> Any:
    """Without those units; probed."""
    keep = {name: torch.ones(group.units, dtype=torch.bool) for name, group in family.items()}
    for name, gone in numbers.items():
        keep[name][list(gone)] = False
    examples = as_examples(task.example_inputs)
    small, _, problem = work_out(Probes(model, examples), family, keep)
    if small is None:
        raise ValueError(f"{what}=: nothing was changed: the smaller model does not pass its probes: {problem}")
    return with_old_epsilon(model, small, family, examples) if what == "hidden" else small


def _described(small: Any, what: _Width, units: int, numbers: Mapping[str, Sequence[int]], task: _Task) -> Any:
    """The model built again from a configuration that says so, if one can."""
    if not task.uniform:
        return small
    left = units - len(next(iter(numbers.values())))
    # Grouped queries: the groups are key/value heads, and the configuration counts the queries' first.
    old = (number(small.config, "heads") or units) if what == "heads" else units
    try:
        return rebuilt(small, what, old, old * left // units, as_examples(task.example_inputs))
    except ValueError as error:
        raise ValueError(
            f"{error}. Nothing was changed; with uniform=False the smaller model is returned all the same, to be saved "
            "by secateur.save and loaded by secateur.load(path, into=model)"
        ) from error


def _stays(
    small: Any, what: _Width, units: int, amount: Amount, family: Mapping[str, Group], wish: Wish
) -> tuple[Amount, int]:
    """What stays of each group, or the share that goes, in units of the groups; and the multiple."""
    if what == "heads":
        queries = number(small.config, "heads") or units
        if isinstance(amount, int) and (amount * units) % queries:
            raise ValueError(
                f"heads={amount}: {queries // units} query heads share a key/value head and go together; give a "
                f"multiple of {queries // units}"
            )
        stays = amount * units // queries if isinstance(amount, int) else amount
        return (kept_count(units, stays, 1, what) if isinstance(stays, int) else stays), 1
    stacked = [m for group in family.values() for m in group.members if len(m.shape) == 3 and ".experts." in m.name]
    multiple = wish.multiple or default_multiple(units, stacked=bool(stacked))
    stays = kept_count(units, amount, multiple, what)
    itemsize = small.dtype.itemsize
    if stacked and stays * itemsize % 16:
        raise ValueError(
            f"{what}={amount}: {stays} columns of {small.dtype} are no whole 16 bytes, which grouped_mm needs of "
            f"experts in one 3-D parameter; take a multiple of {16 // itemsize}"
        )
    return amount, multiple


def _with_plain_experts(model: Any) -> tuple[Any, str | None]:
    """A copy whose experts run in a loop, which takes any width; a trace removes single columns."""
    copied = copy.deepcopy(model)
    carry_mark(model, copied)
    if not find_experts(copied):
        return copied, None
    implementation = copied.config._experts_implementation
    copied.config._experts_implementation = "eager"
    return copied, implementation


def _nothing(root: Any, groups: Groups, what: _Width) -> str:
    first = next(
        (n for n, p in root.named_parameters() if p is getattr(root.get_input_embeddings(), "weight", None)), ""
    )
    other = "it has no heads" if what == "heads" else "it lies inside attention"
    reasons = [why for axis, why in groups.frozen.items() if not why.startswith(other) and "output" not in why]
    if what == "hidden" and f"{first} out" in groups.frozen:
        reasons = [groups.frozen[f"{first} out"]]
    shown = "; ".join(list(dict.fromkeys(reasons))[:3]) or "no group of that kind was found"
    return f"nothing can be removed: {shown}. secateur.groups(model, example_inputs=...) says more"


def _layers(model: Any, layers: Amount | Sequence[int], example_inputs: Any, exact: bool) -> list[int]:
    if not isinstance(layers, (int, float)):
        return list(layers)
    amount = checked_amount(layers, "layers")
    count = find_stack(model, example_inputs, exact=exact)[1]
    gone = count - kept_count(count, amount, 1, "layers")
    return least_influential(model, gone, example_inputs=example_inputs, exact=exact)


def _experts(
    model: Any, experts: Amount | Mapping[int, Sequence[int]], example_inputs: Any
) -> Mapping[int, Sequence[int]]:
    if isinstance(experts, Mapping):
        return experts
    amount = checked_amount(experts, "experts")
    usage = expert_usage(model, example_inputs)
    if not usage:
        raise ValueError(f"experts={experts}: no layer with experts was found")
    return {
        layer: share.argsort(stable=True)[: len(share) - kept_count(len(share), amount, 1, "experts")].tolist()
        for layer, share in usage.items()
    }
