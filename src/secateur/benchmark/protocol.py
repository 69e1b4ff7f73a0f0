"""The protocol that every method runs through, so that two methods differ in the method alone.

Same data, same first weights, same optimizer, same number of training steps; a method chooses when and
what to prune.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn

from secateur.benchmark.data import Images
from secateur.measure import TrainingMeter
from secateur.model.masks import Masks, find_masks
from secateur.records import SchedulePoint, TrainingCost
from secateur.train import Plan, Pruner, prune
from secateur.train.shrink import shrink
from secateur.train.shrinkage import shrinkage

__all__ = [
    "METHODS",
    "REMOVED_FILTERS",
    "Outcome",
    "Recipe",
    "Setting",
    "fit",
    "run_method",
    "steps_per_epoch",
    "training_epochs",
]


REMOVED_FILTERS = 0.5
"""Share of the channels that filter removal takes from each group, whatever share of weights other methods remove."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        epochs: of the dense network, and of every method that trains from scratch.
        tuning_epochs: spent after pruning by methods that start from the dense network.
        rounds: of iterative pruning; ``tuning_epochs`` are shared among them.
        batch_size: images per step.
        lr: peak learning rate of Adam under a one-cycle schedule; fine-tuning uses a third of it.
        seed: of the weights and of the order of the data.
    """

    epochs: int
    tuning_epochs: int
    rounds: int = 3
    batch_size: int = 64
    lr: float = 2e-3
    seed: int = 0


class Progress(Protocol):
    """Told after every optimizer step."""

    def __call__(self, steps: int = 1) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """A trained sparse network with its masks (None where it is really smaller), plan, cost and history."""

    model: nn.Module
    masks: Masks | None
    plan: Plan
    cost: TrainingCost
    history: tuple[SchedulePoint, ...]


def fit(
    model: nn.Module,
    data: Images,
    recipe: Recipe,
    *,
    epochs: int,
    lr: float,
    pruner: Pruner | None = None,
    progress: Progress | None = None,
) -> None:
    """Train in place with Adam under a one-cycle learning rate; masks of the model hold.

    Args:
        model: the network; if it has masks they are attached.
        data: images.
        recipe: batch size and seed.
        epochs: passes over the training images.
        lr: peak learning rate.
        pruner: prunes on the way.
        progress: told after every step.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    total = epochs * steps_per_epoch(data, recipe)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(total, 2))
    masks = find_masks(model)
    if pruner is not None:
        pruner.attach(optimizer)
    elif masks is not None:
        masks.attach(optimizer)
    order = torch.Generator().manual_seed(recipe.seed)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data.y_train), generator=order).split(recipe.batch_size):
            loss = F.cross_entropy(model(data.x_train[index]), data.y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress()
    model.eval()
    if masks is not None and pruner is None:
        masks.detach()


def steps_per_epoch(data: Images, recipe: Recipe) -> int:
    """Optimizer steps in one pass over the training images."""
    return -(-len(data.y_train) // recipe.batch_size)


@dataclass(frozen=True)
class Setting:
    """What every method is given.

    Attributes:
        fresh: the network with its first weights; not to be changed.
        dense: the same network, trained; not to be changed.
        data: images.
        recipe: how everything is trained.
        sparsity: share of target weights to remove.
        progress: told after every optimizer step.
    """

    fresh: nn.Module
    dense: nn.Module
    data: Images
    recipe: Recipe
    sparsity: float
    progress: Progress | None = None

    def train(self, model: nn.Module, epochs: int, lr: float, pruner: Pruner | None = None) -> None:
        """``fit`` with this setting's data and recipe."""
        fit(model, self.data, self.recipe, epochs=epochs, lr=lr, pruner=pruner, progress=self.progress)


Result: TypeAlias = tuple[nn.Module, Plan, tuple[SchedulePoint, ...]]
Method: TypeAlias = Callable[[Setting], Result]


def _one_shot(setting: Setting) -> Result:
    model = copy.deepcopy(setting.dense)
    masks = prune(model, setting.sparsity)
    return model, Plan(setting.sparsity), (_point(0, masks),)


def _one_shot_tuned(setting: Setting) -> Result:
    model, plan, history = _one_shot(setting)
    setting.train(model, setting.recipe.tuning_epochs, setting.recipe.lr / 3)
    return model, plan, history


def _gradual(setting: Setting) -> Result:
    model, recipe = copy.deepcopy(setting.fresh), setting.recipe
    total = recipe.epochs * steps_per_epoch(setting.data, recipe)
    begin, end = total // 5, total * 3 // 4
    plan = Plan(setting.sparsity, schedule="cubic", begin=begin, end=end, every=max(1, (end - begin) // 30))
    pruner = Pruner(model, plan)
    setting.train(model, recipe.epochs, recipe.lr, pruner)
    return model, plan, pruner.history


def _iterative(setting: Setting) -> Result:
    model, recipe = copy.deepcopy(setting.dense), setting.recipe
    plan = Plan(setting.sparsity, schedule="geometric", begin=0, end=recipe.rounds)
    pruner = Pruner(model, plan)
    for _ in range(recipe.rounds):
        pruner.step()
        setting.train(model, recipe.tuning_epochs // recipe.rounds, recipe.lr / 3)
    return model, plan, pruner.history


def _before_training(criterion: str) -> Method:
    def run(setting: Setting) -> Result:
        model, recipe = copy.deepcopy(setting.fresh), setting.recipe
        plan = Plan(setting.sparsity, criterion=criterion, seed=recipe.seed)
        batch = _balanced_batch(setting.data, recipe.seed)
        masks = prune(model, plan.sparsity, criterion=criterion, data=batch, loss=F.cross_entropy, seed=recipe.seed)
        history = (_point(0, masks),)
        setting.train(model, recipe.epochs, recipe.lr)
        return model, plan, history

    return run


def _filter_removal(setting: Setting) -> Result:
    """Half the channels of every layer go for good, by the L2 norm of their filters; what is left is tuned."""
    example = setting.data.x_train[:2]
    model = shrink(
        setting.dense, example_inputs=example, sparsity=REMOVED_FILTERS, criterion="l2", allocation="uniform"
    )
    record = shrinkage(model)
    assert record is not None, "shrink remembers what it did"
    kept, before = (sum(getattr(width, side) for width in record.groups) for side in ("after", "before"))
    setting.train(model, setting.recipe.tuning_epochs, setting.recipe.lr / 3)
    plan = Plan(REMOVED_FILTERS, criterion="l2", unit="channel", allocation="uniform")
    return model, plan, (SchedulePoint(0, 1 - kept / before, kept),)


METHODS: dict[str, Method] = {
    "one-shot magnitude": _one_shot,
    "one-shot magnitude, tuned": _one_shot_tuned,
    "gradual magnitude": _gradual,
    "iterative magnitude": _iterative,
    "SNIP before training": _before_training("snip"),
    "random before training": _before_training("random"),
    "filter removal": _filter_removal,
}
"""Every method starts from the same first weights or from the same trained network."""


def training_epochs(method: str, recipe: Recipe) -> int:
    """How many epochs a method trains beyond what it starts from, for progress bars."""
    tuned = recipe.tuning_epochs // recipe.rounds * recipe.rounds
    counts = {
        "one-shot magnitude": 0,
        "one-shot magnitude, tuned": recipe.tuning_epochs,
        "iterative magnitude": tuned,
        "filter removal": recipe.tuning_epochs,
    }
    return counts.get(method, recipe.epochs)


def run_method(method: str, setting: Setting) -> Outcome:
    """Make a network sparse by one method of the table.

    Args:
        method: a key of ``METHODS``.
        setting: networks, data, recipe and sparsity.

    Returns:
        The sparse network and what it took, beyond the training of the dense one.

    Raises:
        ValueError: for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"no method {method!r}; known: {', '.join(METHODS)}")
    with TrainingMeter() as meter:
        model, plan, history = METHODS[method](setting)
    masks = find_masks(model)
    assert (masks is None) == (method == "filter removal"), "masks hold what is not removed for good"
    return Outcome(model, masks, plan, meter.cost, history)


def _point(step: int, masks: Masks) -> SchedulePoint:
    return SchedulePoint(step, masks.shares().units, sum(map(masks.kept, masks)))


def _balanced_batch(data: Images, seed: int, per_class: int = 10) -> tuple[Any, Any]:
    """One batch with equally many images of each class, as saliency at initialisation wants it."""
    generator = torch.Generator().manual_seed(seed)
    picks = []
    for label in data.y_train.unique():
        members = (data.y_train == label).nonzero().flatten()
        picks.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    index = torch.cat(picks)
    return data.x_train[index], data.y_train[index]
