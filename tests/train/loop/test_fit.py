"""The loop against a loop written by hand, and what it leaves behind: nothing but the trained weights."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.train import Plan, Pruner, prune
from secateur.train.loop.fit import fit
from secateur.train.loop.training import Training

X = torch.randn(22, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(22) % 3
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def watched(seen: list[Any], keep: Callable[[Any], Any] = lambda batch: batch) -> Callable[[nn.Module, Any], Tensor]:
    """A step function that notes its batches."""

    def step(model: nn.Module, batch: Any) -> Tensor:
        seen.append(keep(batch))
        return F.cross_entropy(model(batch[0]), batch[1])

    return step


@pytest.mark.parametrize("make", [SGD, partial(torch.optim.Adam, lr=0.01)])
def test_the_weights_are_those_of_a_loop_by_hand(make: Callable[..., torch.optim.Optimizer]):
    seen: list[Any] = []
    model, hand = net(), net()
    fit(model, (X, Y), Training(3, make, batch_size=8, step=watched(seen)))
    optimizer = make(hand.parameters())
    for x, y in seen:
        optimizer.zero_grad()
        F.cross_entropy(hand(x), y).backward()
        optimizer.step()
    assert torch.equal(weights(model), weights(hand))
    assert [len(y) for _, y in seen] == [8, 8, 6] * 3


def test_every_epoch_sees_every_sample_once_in_another_order_of_the_seed():
    def orders(seed: int, start: int = 0) -> list[list[float]]:
        seen: list[Any] = []
        model = nn.Linear(1, 3)
        step = watched(seen, lambda batch: batch[0].flatten().tolist())
        fit(model, (torch.arange(22.0)[:, None], Y), Training(3, batch_size=8, step=step, seed=seed), start=start)
        return seen

    whole = orders(0)
    epochs = [whole[first] + whole[first + 1] + whole[first + 2] for first in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert orders(0) == whole != orders(1)
    assert orders(0, start=4) == whole[4:]


def test_accumulated_batches_are_means_also_at_the_ragged_end():
    seen: list[Any] = []
    model, hand = net().double(), net().double()
    fitted = fit(model, (X.double(), Y), Training(2, SGD, batch_size=4, step=watched(seen), accumulate=4))
    assert (len(seen), fitted.steps) == (12, 4)
    optimizer = SGD(hand.parameters())
    for first, last in ((0, 4), (4, 6), (6, 10), (10, 12)):
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(hand(x), y) for x, y in seen[first:last]]).mean().backward()
        optimizer.step()
    assert torch.allclose(weights(model), weights(hand), atol=1e-12)


def test_gradients_are_masked_before_they_are_clipped():
    model = nn.Linear(6, 3, bias=False)
    masks = prune(model, 0.5)
    before, mask = model.weight.detach().clone(), masks["weight"]
    gradient = torch.autograd.grad(F.cross_entropy(model(X), Y), model.weight)[0]
    kept = gradient * mask
    assert gradient.norm() > 1.05 * kept.norm()
    make = partial(torch.optim.SGD, lr=1.0)
    fit(model, (X, Y), Training(1, make, batch_size=22, loss=F.cross_entropy, clip=0.01))
    assert torch.allclose(before - model.weight.detach(), kept * 0.01 / kept.norm(), atol=1e-7)
    masks.check()


@pytest.mark.parametrize("amp", ["fp16", "bf16"])
def test_mixed_precision_is_used_unscaled_and_clipped(amp: Any):
    dtypes: list[torch.dtype] = []

    def step(model: nn.Module, batch: Any) -> Tensor:
        output = model(batch[0])
        dtypes.append(output.dtype)
        return F.cross_entropy(output.float(), batch[1])

    half, whole = net(), net()
    before = weights(whole)
    choices = {"batch_size": 22, "step": step, "clip": 0.05}
    # A fused optimizer unscales by itself, after the hooks: it has to be done before them.
    fused = partial(torch.optim.SGD, lr=1.0, fused=True)
    fit(half, (X, Y), Training(1, fused, amp=amp, **choices))  # type: ignore[arg-type]
    fit(whole, (X, Y), Training(1, partial(torch.optim.SGD, lr=1.0), **choices))  # type: ignore[arg-type]
    assert dtypes == [{"fp16": torch.float16, "bf16": torch.bfloat16}[amp], torch.float32]
    assert torch.allclose(weights(half), weights(whole), atol=1e-3)
    assert (weights(half) - before).norm() == pytest.approx(0.05, rel=1e-3)


def test_steps_that_fp16_skips_are_told_where_a_plan_misses_its_end():
    def exploding(model: nn.Module, batch: Any) -> Tensor:
        return model(batch[0]).float().sum() * 1e6  # scaled by 65536 its gradients are infinite in half precision

    model = net()
    pruner = Pruner(model, Plan(0.5, begin=2))
    with pytest.warns(UserWarning, match="fp16.*it shows [01], its plan ends at 2"):
        fit(model, (X, Y), Training(1, SGD, batch_size=11, step=exploding, amp="fp16"), pruner=pruner)


def test_masks_hold_and_the_users_own_optimizer_keeps_them():
    model = net()
    masks = prune(model, 0.7)
    theirs = SGD(model.parameters())
    masks.attach(theirs)
    kept = {name: mask.clone() for name, mask in masks.items()}
    fit(model, (X, Y), Training(2, "sgd", weight_decay=0.1, batch_size=8, loss=F.cross_entropy))
    masks.check()
    assert all(torch.equal(masks[name], kept[name]) for name in kept)
    F.cross_entropy(model(X), Y).backward()
    theirs.step()
    masks.check()


def test_a_pruner_is_driven_and_let_go():
    model = net()
    pruner = Pruner(model, Plan(0.6, schedule="linear", begin=0, end=4, every=2))
    training = Training(2, "adam", batch_size=8, loss=F.cross_entropy)
    fit(model, (X, Y), training, pruner=pruner)
    assert (pruner.clock, [point.step for point in pruner.history]) == (6, [0, 2, 4])
    pruner.step()  # would be refused if an optimizer still drove it
    fit(model, (X, Y), training, pruner=pruner)
    pruner.masks.check()
    with pytest.raises(ValueError, match="belongs to another model"):
        fit(net(), (X, Y), training, pruner=pruner)


def test_random_states_modes_and_gradients_are_left_as_they_were():
    model = net()
    model[1].eval()
    model[0].bias.requires_grad_(False)
    bias = model[0].bias.detach().clone()
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    modes: list[list[bool]] = []

    def look(moment: Any) -> None:
        modes.append([module.training for module in moment.model.modules()])
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002

    fit(model, (X, Y), Training(1, batch_size=22, loss=F.cross_entropy), valid=(X, Y), callbacks=look)
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected  # noqa: NPY002
    assert modes == [[True, True, False, True]] * 2
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert torch.equal(model[0].bias, bias)
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()
    fit(model, (X, Y), Training(1, batch_size=22, loss=F.cross_entropy), callbacks=look)
    assert all(modes[-1])
    assert not any(module.training for module in model.modules())


def test_two_runs_of_one_training_are_equal_whatever_the_user_draws_between():
    def run() -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 9), nn.Dropout(0.5), nn.Linear(9, 3))
        torch.rand(random.randrange(9))
        fit(model, (X, Y), Training(2, batch_size=5, loss=F.cross_entropy))
        return weights(model)

    assert torch.equal(run(), run())


class _Language(nn.Module):
    """Takes and gives what Hugging Face models do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.head(self.embedding(input_ids))
        return SimpleNamespace(
            logits=logits, loss=None if labels is None else F.cross_entropy(logits.reshape(-1, 7), labels.reshape(-1))
        )


def test_models_that_give_their_own_loss():
    ids = torch.randint(0, 7, (12, 5), generator=torch.Generator().manual_seed(0))
    data = {"input_ids": ids, "labels": ids}
    own, stepped = _Language(), _Language()
    kinds: list[bool] = []

    def step(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        kinds.append(isinstance(batch, Mapping) and batch["input_ids"].shape == (4, 5))
        return F.cross_entropy(model(batch["input_ids"]).logits.reshape(-1, 7), batch["labels"].reshape(-1))

    fitted = fit(own, data, Training(20, "adam", lr=0.05, batch_size=4))
    fit(stepped, data, Training(20, "adam", lr=0.05, batch_size=4, step=step))
    assert fitted.history[-1].loss < 0.5 < fitted.history[0].loss
    assert torch.equal(weights(own), weights(stepped))
    assert kinds == [True] * 60


def test_the_tied_and_the_odd_are_trained_too():
    model = _Language()
    model.head.weight = model.embedding.weight
    fit(model, [{"input_ids": torch.arange(7), "labels": torch.arange(7)}], Training(30, "adam", lr=0.1))
    assert model.head.weight is model.embedding.weight
    assert torch.equal(model(torch.arange(7)).logits.argmax(1), torch.arange(7))


def test_a_pruner_that_reads_shuffled_data_at_once_reads_the_same_in_every_run():
    def run() -> dict[str, Tensor]:
        model = net()
        loader = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
        plan = Plan(0.6, criterion="snip")
        pruner = Pruner(model, plan, loader, F.cross_entropy)
        torch.rand(random.randrange(1, 99))
        fit(model, (X, Y), Training(1, batch_size=22, loss=F.cross_entropy), pruner=pruner)
        return dict(pruner.masks)

    first = run()
    for _ in range(3):
        again = run()
        assert all(torch.equal(first[name], again[name]) for name in first)
