"""Fine-tuning and rewinding: which weights, and masks that hold throughout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import secateur as sc
from secateur.train.loop.feed import make_feed
from secateur.train.loop.fit import fit
from secateur.train.loop.snapshot import model_tensors
from secateur.train.recovery.recover import RECOVERIES, recover
from tests.train.recovery.nets import blobs, convolutions, mlp, state, training

PER_EPOCH = 3  # 48 samples in batches of 16


def dense(net, given, *steps):
    return fit(net, blobs(), given, keep=steps, progress=False)


def test_rewound_weights_end_as_a_training_that_had_the_masks_from_there_on() -> None:
    """An independent loop: everything of the snapshot, masks by hand, SGD written out."""
    net, given = mlp(), training(4)
    snapshot = dense(net, given, 5).snapshots[5]
    masks = sc.prune(net, 0.6)
    recover(net, blobs(), given, "rewind_weights", snapshot=snapshot, progress=False)
    kept = {name: masks[name] for name in masks}

    other = mlp(1)
    other.load_state_dict(snapshot.model)
    batches = []
    for epoch in range(4):
        batches += list(make_feed(blobs(), given, torch.device("cpu")).epoch(epoch))
    speed = {
        n: snapshot.optimizer["state"][i]["momentum_buffer"].clone()
        for i, n in enumerate(dict(other.named_parameters()))
    }
    with torch.no_grad():
        for name, mask in kept.items():
            dict(other.named_parameters())[name].mul_(mask)
    for step in range(5, 12):
        other.zero_grad()
        F.cross_entropy(other(batches[step][0]), batches[step][1]).backward()
        lr = 0.1 * (0.1 if step >= 6 else 1.0) * (0.1 if step >= 9 else 1.0)
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                mask = kept.get(name, torch.ones_like(parameter, dtype=torch.bool))
                speed[name] = 0.9 * speed[name] + parameter.grad * mask + 0.01 * parameter
                parameter.sub_(lr * speed[name]).mul_(mask)
    for name, tensor in other.state_dict().items():
        assert torch.allclose(net.state_dict()[name], tensor, atol=1e-6), name


@pytest.mark.parametrize("how", list(RECOVERIES))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(
    ("unit", "more"), [("weight", {}), ("filter", {}), ("channel", {"example_inputs": torch.randn(2, 1, 5, 5)})]
)
def test_masks_hold_at_every_step(how, optimizer, unit, more) -> None:
    net, data = convolutions(), blobs(48, 1, 5, 5)
    given = training(4, optimizer=optimizer, lr=0.05)
    snapshot = fit(net, data, given, keep=(6,), progress=False).snapshots[6]
    masks = sc.prune(net, 0.5, unit=unit, **more)
    before = {key: mask.clone() for key, mask in masks.unit_masks.items()}
    checks = []
    given_snapshot = snapshot if how == "rewind_weights" else None
    recover(
        net, data, given, how, epochs=2, snapshot=given_snapshot, progress=False,
        callbacks=lambda moment: checks.append(masks.check()),
    )  # fmt: skip
    assert len(checks) == 2 * PER_EPOCH + 2
    assert all(torch.equal(before[key], masks.unit_masks[key]) for key in before)
    assert sc.find_masks(net) is masks


def test_rewinding_brings_statistics_and_optimizer_back_but_not_masks() -> None:
    net, given = mlp(), training(4)
    snapshot = dense(net, given, 6).snapshots[6]
    masks = sc.prune(net, 0.5)
    gone = ~masks["3.weight"]
    seen = {}

    def first(moment) -> None:
        if moment.step == 7 and moment.at == "step":
            seen["tracked"] = int(net[1].num_batches_tracked)
            seen["momentum"] = moment.optimizer.state[net[3].weight]["momentum_buffer"].clone()

    recover(net, blobs(), given, "rewind_weights", snapshot=snapshot, callbacks=first, progress=False)
    assert seen["tracked"] == 7
    old = snapshot.optimizer["state"][4]["momentum_buffer"]
    assert old[gone].abs().max() > 0
    # 0.9 m + g + wd w, where g and w are 0 under the mask: the old momentum is there, and moved no removed weight
    assert torch.allclose(seen["momentum"][gone], 0.9 * old[gone])
    assert bool((net[3].weight[gone] == 0).all())


@pytest.mark.parametrize("how", ["finetune", "rewind_lr"])
def test_the_others_go_on_from_the_weights_as_they_are(how) -> None:
    net, given = mlp(), training(4)
    dense(net, given)
    masks = sc.prune(net, 0.5)
    at, before = [], state(net)

    def look(moment) -> None:
        if not at:
            at.append({name: tensor.clone() for name, tensor in moment.model.state_dict().items()})
            assert not any(
                "momentum_buffer" in s and s["momentum_buffer"].abs().max() > 10
                for s in moment.optimizer.state.values()
            )

    recover(net, blobs(), given, how, epochs=2, callbacks=look, progress=False)
    moved = (at[0]["3.weight"] - before["3.weight"]).abs().max()
    assert 0 < float(moved) < 0.1 * 2  # one step of at most lr times a gradient of order 1
    masks.check()


def test_an_early_step_needs_no_epochs_and_may_lie_inside_an_epoch() -> None:
    net, given = mlp(), training(4)
    snapshot = dense(net, given, 2).snapshots[2]
    sc.prune(net, 0.5)
    fitted = recover(net, blobs(), given, "rewind_weights", snapshot=snapshot, progress=False)
    assert fitted.steps == 10
    assert [row.step for row in fitted.history] == [3, 6, 9, 12]


@pytest.mark.parametrize(
    ("how", "more", "told"),
    [
        ("finetune", {}, "needs epochs="),
        ("rewind_lr", {}, "needs epochs="),
        ("rewind_lr", {"epochs": 5}, "epochs=5 for how='rewind_lr': a whole number from 1 to 4"),
        ("rewind_lr", {"epochs": 1, "lr": 0.1}, "lr= has no use"),
        ("rewind_weights", {"epochs": 1, "lr": 0.1}, "lr= has no use"),
        ("rewind_weights", {"epochs": 3}, r"keep=\(3,\)"),
        ("rewind_weights", {}, r"keep=\(0,\)"),
        ("finetune", {"epochs": 0}, "epochs=0"),
        ("finetune", {"epochs": 1, "lr": -1}, "lr=-1"),
        ("rewind", {"epochs": 1}, "known recovery|unknown recovery|no recovery|recovery"),
    ],
)
def test_refusals_leave_the_model_alone(how, more, told) -> None:
    net = mlp()
    sc.prune(net, 0.5)
    before = state(net)
    with pytest.raises(ValueError, match=told):
        recover(net, blobs(), training(4), how, **more)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_snapshot_of_another_place_or_network_is_refused() -> None:
    net, given = mlp(), training(4)
    snapshot = dense(net, given, 6).snapshots[6]
    with pytest.raises(ValueError, match=r"begin at step 3 of 12 .* taken at step 6: leave epochs out"):
        recover(net, blobs(), given, "rewind_weights", epochs=3, snapshot=snapshot)
    with pytest.raises(ValueError, match="steps 0 to 5"):
        recover(net, blobs(), training(2), "rewind_weights", snapshot=snapshot)
    with pytest.raises(ValueError, match="snapshot= has no use"):
        recover(net, blobs(), given, "finetune", epochs=1, snapshot=snapshot)
    with pytest.raises(ValueError, match=r"another network than this Linear: .* how='rewind_lr'"):
        recover(nn.Linear(6, 3), blobs(), given, "rewind_weights", snapshot=snapshot)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("how", list(RECOVERIES))
def test_a_model_that_failed_is_as_it_was(how, failure) -> None:
    net, given = mlp(), training(4)
    snapshot = dense(net, given, 6).snapshots[6]
    masks = sc.prune(net, 0.5)
    before, removed = model_tensors(net), masks.state_dict()["removed"]
    net[1].eval()

    def fail(moment) -> None:
        if moment.step == snapshot.step + 2 or moment.step == 14:
            raise failure("stop")

    with pytest.raises(failure):
        recover(
            net, blobs(), given, how, epochs=2, snapshot=snapshot if how == "rewind_weights" else None,
            callbacks=fail, progress=False,
        )  # fmt: skip
    assert all(torch.equal(before[name], tensor) for name, tensor in model_tensors(net).items())
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert sc.find_masks(net) is masks
    for name, entry in masks.state_dict()["removed"].items():
        assert torch.equal(entry["values"], removed[name]["values"])


def test_a_checkpoint_goes_on_to_the_same_weights(tmp_path) -> None:
    given = training(4)
    nets = []
    for attempt in (False, True):
        net = mlp()
        snapshot = dense(net, given, 3).snapshots[3]
        sc.prune(net, 0.5)

        def fail(moment, attempt=attempt) -> None:
            if attempt and moment.step == 8:
                raise Stop

        more = {"snapshot": snapshot, "checkpoint": tmp_path / f"{attempt}.checkpoint", "every": 2, "progress": False}
        if attempt:
            with pytest.raises(Stop):
                recover(net, blobs(), given, "rewind_weights", callbacks=fail, **more)
        steps = recover(net, blobs(), given, "rewind_weights", **more).steps
        assert steps == 9
        nets.append(state(net))
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])
