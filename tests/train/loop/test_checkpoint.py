"""Killed trainings end with the same bits; checkpoints of other runs are refused and nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.train import Plan, Pruner, prune
from secateur.train.loop.fit import fit
from secateur.train.loop.fitted import Fitted, Moment
from secateur.train.loop.training import Training
from tests.structure.tree import ROOT

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
TRAINING = Training(3, "sgd", lr_schedule="cosine", batch_size=8, loss=F.cross_entropy)


def net(width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Dropout(0.5), nn.Linear(width, 3))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def killed(step: int) -> Any:
    def callback(moment: Moment) -> None:
        if moment.at == "step" and moment.step == step:
            raise KeyboardInterrupt

    return callback


def started(path: Path, **options: Any) -> nn.Module:
    """A run that was left after 8 of its 15 steps, in mid-epoch; the checkpoint is of step 7."""
    model = net()
    choices = {"data": (X, Y), "training": TRAINING, "every": 1, **options}
    with pytest.raises(KeyboardInterrupt):
        fit(model, checkpoint=path, callbacks=killed(8), **choices)
    return model


@pytest.mark.parametrize("kind", ["tensors", "workers", "here", "stream"])
def test_a_run_that_is_killed_ends_with_the_same_bits(kind: str, tmp_path: Path):
    worker = [sys.executable, str(Path(__file__).with_name("worker_fit.py")), kind, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(worker, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("resumed") >= 3


def test_an_interrupted_notebook_goes_on_with_the_same_objects(tmp_path: Path):
    def run(model: nn.Module, pruner: Pruner, **options: Any) -> Fitted:
        return fit(model, (X, Y), TRAINING, pruner=pruner, checkpoint=tmp_path / "run.pt", every=2, **options)

    plan = Plan(0.7, schedule="linear", begin=2, end=12, every=2)
    whole, model = net(), net()
    fit(whole, (X, Y), TRAINING, pruner=Pruner(whole, plan))
    pruner = Pruner(model, plan)
    with pytest.raises(KeyboardInterrupt):
        run(model, pruner, callbacks=killed(9))
    told: list[int] = []
    fitted = run(model, pruner, progress=lambda steps=1: told.append(steps))
    assert torch.equal(weights(model), weights(whole))
    assert [point.step for point in pruner.history] == [2, 4, 6, 8, 10, 12]
    assert (fitted.steps, len(fitted.history), told) == (15, 3, [8, *[1] * 7])
    with torch.no_grad():
        model[0].weight.zero_()
    again = run(model, pruner)
    assert torch.equal(weights(model), weights(whole)), "what is finished is given again"
    assert (again.history, again.steps) == (fitted.history, 15)
    spent = sum(row.seconds for row in fitted.history)
    assert min(fitted.cost.wall_s, again.cost.wall_s) >= spent, "what was spent before the interruption counts"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"training": Training(3, "sgd", batch_size=8, loss=F.cross_entropy)},
            "lr_schedule: cosine there, constant here",
        ),
        ({"training": Training(3, partial(torch.optim.SGD, lr=0.2), batch_size=8)}, r"optimizer: sgd there, .*lr=0.2"),
        ({"data": (X[:32], Y[:32])}, r"\(40, 6\), \(40,\) there, tensors of shapes \(32, 6\)"),
        ({"stop": 12}, "stop: None there, 12 here"),
        ({"keep": [3]}, r"keep: \[\] there, \[3\] here"),
        ({"model": net(4)}, r"model.0.weight: float32 \(5, 6\) there, float32 \(4, 6\) here"),
        ({"model": nn.Linear(6, 3)}, "model.weight: nothing there"),
        ({"pruned": 0.5}, "masks by unit: nothing there, weight here"),
    ],
)
def test_another_run_is_refused_and_nothing_is_touched(changed: dict[str, Any], message: str, tmp_path: Path):
    path = tmp_path / "run.pt"
    started(path)
    file = path.read_bytes()
    choices = {"model": net(), "data": (X, Y), "training": TRAINING, "every": 1, **changed}
    if choices.pop("pruned", None):
        prune(choices["model"], 0.5)
    before = weights(choices["model"])
    with pytest.raises(ValueError, match=message) as refusal:
        fit(checkpoint=path, **choices)
    assert "run.pt" in str(refusal.value)
    assert torch.equal(weights(choices["model"]), before)
    assert path.read_bytes() == file


def test_other_plans_and_other_masks_are_refused(tmp_path: Path):
    def pruned(sparsity: float) -> nn.Module:
        model = net()
        prune(model, sparsity)
        return model

    with pytest.raises(KeyboardInterrupt):
        fit(pruned(0.5), (X, Y), TRAINING, checkpoint=tmp_path / "masks.pt", every=1, callbacks=killed(3))
    model = pruned(0.6)
    before = weights(model)
    with pytest.raises(ValueError, match=r"its masks differ in 0.weight, 3.weight \(0.weight keeps \d+ units there"):
        fit(model, (X, Y), TRAINING, checkpoint=tmp_path / "masks.pt", every=1)
    assert torch.equal(weights(model), before)

    for sparsity, step in ((0.5, 3), (0.6, None)):
        model = net()
        pruner = Pruner(model, Plan(sparsity, begin=2))
        callbacks = [] if step is None else [killed(step)]
        with pytest.raises((KeyboardInterrupt, ValueError)) as stopped:
            fit(model, (X, Y), TRAINING, pruner=pruner, checkpoint=tmp_path / "p.pt", every=1, callbacks=callbacks)
    assert "plan.sparsity: 0.5 there, 0.6 here" in str(stopped.value)
    assert torch.equal(weights(model), weights(net()))


def test_damaged_and_foreign_files_are_refused(tmp_path: Path):
    path = tmp_path / "run.pt"
    started(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"data/0") + 700] ^= 1
    bad = {f"cut at {n}": whole[:n] for n in (0, 1, len(whole) // 2, len(whole) - 1)} | {"flipped": bytes(flipped)}
    for title, content in bad.items():
        path.write_bytes(content)
        model = net()
        with pytest.raises(ValueError, match=r"run.pt is (no secateur training checkpoint, or was cut|damaged)"):
            fit(model, (X, Y), TRAINING, checkpoint=path)
        assert torch.equal(weights(model), weights(net())), title
        assert path.read_bytes() == content, title
    torch.save(net().state_dict(), path)
    with pytest.raises(ValueError, match="a torch file, but no secateur training checkpoint"):
        fit(net(), (X, Y), TRAINING, checkpoint=path)
    assert set(torch.load(path)) == set(net().state_dict()), "someone's weights are still there"


def test_a_writing_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, save, calls = tmp_path / "run.pt", torch.save, []

    def failing(value: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            file.write(b"half")
            raise OSError("No space left on device")
        save(value, file)

    monkeypatch.setattr(torch, "save", failing)
    model, whole = net(), net()
    with pytest.raises(OSError, match="No space left"):
        fit(model, (X, Y), TRAINING, checkpoint=path, every=2)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    fit(model, (X, Y), TRAINING, checkpoint=path, every=2)
    fit(whole, (X, Y), TRAINING)
    assert torch.equal(weights(model), weights(whole))


def test_data_that_does_not_come_again_is_refused(tmp_path: Path):
    path = tmp_path / "run.pt"
    started(path)
    model = net()
    with pytest.raises(ValueError, match="batch 1 of epoch 1 differs"):
        fit(model, (X + 1, Y), TRAINING, checkpoint=path, every=1)
    assert torch.equal(weights(model), weights(net()))


def test_what_cannot_be_kept_is_refused_before_training(tmp_path: Path):
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def __init__(self, optimizer: torch.optim.Optimizer, total: int) -> None:
            super().__init__(optimizer, lambda step: 1.0)
            self.odd = Plan(0.5)

    steps: list[Moment] = []
    run = partial(fit, net(), (X, Y), callbacks=steps.append)
    odd = Training(1, lr_schedule=Odd, loss=F.cross_entropy)
    with pytest.raises(ValueError, match=r"the scheduler's state.odd is a Plan"):
        run(odd, checkpoint=tmp_path / "run.pt")
    with pytest.raises(ValueError, match=r"the folder .* does not exist"):
        run(TRAINING, checkpoint=tmp_path / "none" / "run.pt")
    with pytest.raises(ValueError, match="is a folder"):
        run(TRAINING, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="together with checkpoint="):
        run(TRAINING, every=3)
    loader = DataLoader(TensorDataset(X, Y), num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="persistent_workers=False"):
        fit(net(), loader, TRAINING, checkpoint=tmp_path / "run.pt")
    assert steps == []
    run(odd)
    assert len(steps) == 2


def test_the_removed_values_come_back_from_the_checkpoint_too(tmp_path: Path):
    model, dense = net(), net()
    masks = prune(model, 0.5)
    with pytest.raises(KeyboardInterrupt):
        fit(model, (X, Y), TRAINING, checkpoint=tmp_path / "run.pt", every=1, callbacks=killed(8))
    again = net()  # of a file, say: what was removed is zero there
    with torch.no_grad():
        for name, mask in masks.items():
            again.get_parameter(name).mul_(mask)
    theirs = prune(again, 0.5)
    fit(again, (X, Y), TRAINING, checkpoint=tmp_path / "run.pt", every=1)
    theirs.check()
    theirs.undo()
    for name, mask in masks.items():
        assert torch.equal(again.get_parameter(name)[~mask], dense.get_parameter(name)[~mask])
