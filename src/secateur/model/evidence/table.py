"""The table of collectors. To add evidence: an observer of the passes or a function, and a row here."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from secateur.core.unit_channel import evidence_layout
from secateur.model.evidence.activations import ACTIVATION_KINDS, Activations
from secateur.model.evidence.companions import COMPANION_KINDS, companions
from secateur.model.evidence.contributions import CONTRIBUTION_KINDS, Contributions
from secateur.model.evidence.dependency import DEPENDENCY_KINDS, gather_dependency
from secateur.model.evidence.example_gates import EXAMPLE_GATE_KINDS, READER_GATE_KINDS, ExampleGates, ReaderGates
from secateur.model.evidence.flow import FLOW_KINDS, gather_flow
from secateur.model.evidence.gate_second import SECOND_KINDS, gate_seconds
from secateur.model.evidence.gates import GATE_KINDS, GateGradients
from secateur.model.evidence.gradients import WEIGHT_GRADIENTS, WeightGradients
from secateur.model.evidence.hessians import DIAGONAL_KINDS, gather_diagonal
from secateur.model.evidence.inputs import INPUT_KINDS, Inputs
from secateur.model.evidence.inverses import (
    INVERSE_FISHER_KINDS,
    INVERSE_HESSIAN_KINDS,
    gather_inverse_fisher,
    gather_inverse_hessian,
)
from secateur.model.evidence.lookahead import META_KINDS, gather_meta
from secateur.model.evidence.multiply_adds import MAC_KINDS, MultiplyAdds
from secateur.model.evidence.passes import Found, Observer, Streamable, observe
from secateur.model.evidence.samples import FISHER_KINDS, gather_fisher
from secateur.model.evidence.second_order import HESSIAN_GRADIENT, gather_hessian_gradient
from secateur.model.evidence.source import Request, Source
from secateur.model.names import clean_name, find_parameter, unwrap
from secateur.model.ranks import Ranks, ranks_of
from secateur.model.sharding import full
from secateur.types import Layout, Unit

__all__ = [
    "COLLECTORS",
    "DATA_KINDS",
    "EXAMPLE_KINDS",
    "FORWARD_KINDS",
    "GRADIENT_KINDS",
    "KINDS",
    "Collector",
    "collect",
    "streamers",
]


@dataclass(frozen=True, slots=True)
class Collector:
    """A row: exactly one of ``observe`` and ``gather``.

    Attributes:
        kinds: evidence -> what it is.
        observe: makes an observer that shares the passes over the batches with all others.
        gather: finds the evidence by itself.
        data: what the user has to give, for the message when it is missing: "gradients", "activations",
            "inputs", "labels", or "" for evidence that reads no batches.
        ranks: of data-parallel ranks that read batches of their own: "all": what each summed up is combined; "first":
            that of the first rank; "alike": it is the same on all of them, as it reads no batches.
    """

    kinds: Mapping[str, str]
    observe: Callable[[Request], Observer] | None = None
    gather: Callable[[Request], Found] | None = None
    data: str = ""
    ranks: Literal["all", "first", "alike"] = "alike"


def collect(
    model: nn.Module,
    kinds: Sequence[str],
    layout: Layout,
    unit: Unit,
    source: Source,
    settings: Mapping[str, Any] | None = None,
) -> Found:
    """Collect evidence for the targets, in one pass over the batches for all kinds that can share it.

    Args:
        model: the module, wrapped or not.
        kinds: names of evidence, keys of ``KINDS``.
        layout: the targets: parameters, or coupled groups of slices of parameters.
        unit: what is removed together; noise is per unit, gates are per output of a layer.
        source: data, loss and the rest.
        settings: hyper-parameters of the criterion; collectors read those that they know.

    Returns:
        Kind -> parameter name (noise: key of the layout) -> tensor, detached, on the CPU or the parameter's device.
        Of a ``DistributedDataParallel``, whose ranks have batches of their own, it is of all that the ranks read.

    Raises:
        ValueError: for a kind nobody collects, and for missing data, loss or init; on all ranks, where one of them
            has to say no.

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
    streamed = source.streamed or {}
    found: Found = {kind: dict(streamed[kind]) for kind in kinds if kind in streamed}
    missing = [kind for kind in kinds if kind not in streamed]
    alike = all(row.ranks == "alike" for row in COLLECTORS if not row.kinds.keys().isdisjoint(missing))
    ranks = Ranks() if alike else ranks_of(model)  # evidence without batches may be asked for on one rank alone
    with ranks.together():
        wanted = list(_rows_for(root, missing, layout, unit, source, settings, ranks))
        for row, request in wanted:
            if row.data and source.data is None:
                raise ValueError(
                    _MISSING["labels" if "labels" in request.kinds else row.data].format(", ".join(request.kinds))
                )
        observers = [row.observe(request) for row, request in wanted if row.observe is not None]
    for row, request in wanted:
        if row.gather is not None:
            found |= _gathered(row, row.gather, request)
    if observers:
        found |= observe(root, observers, source, ranks)
    return {kind: found[kind] for kind in kinds}


def _gathered(row: Collector, gather: Callable[[Request], Found], request: Request) -> Found:
    if row.ranks == "all":
        return gather(request)
    with request.ranks.together():
        found = gather(request)
    if row.ranks == "first":
        return {kind: dict(request.ranks.of_first(tensors)) for kind, tensors in found.items()}
    return found


def streamers(
    model: nn.Module, kinds: Sequence[str], layout: Layout, unit: Unit, settings: Mapping[str, Any] | None = None
) -> list[Streamable]:
    """Observers that may watch a training, for those of the kinds that ``FORWARD_KINDS`` has.

    Args:
        model: the module, wrapped or not.
        kinds: names of evidence.
        layout: the targets.
        unit: what is removed together.
        settings: hyper-parameters of the criterion.
    """
    wanted = [kind for kind in kinds if kind in FORWARD_KINDS]
    made = [
        row.observe(r) for row, r in _rows_for(unwrap(model), wanted, layout, unit, Source(), settings) if row.observe
    ]
    return [one for one in made if isinstance(one, Streamable)]


def _rows_for(
    root: nn.Module,
    kinds: Sequence[str],
    layout: Layout,
    unit: Unit,
    source: Source,
    settings: Mapping[str, Any] | None,
    ranks: Ranks | None = None,
) -> Iterator[tuple[Collector, Request]]:
    """Rows of the table that have some of the kinds, and what each is asked for."""
    weights = evidence_layout(unit, layout)
    for row in COLLECTORS:
        if wanted := tuple(kind for kind in row.kinds if kind in kinds):
            yield row, Request(root, wanted, layout, weights, unit, source, settings or {}, ranks or Ranks())


_MISSING = {
    "gradients": "evidence {} comes from gradients: give data= (a loader, or one (inputs, labels) pair) and loss=; or "
    "let sc.Pruner collect it while you train",
    "inputs": "evidence {} comes from the inputs of layers: give data= (a loader, or one batch); no loss is needed",
    "activations": "evidence {} comes from activations: give data= (a loader, or one batch); no loss is needed",
    "labels": "evidence {} comes from activations and classes: give data= (a loader, or one (inputs, labels) pair); no "
    "loss is needed",
}


def _weight(request: Request) -> Found:
    return {"weight": {name: full(find_parameter(request.root, name)).detach() for name in request.weights}}


def _init(request: Request) -> Found:
    init = request.source.init
    if init is None:
        raise ValueError(
            "this criterion compares with the weights before training: give init=, a state_dict taken then "
            "({name: tensor.clone() for name, tensor in model.state_dict().items()}); sc.Pruner takes it by itself"
        )
    given = {clean_name(name): tensor for name, tensor in init.items()}
    for name, key in request.weights.items():
        if name not in given or tuple(given[name].shape) != key.shape:
            what = "is missing" if name not in given else f"has shape {tuple(given[name].shape)}, not {key.shape}"
            raise ValueError(f"init= {what} for {name!r}; it has {list(given)[:8]}")
    return {"init": {name: full(given[name]).detach() for name in request.weights}}


def _noise(request: Request) -> Found:
    noise: dict[str, Tensor] = {}
    for name, key in request.layout.items():
        # From the name, so that a parameter's noise does not depend on which others are targets.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{request.source.seed}:{name}".encode()))
        noise[name] = torch.rand(request.unit.grid(key), generator=generator, dtype=torch.float64)
    return {"noise": noise}


def _movement(request: Request) -> Found:
    raise ValueError(
        "evidence 'movement' is summed up during training: use sc.Pruner(model, plan) with attach(optimizer)"
    )


COLLECTORS: tuple[Collector, ...] = (
    Collector({"weight": "the weights as they are"}, gather=_weight),
    Collector({"init": "the weights before training (init=)"}, gather=_init),
    Collector({"noise": "uniform in [0, 1) per unit, from seed and name"}, gather=_noise),
    Collector(
        {"movement": "minus the sum over training steps of gradient times weight (collected by sc.Pruner)"},
        gather=_movement,
    ),
    Collector(COMPANION_KINDS, gather=companions),
    Collector(WEIGHT_GRADIENTS, observe=WeightGradients, data="gradients", ranks="all"),
    Collector(GATE_KINDS, observe=GateGradients, data="gradients", ranks="all"),
    Collector(EXAMPLE_GATE_KINDS, observe=ExampleGates, data="gradients", ranks="all"),
    Collector(READER_GATE_KINDS, observe=ReaderGates, data="gradients", ranks="all"),
    Collector(SECOND_KINDS, gather=gate_seconds, data="gradients", ranks="all"),
    Collector(ACTIVATION_KINDS, observe=Activations, data="activations", ranks="all"),
    Collector(FLOW_KINDS, gather=gather_flow),
    Collector(HESSIAN_GRADIENT, gather=gather_hessian_gradient, data="gradients", ranks="all"),
    Collector(META_KINDS, gather=gather_meta, data="gradients", ranks="first"),
    Collector(FISHER_KINDS, gather=gather_fisher, data="gradients", ranks="all"),
    Collector(INPUT_KINDS, observe=Inputs, data="inputs", ranks="all"),
    Collector(MAC_KINDS, observe=MultiplyAdds, data="inputs", ranks="all"),
    Collector(DIAGONAL_KINDS, gather=gather_diagonal, data="gradients", ranks="all"),
    Collector(INVERSE_HESSIAN_KINDS, gather=gather_inverse_hessian, data="gradients", ranks="all"),
    Collector(INVERSE_FISHER_KINDS, gather=gather_inverse_fisher, data="gradients", ranks="all"),
    Collector(DEPENDENCY_KINDS, gather=gather_dependency, data="labels", ranks="all"),
    Collector(CONTRIBUTION_KINDS, observe=Contributions, data="activations", ranks="all"),
)

KINDS: Mapping[str, str] = {kind: what for row in COLLECTORS for kind, what in row.kinds.items()}

DATA_KINDS = frozenset(kind for row in COLLECTORS if row.data for kind in row.kinds)
"""Evidence that reads batches."""

GRADIENT_KINDS = frozenset(kind for row in COLLECTORS if row.data == "gradients" for kind in row.kinds)
"""Evidence that needs a loss besides."""

FORWARD_KINDS = frozenset({*ACTIVATION_KINDS, *INPUT_KINDS})
"""Evidence of forward passes alone, which may also be those of a training."""

EXAMPLE_KINDS = frozenset(FLOW_KINDS)
"""Evidence that reads the shape of example inputs."""
