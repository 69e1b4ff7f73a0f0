"""Controls of the lottery-ticket experiment: the same masks with fresh weights, other masks with the first weights."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from secateur.core.mask_actions import act
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.model.names import find_parameter, unwrap
from secateur.model.removal.registry import carry_mark
from secateur.train.loop.snapshot import Snapshot
from secateur.train.recovery.fresh import Initialise, give_fresh_weights
from secateur.train.recovery.same_network import check_same_network, tensors_of

__all__ = ["frozen", "random_tickets", "reinitialised", "ticket"]


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


def ticket(
    model: nn.Module,
    *,
    snapshot: Snapshot | Mapping[str, Tensor],
    kept: str = "rewind",
    removed: str = "zero",
    rescale: bool = False,
    final: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> nn.Module:
    """A copy on the first weights, with what the masks keep and remove set by an action: which part makes a ticket win?

    Kept weights (mask 1): ``rewind``, ``reinit`` (shuffled over the layer), ``reshuffle`` (over the kept ones),
    ``constant`` (the layer's standard deviation, the population's), and ``signed_reinit``, ``signed_reshuffle``,
    ``signed_constant``, which keep each weight's own sign. Removed weights (mask 0): ``zero``; ``init``, frozen where
    they were; ``zero_if_shrunk``: zero if training made them smaller, else frozen where they were. Biases and norms
    that are no targets themselves (though a channel may take them along) are rewound. With a ``criterion`` of the
    same paper, such as ``large_init_large_final``, ``signed_constant`` and no training at all this is a supermask.

    Args:
        model: with masks; it is not changed.
        snapshot: the first weights: a ``Snapshot`` of step 0, or a state dict.
        kept: what kept weights become.
        removed: what removed weights become.
        rescale: kept values times ``numel / number kept`` of the layer.
        final: the weights after training, for ``removed="zero_if_shrunk"``.
        seed: of shuffles.

    Returns:
        The copy. With ``removed="zero"`` it has masks of its own; else none: train it under ``frozen(copy, masks)``.

    Raises:
        ValueError: for a model without masks, unknown actions, and weights of another network.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(8, 4)
        >>> first = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        >>> masks = sc.prune(net, 0.75)
        >>> other = ticket(net, snapshot=first, kept="signed_constant")
        >>> sc.find_masks(other).kept("weight"), other.weight[other.weight != 0].abs().unique().numel()
        (8, 1)

    Reference:
        Zhou, Lan, Liu, Yosinski 2019, arXiv 1905.01067.
    """
    masks = find_masks(model)
    if masks is None:
        raise ValueError("this model has no masks, so nothing is kept or removed; prune it first")
    state = check_same_network(model, snapshot)
    last = {} if final is None else check_same_network(model, final)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"kept": kept, "removed": removed, "rescale": rescale}
    values = {
        name: act(state[name], masks[name].to(state[name].device), generator, final=last.get(name), **options)
        for name in masks
        if _is_own(masks, name, state[name])
    }
    made = copy.deepcopy(model)
    carry_mark(unwrap(model), unwrap(made))
    _fill(made, {**state, **values})
    for parameter in made.parameters():
        parameter.grad = None
    if removed == "zero":
        _put_on(made, masks, masks.unit_masks)
    return made


def _is_own(masks: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    """A mask that was chosen for this tensor; biases and norms may only follow their channel."""
    if tensor.dim() > 1 or not isinstance(masks, Masks):
        return True
    return name in masks.layout and masks.layout[name].kind == "bias"


@contextmanager
def frozen(model: nn.Module, masks: Mapping[str, Tensor]) -> Generator[None]:
    """Train a network whose removed weights stay at the values that they have now, whatever those are.

    In ``with frozen(copy, masks):`` every optimizer that steps the weights gets no gradient for the removed ones and
    cannot move them; it works in ``sc.fit`` and in a loop of your own.

    Args:
        model: from ``ticket(removed="init")``, say.
        masks: parameter name -> bool mask, True: trained; ``sc.find_masks`` of the model that the ticket was made from.

    Raises:
        ValueError: for names and shapes that are not this model's.

    Example:
        >>> net, masks = nn.Linear(2, 1), {"weight": torch.tensor([[True, False]])}
        >>> before = net.weight[0, 1].item()
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=1.0, weight_decay=0.1)
        >>> with frozen(net, masks):
        ...     net(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> net.weight[0, 1].item() == before
        True
    """
    root, held = unwrap(model), dict[Tensor, tuple[Tensor, Tensor]]()
    for name, mask in masks.items():
        parameter = find_parameter(root, name)
        if mask.shape != parameter.shape:
            raise ValueError(f"the mask of {name!r} has shape {tuple(mask.shape)}, the weight {tuple(parameter.shape)}")
        if _is_own(masks, name, parameter):
            held[parameter] = mask.bool().to(parameter.device), parameter.detach().clone()

    def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for parameter, (mask, _) in held.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~mask, 0.0)

    def after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        with torch.no_grad():
            for parameter, (mask, value) in held.items():
                parameter.copy_(torch.where(mask, parameter, value))

    handles = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
