"""Merging removed channels into kept ones by least squares, where they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from secateur.core.criteria.correlated import Fits, fit_removed
from secateur.core.unit_channel import Channel
from secateur.model.batches import StepFunction, forward_of, limited, to_device
from secateur.model.edited import dense_model, edit
from secateur.model.evidence.covariance import CrossSums, by_unit
from secateur.model.evidence.gate_hooks import Stand, reader_stands
from secateur.model.graph.trace import tensor_names
from secateur.model.masks import Masks
from secateur.model.quietly import quietly
from secateur.model.sharding import is_sharded
from secateur.types import Layout, Tensors

__all__ = ["fitted_values", "merge_activations"]


def merge_activations(
    masks: Masks, data: Any, *, step: StepFunction | None = None, batches: int = 10
) -> dict[tuple[str, str], Fits]:
    """Let kept channels stand in for removed ones: ``W[:, k] += alpha W[:, r]``, ``b += beta sum W[:, r]``.

    For each layer that reads the channels, on the values that it reads in the dense model: ``x_r ~ alpha x_k + beta``
    by least squares, with k the kept channel that r correlates with most, of either sign; a constant channel goes into
    the bias as it is. Exact where the fit is, but for ``beta`` beside the border of a convolution with zero padding. A
    layer without a bias has no place for beta, and gets the least squares through the origin.

    Fits of a layer do not know of the merges before it; what an earlier merge, refit or scaling made of its weights is
    made anew from the dense ones. ``masks.undo()`` takes the merge back too. ``sc.prune(..., merge=True)`` does the
    same within the pruning, by ``activation_correlation``.

    Args:
        masks: of unit ``channel``, with their removed values.
        data: batches, as for criteria that read activations.
        step: ``step(model, batch)`` for batches of another shape.
        batches: how many to read.

    Returns:
        (Group, weight that reads removed channels of it) -> fits, by numbers of units.

    Raises:
        ValueError: for other units, masks that gave up their values, groups that a layer without plain inputs reads.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [2.0, 4.0]])), net[0].bias.data.zero_()
        >>> x = torch.rand(9, 2)
        >>> before = net(x)
        >>> masks = sc.prune(net, 0.5, criterion="activation_correlation", unit="channel", data=[x], example_inputs=x)
        >>> fits = merge_activations(masks, [x])
        >>> torch.allclose(net(x), before, atol=1e-5)
        True

    Reference:
        Babaeizadeh, Smaragdis, Campbell 2016, arXiv 1611.06211 (NoiseOut); formula from memory, not verified.
    """
    if not isinstance(masks.unit, Channel):
        raise ValueError(
            f"masks of unit {masks.unit.spec!r} have no coupled channels to merge; prune by unit='channel'"
        )
    if masks.edited is None:
        raise ValueError("the removed values are gone (commit() was called, or prune(..., undo=False)): merge before")
    with dense_model(masks):
        values, found = fitted_values(
            masks.model, masks.layout, masks.unit_masks, data, fit_removed, step=step, batches=batches
        )
    edit(masks, values)
    return found


def fitted_values(
    root: nn.Module,
    layout: Layout,
    unit_masks: Tensors,
    data: Any,
    fit: Callable[[Tensor, Tensor, Tensor], Fits],
    *,
    step: StepFunction | None = None,
    batches: int = 10,
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Fits]]:
    """What reads removed channels, as it is when kept ones stand in for them; nothing is changed.

    Args:
        root: an unwrapped module, with all that is to be handed on still in it.
        layout: groups.
        unit_masks: group -> bool [units], what stays.
        data: batches.
        fit: covariances and means of what a layer reads, and what is kept, to fits.
        step: ``step(model, batch)`` for batches of another shape.
        batches: how many to read.

    Returns:
        Parameter name -> values in its shape; (group, weight that reads it) -> fits, by numbers of units.

    Raises:
        ValueError: without data, for groups that a layer without plain inputs reads, and for sharded models.
    """
    if data is None:
        raise ValueError("channels are merged by what layers read: give data= (a loader, or one batch)")
    readers = reader_stands(root, {name: key for name, key in layout.items() if not bool(unit_masks[name].all())})
    tensors = tensor_names(root)
    if sharded := [stand.label for stand in readers if is_sharded(tensors[stand.label])]:
        raise ValueError(f"{sharded[0]!r} is sharded; merge before fully_shard")
    sums = _read(root, readers, data, step, batches)
    values: dict[str, Tensor] = {}
    found: dict[tuple[str, str], Fits] = {}
    for stand in readers:
        at = stand.gate, stand.label
        if at in sums:
            found[at] = _merged(stand, unit_masks[stand.gate], sums[at], fit, tensors, values)
    return values, found


def _read(
    root: nn.Module, readers: list[Stand], data: Any, step: StepFunction | None, batches: int
) -> dict[tuple[str, str], CrossSums]:
    """Cross sums of what each reader reads, by unit."""
    sums: dict[tuple[str, str], CrossSums] = {}
    device = next(root.parameters()).device
    tokens: list[Tensor | None] = [None]
    given = [data] if isinstance(data, Tensor) else data
    with quietly(root, "eval"), torch.no_grad(), _listening(readers, sums, tokens):
        for batch in limited(given, batches):
            here = to_device(batch, device)
            tokens[0] = here.get("attention_mask") if isinstance(here, Mapping) else None
            forward_of(root, here, step)
    return sums


@contextmanager
def _listening(
    readers: list[Stand], sums: dict[tuple[str, str], CrossSums], tokens: list[Tensor | None]
) -> Iterator[None]:
    def listen(stand: Stand) -> Any:
        def hook(module: nn.Module, inputs: Any, kwargs: Any) -> None:
            x: Tensor = inputs[0] if inputs else next(iter(kwargs.values()))
            rows = x.movedim(stand.axis, -1)
            valid = tokens[0]
            rows = rows[valid != 0] if valid is not None and rows.shape[:2] == valid.shape else rows.flatten(0, -2)
            assert stand.owner is not None  # of a reader
            _, own = by_unit(rows, stand.owner, stand.label)
            if len(own):
                sums.setdefault((stand.gate, stand.label), CrossSums(own[0])).add(own)

        return hook

    handles = [one.module.register_forward_pre_hook(listen(one), with_kwargs=True) for one in readers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _merged(
    stand: Stand,
    kept: Tensor,
    sums: CrossSums,
    fit: Callable[[Tensor, Tensor, Tensor], Fits],
    tensors: Mapping[str, Tensor],
    values: dict[str, Tensor],
) -> Fits:
    """New weight and bias of one reader, into ``values``."""
    assert stand.owner is not None  # of a reader
    units = stand.owner[stand.owner >= 0].unique()
    bias = stand.label.removesuffix("weight") + "bias"
    mean, moments = sums.mean().cpu(), sums.covariance().cpu()
    if bias not in tensors:
        moments, mean = moments + torch.outer(mean, mean), torch.zeros_like(mean)
    fits = fit(moments, mean, kept.cpu()[units])
    weight = values.get(stand.label, tensors[stand.label].detach()).double()
    new, offset = weight.clone(), torch.zeros(weight.shape[0], dtype=torch.float64, device=weight.device)
    places = [torch.nonzero(stand.owner == unit).flatten().to(weight.device) for unit in units]
    for removed, partner, alpha, beta in zip(fits.removed, fits.partner, fits.alpha, fits.beta, strict=True):
        gone, into = places[int(removed)], places[int(partner)]
        if int(removed) != int(partner):
            new[:, into] += float(alpha) * weight[:, gone]
        offset += float(beta) * weight[:, gone].flatten(1).sum(1)
    values[stand.label] = new.to(tensors[stand.label])
    if bias in tensors:
        values[bias] = (values.get(bias, tensors[bias].detach()).double() + offset).to(tensors[bias])
    return Fits(units[fits.removed], units[fits.partner], fits.alpha, fits.beta)
