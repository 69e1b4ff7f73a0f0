"""Direct against effective compression: weights that are kept, and those that lie on a path at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.measure.chain import Link, chain_of
from secateur.model.names import canonical_names, parameters_by_name
from secateur.model.registry import find_masks

__all__ = ["Effective", "effective"]


@dataclass(frozen=True)
class Effective:
    """Kept, and on a path from input to output.

    Attributes:
        weights: elements of the weights of all layers of the chain.
        direct: of them, those the masks keep.
        effective: of them, those on some path from an input to an output.
        parameters: effective weights, and biases and batch norms of units on a path.
        reason: why the last two are None, where they are.
    """

    weights: int
    direct: int
    effective: int | None
    parameters: int | None
    reason: str | None = None

    @property
    def direct_compression(self) -> float:
        """Weights / direct."""
        return self.weights / self.direct if self.direct else math.inf

    @property
    def effective_compression(self) -> float | None:
        """Weights / effective; None where it was not counted, infinite if no path is left."""
        if self.effective is None:
            return None
        return self.weights / self.effective if self.effective else math.inf


@torch.no_grad()
def effective(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> Effective:
    """Count the weights that lie on some path of kept weights from input to output.

    A unit is reached forward if a kept weight joins it to a unit reached forward, and backward likewise;
    weight (o, i) counts iff it is kept, i is reached from the input and o reaches the output. Convolutions
    are taken by channels: a kernel joins its channels if any of its weights is kept. Units fed by their
    bias alone count as dead. Weights that only ever meet zero padding are not found.

    Args:
        model: a plain chain of Linear, Conv1d-3d, BatchNorm, activations, pooling, dropout, flatten,
            with any forward that ``torch.fx`` can trace.
        masks: parameter name -> bool mask, True kept; default: the masks registered for the model.

    Returns:
        The counts; ``effective`` is None, with the reason, where the network is no plain chain.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        >>> first = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0]]).bool()
        >>> last = torch.tensor([[0, 1, 1], [0, 0, 0]]).bool()
        >>> found = effective(net, {"0.weight": first, "2.weight": last})
        >>> found.direct_compression, found.effective_compression
        (3.0, 5.0)

    Reference:
        Vysogorets, Kempe 2021, "Connectivity Matters: Neural Network Pruning Through the Lens of
        Effective Sparsity", arXiv 2107.02306.
    """
    found = find_masks(model) if masks is None else masks
    first = canonical_names(model)
    kept = {first.get(name, name): found[name].bool().cpu() for name in found} if found is not None else {}
    links = chain_of(model)
    if isinstance(links, str):
        matrices = {name: p for name, p in parameters_by_name(model).items() if p.ndim >= 2}
        direct = sum(int(kept[name].sum()) if name in kept else p.numel() for name, p in matrices.items())
        return Effective(sum(p.numel() for p in matrices.values()), direct, None, None, links)
    weights_kept = [kept.get(link.weight, torch.ones(link.shape, dtype=torch.bool)) for link in links]
    reached, reaching = _reach(links, weights_kept)
    on_path = parameters = 0
    for link, mask, r_in, r_out, to_out in zip(links, weights_kept, reached, reached[1:], reaching, strict=False):
        on_path += _weights_on_path(link, mask, r_in, to_out)
        for rider in link.riders:
            alive = r_out & to_out
            parameters += int((alive & kept[rider]).sum() if rider in kept else alive.sum())
    weights = sum(mask.numel() for mask in weights_kept)
    return Effective(weights, sum(int(mask.sum()) for mask in weights_kept), on_path, on_path + parameters)


# Legend: O output channels, I input channels of a layer; features are channels times flattened positions.


def _joined(link: Link, mask: Tensor) -> Tensor:
    """[O, I] bool: does a kept weight join these channels? Grouped convolutions are block-diagonal."""
    m_OI = mask.flatten(2).any(2) if mask.ndim > 2 else mask
    return m_OI if link.groups == 1 else torch.block_diag(*m_OI.float().chunk(link.groups)).bool()


def _reach(links: tuple[Link, ...], masks: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer: its inputs reached from the input (and, last, the outputs); its outputs that reach the output."""
    joined = [_joined(link, mask) for link, mask in zip(links, masks, strict=True)]
    reached = [torch.ones(joined[0].shape[1], dtype=torch.bool)]
    for link, j_OI in zip(links, joined, strict=True):
        reached.append((j_OI & reached[-1].repeat_interleave(link.flattened)).any(1))
    reaching = [torch.ones(joined[-1].shape[0], dtype=torch.bool)]
    for link, j_OI in zip(links[:0:-1], joined[:0:-1], strict=True):
        b_I = (j_OI & reaching[0][:, None]).any(0)
        reaching.insert(0, b_I.view(-1, link.flattened).any(1))
    return reached, reaching


def _weights_on_path(link: Link, mask: Tensor, reached: Tensor, reaching: Tensor) -> int:
    outs, ins = link.shape[0] // link.groups, link.shape[1]
    r_I = reached.repeat_interleave(link.flattened)
    total = 0
    for group, part in enumerate(mask.chunk(link.groups)):
        live = reaching[group * outs : (group + 1) * outs, None] & r_I[None, group * ins : (group + 1) * ins]
        total += int((part & live.view(*live.shape, *(1,) * (mask.ndim - 2))).sum())
    return total
