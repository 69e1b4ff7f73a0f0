"""How much the kept units of a late layer depend on the units below: the way down of linear discriminant analysis.

1. One pass finds the top: the layer whose activation comes last, unless ``top=`` names another.
2. Passes without gradients score its units by ``lda``; the share that stays is kept.
3. Passes with gradients: ``S_n`` is the sum over kept top units of x_nj, the number of example n that the discriminant
   looks at (the maximum or the mean of the activation over positions). A unit below has
   ``mean_n |sum over positions of a dS_n/da|``, a its activation.

Positions of one unit may cancel, as they do in the layers above, and examples may not. What raises one kept unit and
lowers another by as much cancels too: one backward pass per batch, not one per kept unit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from secateur.core.criteria.discriminant import lda
from secateur.core.select import removed_count
from secateur.model.batches import forward_of
from secateur.model.evidence.activations import Activations
from secateur.model.evidence.dependency_reader import Dependency, LastRead
from secateur.model.evidence.functional import batches_of
from secateur.model.evidence.passes import Found, Pass, observe, results
from secateur.model.evidence.readers import Reader
from secateur.model.evidence.source import Request
from secateur.model.quietly import quietly
from secateur.types import KeyLayout

__all__ = ["DEPENDENCY_KINDS", "gather_dependency"]

_KIND = "top_dependency"

DEPENDENCY_KINDS: Mapping[str, str] = {
    _KIND: "per unit: of the top layer its discriminant, below how much kept units of the top depend on it",
}

R = TypeVar("R", bound=Reader)


def gather_dependency(request: Request) -> Found:
    """Evidence of ``DEPENDENCY_KINDS``.

    Args:
        request: what is asked; of the criterion's settings it reads ``top``, ``top_density``, ``pool`` and ``ridge``.

    Returns:
        ``top_dependency`` -> layer -> [channels], float64. Layers that make the same coupled units as the top have the
        top's values: of such a group the top speaks.

    Raises:
        ValueError: for an unknown top, a share that is not known, layers that do not lie below the top, activations
            that are overwritten in place, and what activations are refused for.
    """
    if request.source.mode == "train":
        raise ValueError(
            f"{_KIND!r} needs examples that do not see each other, and batch norms in train mode mix them: leave "
            "mode='eval'"
        )
    density = _density(request)
    pool = str(request.settings.get("pool", "max"))
    with request.ranks.together():
        batches = list(batches_of(request))
    top = _top(request, batches)
    values = _discriminant(request, batches, top)
    beside = [owners for key in request.layout.values() if (owners := _owners(key, top)) is not None]
    units = [_by_unit(values, owners[top]) for owners in beside] or [values]
    kept = torch.zeros(len(values), dtype=torch.bool)
    for own, owner in zip(units, [owners[top] for owners in beside] or [torch.arange(len(values))], strict=True):
        kept |= torch.where(owner >= 0, _kept(own, density)[owner.clamp(min=0)], False)
    reader, found = _passes(request, batches, lambda sizes: Dependency(_KIND, sizes, top, kept, pool))
    made = found[_KIND]
    made[top] = values.to(made[top].device)
    spoken = {top}
    for own, owners in zip(units, beside, strict=False):
        for name, owner in owners.items():
            spoken.add(name)
            there = (owner >= 0).to(made[name].device)
            made[name] = torch.where(there, own[owner.clamp(min=0)].to(made[name].device), made[name])
    if stray := sorted(reader.seen() - reader.reached - spoken):
        raise ValueError(
            f"the kept units of {top!r} do not depend on {stray[0]!r}, which is not below it; exclude=[{stray[0]!r}], "
            "or name a later layer: lda_dependency(top=...)"
        )
    return {_KIND: made}


def _density(request: Request) -> float:
    given = request.settings.get("top_density")
    given = request.source.density if given is None else given
    if given is None:
        raise ValueError(
            "how many units of the top layer stay is not known here: give it, lda_dependency(top_density=0.5); "
            "sc.prune and sc.Pruner take the density that they are asked for"
        )
    if not 0.0 < given <= 1.0:
        raise ValueError(f"lda_dependency(top_density={given!r}): the share of the top's units that stay, in (0, 1]")
    return float(given)


def _top(request: Request, batches: Sequence[Any]) -> str:
    """The weight of the layer at the top."""
    named = request.settings.get("top")
    makers = {member.name for key in request.layout.values() for member in key.members if member.part == "out"}
    names = makers or set(request.layout)
    if named is None:
        wanted = request
    elif (name := next((name for name in (named, f"{named}.weight") if name in names), None)) is not None:
        return name
    elif named in request.layout:  # a group: the last layer that makes it
        wanted = replace(request, layout={named: request.layout[named]})
    else:
        raise ValueError(f"lda_dependency(top={named!r}): no layer among the targets, which are {sorted(names)}")
    last = LastRead()
    with request.ranks.together(), torch.no_grad(), quietly(request.root, request.source.mode):
        _run(wanted, batches[:1], Activations(wanted, lambda sizes: [last]), gradients=False)
    last.combine(request.ranks)
    return last.name


def _discriminant(request: Request, batches: Sequence[Any], top: str) -> Tensor:
    """Between 0 and 1 for each output of the top."""
    kinds = ("activation_max", "activation_pooled", "labels")
    layout = {name: key for name, key in request.layout.items() if name == top or _owners(key, top) is not None}
    asked = replace(request, kinds=kinds, layout=layout)
    found = observe(request.root, [Activations(asked)], replace(request.source, data=list(batches)), request.ranks)
    if top not in found["labels"]:
        raise ValueError(f"the top layer {top!r} was not seen in all examples; name another: lda_dependency(top=...)")
    options = {name: request.settings[name] for name in ("pool", "ridge") if name in request.settings}
    return lda(*[found[kind][top] for kind in kinds], ratio="icc", **options).double().cpu()


def _kept(scores: Tensor, density: float) -> Tensor:
    """Which units stay, at least one."""
    gone = min(removed_count(len(scores), 1.0 - density), len(scores) - 1)
    mask = torch.ones(len(scores), dtype=torch.bool)
    mask[torch.argsort(scores, stable=True)[:gone]] = False
    return mask


def _owners(key: KeyLayout, top: str) -> dict[str, Tensor] | None:
    """Layer -> the unit of each of its outputs, of a coupled group that the top has a part in."""
    owners = {member.name: torch.tensor(member.owner) for member in key.members if member.part == "out"}
    return owners if top in owners else None


def _by_unit(values: Tensor, owner: Tensor) -> Tensor:
    """Means over the outputs of each unit."""
    there = owner >= 0
    sums = torch.zeros(2, int(owner.max()) + 1, dtype=torch.float64)
    sums.index_add_(1, owner[there], torch.stack([values, torch.ones_like(values)])[:, there])
    return sums[0] / sums[1].clamp(min=1.0)


def _passes(
    request: Request, batches: Sequence[Any], make: Callable[[Mapping[str, int]], Dependency]
) -> tuple[Dependency, Found]:
    made: list[Dependency] = []

    def readers(sizes: Mapping[str, int]) -> list[Dependency]:
        made.append(make(sizes))
        return made

    with request.ranks.together():
        watcher = Activations(request, readers)
    quiet = quietly(request.root, request.source.mode)
    with request.ranks.together(), quiet, torch.enable_grad(), _differentiable(request.root):
        _run(request, batches, watcher, gradients=True)
    return made[0], results([watcher], request.ranks)


def _run(request: Request, batches: Sequence[Any], watcher: Activations, gradients: bool) -> None:
    with watcher.installed():
        for batch in batches:
            one = Pass(batch, lambda own=batch: forward_of(request.root, own, request.source.step), gradients)
            watcher.prepare(one)
            with watcher.around(one):
                one.forward()


@contextmanager
def _differentiable(root: nn.Module) -> Iterator[None]:
    """All parameters take part in the graph, frozen ones too."""
    frozen = [p for p in root.parameters() if not p.requires_grad and p.is_floating_point()]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
