"""Collectors: from a model, and batches where needed, to the evidence that a criterion reads.

One pass over the batches serves every kind of gradient evidence. The user's ``.grad``, train mode,
buffers, RNG and hooks are as before afterwards.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.core.unit_channel import evidence_layout
from secateur.model.activations import ACTIVATION_KINDS, collect_activations
from secateur.model.batches import LossFunction, StepFunction, limited, loss_of, to_device
from secateur.model.gates import gate_layout, gate_places, gated
from secateur.model.names import clean_name, find_parameter, unwrap
from secateur.model.quietly import quietly
from secateur.model.sharding import full, is_sharded, reshard
from secateur.types import Evidence, KeyLayout, Layout, Unit

__all__ = ["GRADIENT_KINDS", "KINDS", "Source", "collect"]

GRADIENT_KINDS: Mapping[str, str] = {
    "grad": "mean over batches of the gradient",
    "grad_abs": "mean over batches of the gradient's absolute value",
    "grad_sq": "mean over batches of the squared gradient",
    "gate_grad_sq": "per unit: mean over batches of the squared gradient of a gate",
}

KINDS: Mapping[str, str] = {
    "weight": "the weights as they are",
    "init": "the weights before training (init=)",
    "noise": "uniform in [0, 1) per unit, from seed and name",
    "movement": "minus the sum over training steps of gradient times weight (collected by sc.Pruner)",
    **GRADIENT_KINDS,
    **ACTIVATION_KINDS,
}


@dataclass(frozen=True)
class Source:
    """Where evidence comes from, besides the model.

    Attributes:
        data: an iterable of batches, or one batch.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``, for batches of any other shape.
        batches: how many batches to read.
        init: parameter name -> weights before training.
        seed: of the noise.
        mode: ``"eval"`` or ``"train"``, the mode of the passes.
        streamed: evidence that was collected during training.
    """

    data: Any = None
    loss: LossFunction | None = None
    step: StepFunction | None = None
    batches: int = 1
    init: Mapping[str, Tensor] | None = None
    seed: int = 0
    mode: Literal["eval", "train"] = "eval"
    streamed: Evidence | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("eval", "train"):
            raise ValueError(f"mode={self.mode!r}; known are 'eval' and 'train'")
        if type(self.batches) is not int or self.batches < 1:
            raise ValueError(f"batches={self.batches!r}: how many batches to read, a whole number from 1")


def collect(
    model: nn.Module, kinds: Sequence[str], layout: Layout, unit: Unit, source: Source
) -> dict[str, dict[str, Tensor]]:
    """Collect evidence for the targets.

    Args:
        model: the module, wrapped or not.
        kinds: names of evidence, keys of ``KINDS``.
        layout: the targets: parameters, or coupled groups of slices of parameters.
        unit: what is removed together; noise is per unit, gates are per output of a layer.
        source: data, loss and the rest.

    Returns:
        Kind -> parameter name (noise: key of the layout) -> tensor, detached, on the CPU or the parameter's device.

    Raises:
        ValueError: for a kind nobody collects, and for missing data, loss or init.

    Example:
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.targets import find_targets
        >>> net = nn.Linear(3, 2)
        >>> batch = (torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
        >>> found = collect(
        ...     net,
        ...     ["weight", "grad_abs"],
        ...     find_targets(net),
        ...     parse_unit("weight")[0],
        ...     Source(batch, nn.functional.cross_entropy),
        ... )
        >>> found["grad_abs"]["weight"].shape
        torch.Size([2, 3])
    """
    root = unwrap(model)
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise ValueError(
            f"no collector for evidence {unknown[0]!r}; known: {', '.join(KINDS)}. A criterion's positional "
            "parameters name its evidence; hyper-parameters are keyword-only"
        )
    weights = evidence_layout(unit, layout)
    found: dict[str, dict[str, Tensor]] = {}
    streamed = source.streamed or {}
    wanted = [kind for kind in kinds if kind not in streamed]
    gradients = [kind for kind in wanted if kind in GRADIENT_KINDS]
    if gradients:
        gates = gate_layout(root, layout) if "gate_grad_sq" in gradients else {}
        found |= _gradients(root, gradients, weights, gates, source)
    if activations := [kind for kind in wanted if kind in ACTIVATION_KINDS]:
        found |= collect_activations(
            root, activations, layout, unit, source.data, step=source.step, batches=source.batches, mode=source.mode
        )
    for kind in kinds:
        if kind in streamed:
            found[kind] = dict(streamed[kind])
        elif kind not in found:
            found[kind] = _SIMPLE[kind](root, layout if kind == "noise" else weights, unit, source)
    return found


def _weight(root: nn.Module, layout: Layout, unit: Unit, source: Source) -> dict[str, Tensor]:
    return {name: full(find_parameter(root, name)).detach() for name in layout}


def _init(root: nn.Module, layout: Layout, unit: Unit, source: Source) -> dict[str, Tensor]:
    if source.init is None:
        raise ValueError(
            "this criterion compares with the weights before training: give init=, a state_dict taken then "
            "({name: tensor.clone() for name, tensor in model.state_dict().items()}); sc.Pruner takes it by itself"
        )
    given = {clean_name(name): tensor for name, tensor in source.init.items()}
    for name, key in layout.items():
        if name not in given or tuple(given[name].shape) != key.shape:
            what = "is missing" if name not in given else f"has shape {tuple(given[name].shape)}, not {key.shape}"
            raise ValueError(f"init= {what} for {name!r}; it has {list(given)[:8]}")
    return {name: full(given[name]).detach() for name in layout}


def _noise(root: nn.Module, layout: Layout, unit: Unit, source: Source) -> dict[str, Tensor]:
    noise: dict[str, Tensor] = {}
    for name, key in layout.items():
        # From the name, so that a parameter's noise does not depend on which others are targets.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{source.seed}:{name}".encode()))
        noise[name] = torch.rand(unit.grid(key), generator=generator, dtype=torch.float64)
    return noise


def _movement(root: nn.Module, layout: Layout, unit: Unit, source: Source) -> dict[str, Tensor]:
    raise ValueError(
        "evidence 'movement' is summed up during training: use sc.Pruner(model, plan) with attach(optimizer)"
    )


_SIMPLE: Mapping[str, Callable[[nn.Module, Layout, Unit, Source], dict[str, Tensor]]] = {
    "weight": _weight,
    "init": _init,
    "noise": _noise,
    "movement": _movement,
}


def _gradients(
    root: nn.Module, kinds: Iterable[str], layout: Layout, gate_at: Mapping[str, KeyLayout], source: Source
) -> dict[str, dict[str, Tensor]]:
    kinds = list(kinds)
    if source.data is None:
        raise ValueError(
            f"evidence {', '.join(kinds)} comes from gradients: give data= (a loader, or one (inputs, labels) pair) "
            "and loss=; or let sc.Pruner collect it while you train"
        )
    device = next(root.parameters()).device
    sums: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    count = 0
    with quietly(root, source.mode), torch.enable_grad():
        batches = (to_device(batch, device) for batch in limited(source.data, source.batches))
        for batch in batches:
            count += 1
            if set(kinds) - {"gate_grad_sq"}:
                reshard(root)  # FSDP2: after the pass the modules hold gathered copies, whose gradients are not reduced
                inputs = {n: find_parameter(root, n) for n in layout}
                value = loss_of(root, batch, source.loss, source.step)
                _add(sums, layout, _gradient(value, inputs))
            if "gate_grad_sq" in kinds:
                places = gate_places(root, gate_at, lambda batch=batch: loss_of(root, batch, source.loss, source.step))
                with gated(places, gate_at) as gates:
                    value = loss_of(root, batch, source.loss, source.step)
                    for name, gradient in _gradient(value, gates).items():
                        total = sums["gate_grad_sq"]
                        total[name] = total.get(name, 0) + gradient.double().square()
    return {kind: {name: total / count for name, total in totals.items()} for kind, totals in sums.items()}


def _gradient(value: Tensor, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients by name, without touching ``.grad`` or running the user's accumulation hooks where possible."""
    frozen = [name for name, tensor in inputs.items() if not tensor.requires_grad]
    if frozen:
        raise ValueError(
            f"{frozen[0]!r} does not require gradients, so its gradient cannot be evidence; "
            "unfreeze it while scoring, exclude it, or use a criterion without gradients (magnitude)"
        )
    if _needs_backward(value, inputs):
        value.backward()
        found = [None if tensor.grad is None else full(tensor.grad).clone() for tensor in inputs.values()]
        for tensor in inputs.values():
            tensor.grad = None
    else:
        found = torch.autograd.grad(value, list(inputs.values()), allow_unused=True)
    return {
        name: torch.zeros(tensor.shape, device=tensor.device) if gradient is None else gradient.detach()
        for (name, tensor), gradient in zip(inputs.items(), found, strict=True)
    }


def _needs_backward(value: Tensor, inputs: Mapping[str, Tensor]) -> bool:
    """Where gradients reach the parameters through ``.grad`` alone.

    The graph of a sharded model holds gathered copies, and re-entrant checkpointing runs a backward of its
    own; ``torch.autograd.grad`` would return nothing for parameters inside, which reads as zero.
    """
    if not (any(is_sharded(tensor) for tensor in inputs.values()) or _has_reentrant_checkpoint(value)):
        return False
    for name, tensor in inputs.items():
        if getattr(tensor, "_post_accumulate_grad_hooks", None):
            raise ValueError(
                f"{name!r} has a post-accumulate-grad hook (an optimizer in the backward pass?), which collecting "
                "gradients would run; remove it while scoring, or use checkpoint(..., use_reentrant=False)"
            )
    return True


def _has_reentrant_checkpoint(value: Tensor) -> bool:
    seen: set[Any] = set()
    waiting: list[Any] = [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting.extend(following for following, _ in node.next_functions)
    return False


def _add(sums: dict[str, dict[str, Tensor]], layout: Layout, gradients: Mapping[str, Tensor]) -> None:
    turn: Mapping[str, Callable[[Tensor], Tensor]] = {
        "grad": lambda g: g,
        "grad_abs": Tensor.abs,
        "grad_sq": Tensor.square,
    }
    for kind, function in turn.items():
        if kind in sums:
            for name in layout:
                # float32 at least: squares of half-precision gradients underflow.
                gradient = gradients[name] if gradients[name].dtype == torch.float64 else gradients[name].float()
                sums[kind][name] = sums[kind].get(name, 0) + function(gradient)
