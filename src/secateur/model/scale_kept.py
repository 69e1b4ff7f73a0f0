"""Least-squares factors of kept channels, so that they make up for the removed ones: the second half of ThiNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from secateur.core.criteria.reconstruction import kept_scales
from secateur.model.batches import StepFunction
from secateur.model.edited import dense_model, edit
from secateur.model.evidence import Source, collect
from secateur.model.evidence.gate_hooks import reader_stands
from secateur.model.graph.trace import tensor_names
from secateur.model.masks import Masks

__all__ = ["scale_kept"]


def scale_kept(
    masks: Masks, data: Any, *, step: StepFunction | None = None, batches: int = 10, seed: int = 0
) -> dict[str, Tensor]:
    """Multiply what reads each kept channel by a factor, ``W[:, c] *= s_c``, fitted on sampled outputs.

    ``min_s sum_n (sum_all x_nc - sum_kept s_c x_nc)^2`` on the dense model; see ``kept_scales``. What an earlier merge,
    refit or scaling made of these weights is made anew from the dense ones. ``masks.undo()`` takes the factors back.

    Args:
        masks: of unit ``channel``, with their removed values.
        data: batches, as for criteria that read activations.
        step: ``step(model, batch)`` for batches of another shape.
        batches: how many to read.
        seed: of the sampled places.

    Returns:
        Group -> factors [units], 0 for removed units.

    Raises:
        ValueError: for other units, and masks that gave up their values.

    Example:
        >>> import secateur as sc
        >>> from torch import nn
        >>> net, x = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)), torch.rand(9, 2)
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [2.0, 4.0]])), net[0].bias.data.zero_()
        >>> before = net(x)
        >>> masks = sc.prune(net, 0.5, criterion="thinet", unit="channel", data=[x], example_inputs=x)
        >>> factors = scale_kept(masks, [x])
        >>> torch.allclose(net(x), before, atol=1e-5)
        True

    Reference:
        Luo, Wu, Lin 2017, arXiv 1707.06342.
    """
    layout = {name: key for name, key in masks.layout.items() if not bool(masks.unit_masks[name].all())}
    if any(key.kind != "group" for key in layout.values()):
        raise ValueError(
            f"masks of unit {masks.unit.spec!r} have no coupled channels to scale; prune by unit='channel'"
        )
    if masks.edited is None:
        raise ValueError("the removed values are gone (commit() was called, or prune(..., undo=False)): scale before")
    root, source = masks.model, Source(data, step=step, batches=batches, seed=seed)
    factors: dict[str, Tensor] = {}
    stands, values = reader_stands(root, layout), dict[str, Tensor]()
    with dense_model(masks):
        grams = collect(root, ["contribution_gram"], layout, masks.unit, source)["contribution_gram"] if layout else {}
        tensors = tensor_names(root)
        dense = {stand.label: tensors[stand.label].detach().clone() for stand in stands}
    for name, gram in grams.items():
        factors[name] = kept_scales(gram, masks.unit_masks[name])
    for stand in stands:
        assert stand.owner is not None  # of a reader
        own = torch.cat([factors[stand.gate], factors[stand.gate].new_ones(1)])[
            stand.owner.to(factors[stand.gate].device)
        ]
        weight = values.get(stand.label, dense[stand.label])
        shape = [1, -1, *[1] * (weight.dim() - 2)]
        values[stand.label] = (weight.double() * own.to(weight.device).reshape(shape)).to(weight)
    edit(masks, values)
    return factors
