"""Parameters and multiply-adds per layer, before and after pruning, counted by masks and not by zeros."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.measure.macs import CONVENTION, SHRINKBENCH_CONVENTION, Compat, Use, Uses, count_uses
from secateur.model.names import aliases, clean_name, unwrap
from secateur.model.registry import find_masks
from secateur.records import LayerRow

__all__ = ["Counts", "LayerShare", "count", "fraction_to_keep", "table"]


@dataclass(frozen=True)
class Counts:
    """One model's counts, all layers and in sum.

    Attributes:
        parameters: elements of all parameters, tied ones once; buffers are not parameters.
        kept: those the masks keep (``compat="shrinkbench"``: the nonzero ones).
        macs: multiply-adds of one sample.
        macs_kept: multiply-adds with kept weights: sum over layers of ``macs * kept / numel`` of its weight.
        layers: one row per module that owns parameters, in order; rows add up to the totals.
        uncounted: modules that own a matrix but whose multiply-adds no rule knows.
        convention: what a multiply-add is here.
    """

    parameters: int
    kept: int
    macs: int
    macs_kept: int
    layers: tuple[LayerRow, ...]
    uncounted: tuple[str, ...]
    convention: str = CONVENTION

    @property
    def compression(self) -> float:
        """Parameters / kept; infinite if nothing is kept."""
        return self.parameters / self.kept if self.kept else math.inf

    @property
    def speedup(self) -> float:
        """The theoretical one, macs / macs_kept; infinite if nothing is kept."""
        return self.macs / self.macs_kept if self.macs_kept else math.inf


@dataclass(frozen=True)
class LayerShare:
    """A row of the per-layer table: the layer, and its shares of all parameters and of all multiply-adds."""

    row: LayerRow
    parameters: float
    macs: float


@torch.no_grad()
def count(
    model: nn.Module, example_inputs: Any, *, masks: Mapping[str, Tensor] | None = None, compat: Compat = None
) -> Counts:
    """Count parameters and multiply-adds of one sample, per layer.

    macs(layer) = uses * numel(weight), macs_kept(layer) = uses * kept(weight); the convention is
    "multiply-adds, convolutions and linear layers, one sample, no bias, BN, activation or pooling".
    ``nn.MultiheadAttention`` counts its projections and the two products, 2 L^2 E; those are kept whole
    under masks, because masking a projection removes no product.

    Args:
        model: any module; also on the meta device. It is not changed.
        example_inputs: a tensor, a tuple or a mapping of keyword arguments, batch on axis 0 (one sample is used).
        masks: parameter name -> bool mask, True kept; default: the masks registered for the model.
        compat: ``"shrinkbench"`` reproduces ShrinkBench, quirks included: every convolution is counted as if
            its padding were 'same', groups are ignored, dilation and modules called twice are refused,
            a linear layer counts once whatever the number of tokens, and every zero-valued parameter counts
            as pruned, biases of a fresh network too.

    Returns:
        Totals and rows.

    Raises:
        ValueError: if a mask names no parameter or has another shape; for what ``compat`` refuses.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> mask = torch.tensor([[True, False, False]] * 2)
        >>> c = count(net, torch.zeros(1, 4), masks={"2.weight": mask})
        >>> c.parameters, c.kept, c.macs, c.macs_kept
        (23, 19, 18, 14)

    Reference:
        Blalock, Gonzalez Ortiz, Frankle, Guttag 2020, "What is the State of Neural Network Pruning?",
        arXiv 2003.03033 (the two ratios, and the quirks of its code).
    """
    root = unwrap(model)
    uses = count_uses(root, example_inputs, compat=compat)
    kept = _kept_masks(root, find_masks(root) if masks is None else masks, compat)
    rows = tuple(_rows(root, uses, kept))
    return Counts(
        parameters=sum(row.parameters for row in rows),
        kept=sum(row.kept for row in rows),
        macs=sum(row.macs for row in rows),
        macs_kept=sum(row.macs_kept for row in rows),
        layers=rows,
        uncounted=uses.uncounted,
        convention=CONVENTION if compat is None else SHRINKBENCH_CONVENTION,
    )


def table(
    model: nn.Module, example_inputs: Any, *, masks: Mapping[str, Tensor] | None = None, compat: Compat = None
) -> tuple[LayerShare, ...]:
    """Per-layer table: each layer with its share of all parameters and of all multiply-adds.

    Args:
        model: as for ``count``.
        example_inputs: as for ``count``.
        masks: as for ``count``.
        compat: as for ``count``.

    Returns:
        One entry per module that owns parameters; both columns of shares sum to 1 (to 0 if there is none).

    Raises:
        ValueError: as ``count``.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 4, bias=False))
        >>> [share.macs for share in table(net, torch.zeros(1, 4))]
        [0.5, 0.5]
    """
    counts = count(model, example_inputs, masks=masks, compat=compat)
    parameters, macs = max(counts.parameters, 1), max(counts.macs, 1)
    return tuple(LayerShare(row, row.parameters / parameters, row.macs / macs) for row in counts.layers)


def fraction_to_keep(compression: float, *, total: int, prunable: int) -> float:
    """Share of the prunable parameters to keep so that the whole model is compressed ``compression`` times.

    f = (total / c - (total - prunable)) / prunable. ShrinkBench counts the biases of the pruned modules
    as prunable; give ``prunable`` as your targets are.

    Args:
        compression: c = total / kept, at least 1.
        total: parameters of the model.
        prunable: those that may be removed.

    Returns:
        f in (0, 1]; the sparsity to ask for is 1 - f.

    Raises:
        ValueError: if no such fraction exists; the message names the largest compression that does.

    Example:
        >>> round(fraction_to_keep(10, total=266610, prunable=265600), 7)
        0.0965776

    Reference:
        Blalock et al. 2020, arXiv 2003.03033.
    """
    if not 0 < prunable <= total:
        raise ValueError(f"fraction_to_keep: prunable={prunable}, total={total}; 0 < prunable <= total is needed")
    fraction = (total / compression - (total - prunable)) / prunable if compression > 0 else math.inf
    if not 0 < fraction <= 1:
        limit = total / (total - prunable) if prunable < total else math.inf
        raise ValueError(
            f"fraction_to_keep: compression={compression} cannot be reached by removing from {prunable} of {total} "
            f"parameters; it has to be at least 1 and below {limit:.4g}"
        )
    return fraction


def _kept_masks(root: nn.Module, masks: Mapping[str, Tensor] | None, compat: Compat) -> dict[str, Tensor]:
    """Every name of a parameter -> its bool mask, for those parameters from which something is removed."""
    groups = aliases(root)
    parameters = {clean_name(name): p for name, p in root.named_parameters()}
    if compat == "shrinkbench":
        return {name: parameters[first] != 0 for first, names in groups.items() for name in names}
    first_of = {name: first for first, names in groups.items() for name in names}
    kept: dict[str, Tensor] = {}
    for name, mask in (masks or {}).items():
        if name not in first_of:
            raise ValueError(f"a mask is given for {name!r}, and the model has no such parameter; it has {[*first_of]}")
        shape = tuple(parameters[first_of[name]].shape)
        if tuple(mask.shape) != shape:
            raise ValueError(f"the mask of {name!r} has shape {tuple(mask.shape)}, the parameter has {shape}")
        kept.update(dict.fromkeys(groups[first_of[name]], mask.bool()))
    return kept


def _rows(root: nn.Module, uses: Uses, kept: Mapping[str, Tensor]) -> list[LayerRow]:
    seen: set[int] = set()
    rows: list[LayerRow] = []
    for raw, module in root.named_modules():
        name = clean_name(raw)
        own = dict(module.named_parameters(prefix=name, recurse=False))
        mine = uses.weights.get(name, ())
        if not own and not mine:
            continue
        fresh = {key: p for key, p in own.items() if id(p) not in seen}
        seen.update(id(p) for p in fresh.values())
        weight = next((p for p in own.values() if p.ndim >= 2), None)
        if weight is None:
            weight = getattr(module, "weight", None)  # a parametrised layer computes it
        shape = next(iter(own.values())).shape if weight is None else weight.shape
        macs = sum(_macs(module, name, use, None) for use in mine)
        macs_kept = sum(_macs(module, name, use, kept.get(use.parameter)) for use in mine)
        products = uses.products.get(name, 0)
        rows.append(
            LayerRow(
                name=name or type(module).__name__,
                kind=type(module).__name__,
                shape=tuple(shape),
                parameters=sum(p.numel() for p in fresh.values()),
                kept=sum(_kept(p.numel(), kept.get(key)) for key, p in fresh.items()),
                macs=macs + products,
                macs_kept=macs_kept + products,
            )
        )
    return rows


def _kept(numel: int, mask: Tensor | None) -> int:
    return numel if mask is None else int(mask.sum())


def _macs(module: nn.Module, name: str, use: Use, mask: Tensor | None) -> int:
    """One use of a weight: times * numel, or times * kept under a mask."""
    if mask is not None:
        part = mask if use.rows is None else mask[slice(*use.rows)]
        return use.times * int(part.sum())
    leaf = use.parameter[len(name) + 1 :] if name else use.parameter
    weight: Tensor = getattr(module, leaf)
    part = weight if use.rows is None else weight[slice(*use.rows)]
    return use.times * part.numel()
