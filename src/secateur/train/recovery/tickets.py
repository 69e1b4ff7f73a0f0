"""Controls of the lottery-ticket experiment: the same masks with fresh weights, other masks with the first weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from secateur.model.masks import Masks, find_masks, register_masks
from secateur.model.names import unwrap
from secateur.model.removal.registry import carry_mark
from secateur.train.loop.snapshot import Snapshot
from secateur.train.recovery.fresh import Initialise, give_fresh_weights
from secateur.train.recovery.same_network import check_same_network, tensors_of

__all__ = ["random_tickets", "reinitialised"]


def reinitialised(model: nn.Module, seed: int = 0, *, init: Initialise | None = None) -> nn.Module:
    """A copy with the same masks and fresh weights: is it the architecture, or these very weights?

    Every module initialises itself again by ``reset_parameters()``, batch-norm statistics included; the masks are put
    on what comes out. Trained like the ticket it is Frankle and Carbin's control; with the masks of a
    ``Pruner`` run it is Gale's (sparse from scratch against sparsified during training).

    Args:
        model: with masks, or really smaller; it is not changed.
        seed: of the fresh weights.
        init: ``init(model)`` for models whose modules do not know how to initialise themselves, e.g.
            ``lambda model: model.apply(my_init)``; it runs after the modules' own.

    Returns:
        The copy, with masks of its own (``sc.find_masks``) where ``model`` has masks.

    Raises:
        ValueError: naming parameters that nobody gave a fresh value.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(4, 2)
        >>> masks = sc.prune(net, 0.5)
        >>> other = reinitialised(net, seed=1)
        >>> torch.equal(sc.find_masks(other)["weight"], masks["weight"]), torch.equal(other.weight, net.weight)
        (True, False)

    Reference:
        Frankle and Carbin 2019, arXiv 1803.03635; Gale, Elsen, Hooker 2019, arXiv 1902.09574, section 5.
    """
    fresh = copy.deepcopy(model)
    carry_mark(unwrap(model), unwrap(fresh))
    give_fresh_weights(fresh, seed, init)
    masks = find_masks(model)
    if masks is not None:
        _put_on(fresh, masks, masks.unit_masks)
    return fresh


def random_tickets(
    model: nn.Module, n: int = 1, seed: int = 0, *, snapshot: Snapshot | Mapping[str, Tensor]
) -> Iterator[nn.Module]:
    """Copies with random masks of the same counts, layer by layer, on the first weights: does it matter which stay?

    Of each parameter (each group, for unit ``channel``) as many units stay as in ``model``, drawn uniformly.
    An n:m pattern inside the rows is not kept.

    Args:
        model: with masks; it is not changed.
        n: how many copies; they are made one at a time. The i-th is the same whatever ``n`` is.
        seed: of the draw.
        snapshot: the weights that the masks are put on: a ``Snapshot`` of step 0 or of an early step, or a state dict.

    Returns:
        An iterator over the copies, each with masks of its own (``sc.find_masks``).

    Raises:
        ValueError: for a model without masks, or a snapshot of another network.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(8, 4)
        >>> first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        >>> masks = sc.prune(net, 0.75)
        >>> [sc.find_masks(ticket).kept("weight") for ticket in random_tickets(net, 3, snapshot=first)]
        [8, 8, 8]

    Reference:
        Frankle and Carbin 2019, arXiv 1803.03635; with the layers' own densities as in Frankle, Dziugaite, Roy, Carbin
        2019, arXiv 1903.01611.
    """
    masks = find_masks(model)
    if masks is None:
        raise ValueError("this model has no masks, so there are no counts to draw by; prune it first")
    if type(n) is not int or n < 1:
        raise ValueError(f"n={n!r}: how many random tickets to draw, a whole number from 1")
    state = check_same_network(model, snapshot)
    return _draw(model, masks, n, seed, state)


def _draw(model: nn.Module, masks: Masks, n: int, seed: int, state: Mapping[str, Tensor]) -> Iterator[nn.Module]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n):
        ticket = copy.deepcopy(model)
        carry_mark(unwrap(model), unwrap(ticket))
        _fill(ticket, state)
        _put_on(ticket, masks, {key: _shuffled(mask, generator) for key, mask in masks.unit_masks.items()})
        yield ticket


def _shuffled(mask: Tensor, generator: torch.Generator) -> Tensor:
    return mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)


def _put_on(model: nn.Module, masks: Masks, unit_masks: Mapping[str, Tensor]) -> None:
    """Masks of its own for a dense copy; its values now are what ``undo()`` would give back."""
    for parameter in model.parameters():
        parameter.grad = None
    own = Masks(model, unit_masks, masks.unit, masks.layout)
    register_masks(model, own)
    own.apply()


def _fill(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    mine = {**unwrap(model).state_dict(), **tensors_of(model)}
    with torch.no_grad():
        for name, tensor in state.items():
            mine[name].copy_(tensor)
