"""SecateurCallback under Lightning: what is pruned, when, and what comes back from a checkpoint."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

import secateur as sc
from secateur.integrations.lightning import SecateurCallback, load_masks
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.masks.nets import expect_equal, loss_of, make_batches, make_net
from tests.masks.trainers import make_loader, plainly, quiet

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        # Lightning's own: what it still calls in torch, and advice about workers and folders
        r"`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
        r"The '\w+_dataloader' does not have many workers:UserWarning",
        "the plan's last update is at step:UserWarning",  # said of every fit that a test cuts short
    )
]

GRADUAL = Plan(sparsity=0.75, schedule="cubic", begin=1, end=5, every=2)
STREAMED = Plan(sparsity=0.75, criterion="taylor", schedule="linear", begin=1, end=4)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path):
        yield


def adam(model: nn.Module) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=0.01)


def make_module(batches: int = 12, optimizers: int = 1) -> Any:
    """A LightningModule around a small network; two optimizers are stepped by hand."""
    import pytorch_lightning as lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.taken: list[tuple[Tensor, Tensor]] = []
            self.automatic_optimization = optimizers == 1

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor | None:
            self.taken.append(batch)
            loss = loss_of(self.net, batch)
            if optimizers == 1:
                return loss
            both: Any = self.optimizers()
            self.manual_backward(loss)
            for one in both:
                one.step()
                one.zero_grad()
            return None

        def _tested(self, batch: tuple[Tensor, Tensor], index: int) -> None:
            self.log("test_loss", loss_of(self.net, batch))

        test_step = _tested

        def configure_optimizers(self) -> Any:
            if optimizers == 1:
                return adam(self.net)
            parameters = list(self.net.parameters())
            return [torch.optim.Adam(parameters[:2], lr=0.01), torch.optim.Adam(parameters[2:], lr=0.01)]

        def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
            return make_loader(make_batches(batches))

    return Training()


def fit(module: Any, callbacks: list[Any], max_steps: int = 6, resume: str | None = None, **options: Any) -> Any:
    import pytorch_lightning as lightning

    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    limits = {"max_steps": max_steps, "enable_checkpointing": False, **options}
    trainer = lightning.Trainer(accelerator="cpu", devices=1, callbacks=callbacks, **{**silent, **limits})
    trainer.fit(module, ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("plan", [GRADUAL, STREAMED], ids=["magnitude", "taylor"])
def test_it_prunes_by_optimizer_steps_what_a_plain_loop_prunes(plan: Plan, accumulate: int) -> None:
    module, callback = make_module(), SecateurCallback(plan, module="net")
    twin = copy.deepcopy(module.net)
    fit(module, [callback], accumulate_grad_batches=accumulate, gradient_clip_val=0.1)  # as plainly() clips
    plain, optimizer = Pruner(twin, plan), adam(twin)
    plain.attach(optimizer)
    plainly(twin, make_batches(6 * accumulate), optimizer=optimizer, step=optimizer.step, accumulate=accumulate)
    assert callback.pruner is not None
    expect_equal(module.net, twin)
    assert callback.pruner.clock == 6
    assert callback.pruner.history == plain.history
    assert sc.find_masks(module.net) is callback.masks
    plain.masks.check()


def test_the_whole_module_is_pruned_where_no_part_is_named(tmp_path: Path) -> None:
    module, callback = make_module(), SecateurCallback(GRADUAL)
    fit(module, [callback])
    assert callback.masks is not None
    assert all(name.startswith("net.") for name in callback.masks)
    sc.save(module, tmp_path / "module.safetensors")
    expect_equal(sc.load(tmp_path / "module.safetensors", into=make_module()), module)


def test_shares_of_training_become_steps() -> None:
    module, callback = make_module(), SecateurCallback(sparsity=0.8, begin=0.25, end=0.75)
    fit(module, [callback], max_steps=-1, max_epochs=2, accumulate_grad_batches=3)  # 12 batches an epoch: 8 steps
    assert callback.pruner is not None
    assert callback.pruner.plan == Plan(sparsity=0.8, schedule="cubic", begin=2, end=6)
    assert [point.step for point in callback.pruner.history] == [2, 3, 4, 5, 6]


def test_shares_of_an_unlimited_training_are_refused() -> None:
    module = make_module()
    with pytest.raises(ValueError, match="number of steps is unknown"):
        fit(module, [SecateurCallback(sparsity=0.8, begin=0.25, end=0.75)], max_steps=-1, max_epochs=-1)
    assert sc.find_masks(module) is None


def test_held_masks_and_every_fit_with_a_new_optimizer() -> None:
    module = make_module()
    masks = sc.prune(module.net, sparsity=0.5)
    before = {name: masks[name] for name in masks}
    callback = SecateurCallback(module="net")
    for _ in range(2):
        start = module.net[0].weight.detach().clone()
        fit(module, [callback])
        assert not torch.equal(start, module.net[0].weight)
        masks.check()
    assert all(torch.equal(before[name], masks[name]) for name in masks)


def test_a_second_fit_goes_on() -> None:
    module, callback = make_module(), SecateurCallback(GRADUAL)
    fit(module, [callback], max_steps=2)
    fit(module, [callback], max_steps=6)
    assert callback.pruner is not None
    assert callback.pruner.clock == 8
    assert [point.step for point in callback.pruner.history] == [1, 3, 5]
    callback.pruner.masks.check()


def test_two_optimizers_hold_the_masks_and_the_first_is_the_clock() -> None:
    module, callback = make_module(optimizers=2), SecateurCallback(GRADUAL)
    fit(module, [callback], max_steps=12)
    assert callback.pruner is not None
    assert callback.pruner.clock == 6
    callback.pruner.masks.check()


def test_the_sparsity_is_logged() -> None:
    module, callback = make_module(), SecateurCallback(GRADUAL)
    import pytorch_lightning as lightning

    seen: list[float] = []

    class Watch(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            seen.append(float(trainer.progress_bar_metrics.get("sparsity", -1.0)))

    trainer = fit(module, [callback, Watch()])
    assert callback.masks is not None
    share = callback.masks.shares().target_weights
    assert float(trainer.callback_metrics["sparsity"]) == pytest.approx(share)
    assert share == pytest.approx(0.75, abs=0.01)
    assert seen[:2] == [-1.0, 0.0]
    assert 0 < seen[3] < seen[5]


@pytest.mark.parametrize("policy", ["hard", "soft"])
def test_a_resumed_fit_goes_on_as_a_plain_loop_would(policy: Any) -> None:
    """Over the batches that were taken: Lightning itself repeats some after a checkpoint."""
    plan = Plan(0.75, criterion="movement", schedule="cubic", begin=1, end=5, every=2, policy=policy)
    module, whole = make_module(batches=2), SecateurCallback(plan, module="net")
    fit(module, [whole], max_steps=2, gradient_clip_val=0.1).save_checkpoint("half.ckpt")
    resumed = [(make_module(batches=2), SecateurCallback(plan, module="net")), (module, whole)]
    first = list(module.taken)
    for again, callback in resumed:  # in a new process, as it were; and back to the checkpoint in the same
        again.taken.clear()
        fit(again, [callback], resume="half.ckpt", gradient_clip_val=0.1)
        twin = make_net()
        plain, optimizer = Pruner(twin, plan), adam(twin)
        plain.attach(optimizer)
        plainly(twin, [*first, *again.taken], optimizer=optimizer, step=optimizer.step)
        assert callback.pruner is not None
        assert callback.pruner.clock == 6
        assert callback.pruner.history == plain.history
        expect_equal(again.net, twin)
        callback.pruner.masks.undo()
        plain.masks.undo()
        expect_equal(again.net, twin)


def test_held_masks_come_back_with_the_checkpoint() -> None:
    module = make_module(batches=2)
    masks = sc.prune(module.net, sparsity=0.5)
    fit(module, [SecateurCallback(module="net")], max_steps=2).save_checkpoint("half.ckpt")
    again, resumed = make_module(batches=2), SecateurCallback(module="net")
    fit(again, [resumed], resume="half.ckpt")
    assert resumed.masks is not None
    resumed.masks.check()
    assert all(torch.equal(resumed.masks[name], masks[name]) for name in masks)


def test_another_plan_and_another_part_are_refused() -> None:
    fit(make_module(), [SecateurCallback(GRADUAL, module="net")], max_steps=2).save_checkpoint("half.ckpt")
    for callback, message in (
        (SecateurCallback(Plan(0.5, begin=1), module="net"), "another plan; it differs in sparsity"),
        (SecateurCallback(GRADUAL), "pruned module='net', not module=None"),
        (SecateurCallback(GRADUAL, module="backbone"), "no such part; it has net"),
    ):
        module = make_module()
        with pytest.raises(ValueError, match=message):
            fit(module, [callback], resume="half.ckpt")
        assert sc.find_masks(module.net) is None


def test_a_checkpoint_without_the_callback_is_refused() -> None:
    fit(make_module(), [], max_steps=2).save_checkpoint("dense.ckpt")
    with pytest.raises(ValueError, match="saved without SecateurCallback"):
        fit(make_module(), [SecateurCallback(GRADUAL)], resume="dense.ckpt")
    with pytest.raises(ValueError, match="holds no masks"):
        load_masks(make_module(), "dense.ckpt")


def test_a_checkpoint_of_earlier_masks_is_tested_as_it_was() -> None:
    """Its weights are loaded into a module whose masks have gone on."""
    module, callback = make_module(), SecateurCallback(GRADUAL, module="net")
    fit(module, [callback], max_steps=2).save_checkpoint("early.ckpt")
    early = copy.deepcopy(module.net)
    trainer = fit(module, [callback])
    assert not torch.equal(early[0].weight, module.net[0].weight)
    trainer.test(module, make_loader(make_batches(2)), ckpt_path="early.ckpt", weights_only=True, verbose=False)
    expect_equal(module.net, early)
    assert callback.masks is not None
    callback.masks.check()


def test_what_was_only_tested_is_not_resumed() -> None:
    module = make_module()
    trainer = fit(module, [SecateurCallback(GRADUAL)], max_steps=2)
    trainer.save_checkpoint("half.ckpt")
    callback, other = SecateurCallback(GRADUAL), make_module()
    trainer = fit(make_module(), [], max_steps=1)
    trainer.callbacks.append(callback)
    trainer.test(other, make_loader(make_batches(2)), ckpt_path="half.ckpt", weights_only=True, verbose=False)
    fit(other, [callback], max_steps=6)
    assert callback.pruner is not None
    assert callback.pruner.clock == 6


def test_masks_come_back_beside_loaded_weights() -> None:
    module, callback = make_module(), SecateurCallback(GRADUAL, module="net")
    fit(module, [callback]).save_checkpoint("done.ckpt")
    again = make_module()
    contents = torch.load("done.ckpt", weights_only=True)
    again.load_state_dict(contents["state_dict"])
    masks = load_masks(again.net, "done.ckpt")
    assert callback.masks is not None
    assert all(torch.equal(masks[name], callback.masks[name]) for name in masks)
    fresh = make_module()
    with pytest.raises(ValueError, match="are not zero where these masks remove them"):
        load_masks(fresh.net, contents)
    assert sc.find_masks(fresh.net) is None


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pytorch_lightning", "lightning", "lightning.pytorch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "secateur.integrations.lightning")
    with pytest.raises(ImportError, match=r"pip install secateur\[lightning\]"):
        importlib.import_module("secateur.integrations.lightning")
