"""What a training refuses, how it is written down, and what fit refuses before the model is touched."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.train.loop.fit import fit
from secateur.train.loop.training import OPTIMIZERS, Training, make_optimizer

X, Y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 2
LBFGS = torch.optim.LBFGS


def own_loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: a whole number from 1"),
        ({"epochs": 2.5}, "epochs=2.5"),
        ({"batch_size": True}, "batch_size=True"),
        ({"patience": 0}, "patience=0"),
        ({"seed": "a"}, "seed='a'"),
        ({"lr": 0.0}, "lr=0.0: a number above 0"),
        ({"clip": float("inf")}, "clip=inf"),
        ({"weight_decay": -1}, "weight_decay=-1: a number from 0"),
        ({"amp": "int8"}, "known are 'bf16', 'fp16'"),
        ({"optimizer": "adma"}, "did you mean 'adam'"),
        ({"optimizer": "sgd(momentun=0.5)"}, "sgd has no 'momentun'; it has momentum"),
        ({"optimizer": "sgd(lr=0.5)"}, "lr= and weight_decay= are choices of the training"),
        ({"optimizer": partial(torch.optim.SGD, lr=1), "lr": 0.1}, "a function brings its own"),
        ({"optimizer": 3}, "give a name"),
        ({"loss": 3}, "give a function"),
        ({"loss": "no.such.module:loss"}, "not imported yet"),
        ({"loss": "torch.nn.functional:nonsense"}, "has no function"),
        ({"loss": "cross_entropy"}, "write 'module:function'"),
        ({"lr_schedule": 3}, "a name or a function"),
    ],
)
def test_bad_choices_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Training(**{"epochs": 1, **options})


def test_a_training_is_plain_json_and_comes_back():
    training = Training(3, "sgd(momentum=0.5)", lr=0.2, lr_schedule="steps(0.5)", loss=own_loss, clip=1, amp="bf16")
    record = json.loads(json.dumps(training.to_record()))
    assert Training.from_record(record) == training
    assert Training.from_record(record).loss is own_loss
    assert Training.from_record({**record, "clip": 1.0}).digest == training.digest
    assert Training.from_record({**record, "seed": 1}).digest != training.digest
    with pytest.raises(ValueError, match="a training has no 'epoch'"):
        Training.from_record({"epoch": 3})


def test_functions_of_a_training_are_written_with_their_arguments():
    training = Training(3, partial(torch.optim.SGD, lr=0.1, nesterov=True, momentum=0.5), loss=F.cross_entropy)
    record = json.loads(json.dumps(training.to_record()))
    assert record["optimizer"] == "torch.optim.sgd:SGD(lr=0.1, nesterov=True, momentum=0.5)"
    made = make_optimizer(Training.from_record(record), [nn.Parameter(torch.zeros(1))])
    assert (made.defaults["lr"], made.defaults["nesterov"]) == (0.1, True)
    for loss in (lambda output, labels: output.sum(), nn.CrossEntropyLoss(), partial(own_loss, Y)):
        with pytest.raises(ValueError, match="cannot be written down"):
            Training(3, loss=loss).to_record()


def test_descriptions_tell_trainings_apart_that_cannot_be_written():
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss(), own_loss]
    assert len({Training(1, loss=loss).describe()["loss"] for loss in losses}) == 4
    rates = [Training(1, partial(torch.optim.SGD, lr=lr)).describe()["optimizer"] for lr in (0.1, 0.2)]
    assert rates[0] != rates[1]
    assert Training(1, loss=nn.CrossEntropyLoss()).describe() == Training(1, loss=nn.CrossEntropyLoss()).describe()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_table_of_optimizers(name: str):
    made = make_optimizer(Training(1, name), [nn.Parameter(torch.zeros(1))])
    assert made.defaults["lr"] == {"sgd": 0.1}.get(name, 1e-3)
    assert made.defaults["weight_decay"] == 0
    assert made.defaults.get("momentum", 0.9) == 0.9
    given = make_optimizer(Training(1, name, lr=0.5, weight_decay=0.1), [nn.Parameter(torch.zeros(1))])
    assert (given.defaults["lr"], given.defaults["weight_decay"]) == (0.5, 0.1)


def frozen() -> nn.Module:
    return nn.Linear(4, 2).requires_grad_(False)


GOOD = {"model": nn.Linear(4, 2), "data": (X, Y), "training": Training(2, batch_size=4, loss=F.cross_entropy)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"training": 3}, "give a Training"),
        ({"training": Training(1)}, "loss= is needed"),
        ({"training": Training(1, LBFGS, loss=own_loss)}, "LBFGS calls the model several times"),
        ({"training": Training(1, lambda p: 3, loss=own_loss)}, "made a int, not a torch optimizer"),
        ({"training": Training(1, patience=2, loss=own_loss)}, "patience=2 needs data.*valid="),
        ({"metric": lambda *_: 1.0}, "metric= needs data.*valid="),
        ({"model": frozen()}, "no parameter that requires grad"),
        ({"data": iter([(X, Y)])}, "can be read once only"),
        ({"data": ((X, Y) for _ in range(3))}, "can be read once only"),
        ({"data": 3}, "data=3 is no data"),
        ({"data": (X, Y[:3])}, r"data of shapes \(8, 4\), \(3,\)"),
        ({"data": [(X, Y, Y)]}, "a batch is a tuple of 3"),
        ({"start": 9}, "this training has 4 steps"),
        ({"start": 3, "stop": 2}, "0 <= start <= stop <= 4"),
        ({"stop": -1}, "whole numbers"),
        ({"keep": (7,)}, "keep=.7.: this run goes from step 0 to step 4"),
    ],
)
def test_fit_refuses_before_the_weights_are_touched(changed: dict[str, Any], message: str):
    arguments = {**GOOD, **changed}
    before = [parameter.clone() for parameter in arguments["model"].parameters()]
    with pytest.raises(ValueError, match=message):
        fit(**arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, arguments["model"].parameters(), strict=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_it_reaches_the_weights(bad: float):
    model, calls = nn.Linear(4, 2), []

    def step(model: nn.Module, batch: Any) -> Tensor:
        calls.append([parameter.detach().clone() for parameter in model.parameters()])
        return F.cross_entropy(model(batch[0]), batch[1]) * (bad if len(calls) == 4 else 1.0)

    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step 3: .*smaller learning rate or clip=1.0"):
        fit(model, (X, Y), Training(4, batch_size=4, step=step))
    assert all(torch.equal(a, b) for a, b in zip(calls[-1], model.parameters(), strict=True))


def test_a_snapshot_of_another_model_or_optimizer_is_refused():
    kept = fit(nn.Linear(4, 2), (X, Y), GOOD["training"], keep=(2,)).snapshots[2]  # type: ignore[arg-type]
    for model, training, message in (
        (
            nn.Linear(4, 3),
            Training(2, batch_size=4, loss=own_loss),
            r"'weight' has shape \(2, 4\) there, \(3, 4\) here",
        ),
        (nn.Sequential(nn.Linear(4, 2)), Training(2, batch_size=4, loss=own_loss), "without 0.bias, 0.weight"),
        (nn.Linear(4, 2), Training(2, "sgd", batch_size=4, loss=own_loss), "of another optimizer"),
    ):
        before = [parameter.clone() for parameter in model.parameters()]
        with pytest.raises(ValueError, match=message):
            fit(model, (X, Y), training, start=2, snapshot=kept)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_modules_with_state_beside_their_tensors_are_refused_where_it_would_be_lost():
    class Odd(nn.Linear):
        def get_extra_state(self) -> int:
            return 3

        def set_extra_state(self, state: int) -> None:
            assert state == 3

    model = nn.Sequential(Odd(4, 2))
    assert fit(model, (X, Y), GOOD["training"]).steps == 4  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'0' keeps state beside its tensors"):
        fit(model, (X, Y), GOOD["training"], keep=(0,))  # type: ignore[arg-type]
