"""SecateurCallback under the Trainer of transformers: what is pruned, when, and what is said of it."""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.integrations.trainer import SecateurCallback
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner
from tests.integrations.training import GRADUAL, fit, make_llama, make_trainer, words
from tests.masks.nets import expect_equal
from tests.masks.trainers import make_bert, make_sentences, quiet

STREAMED = Plan(sparsity=0.75, criterion="taylor", schedule="linear", begin=1, end=4)


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path):
        yield


class Steps:
    """The clock after every optimizer step, and after every batch in between."""

    def __init__(self, callback: SecateurCallback) -> None:
        from transformers import TrainerCallback

        seen = self.seen = list[tuple[str, int]]()

        class Watch(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                assert callback.pruner is not None
                callback.pruner.masks.check()
                seen.append(("step", callback.pruner.clock))

            def on_substep_end(self, *_: Any, **__: Any) -> None:
                assert callback.pruner is not None
                seen.append(("batch", callback.pruner.clock))

        self.watch = Watch()


def attached_by_hand(model: nn.Module, plan: Plan, **options: Any) -> Pruner:
    """The same, by an optimizer that is made first and given to the Trainer."""
    pruner = Pruner(model, plan)
    trainer = make_trainer(model, [], **options)
    trainer.create_optimizer()
    pruner.attach(trainer.optimizer)
    trainer.train()
    return pruner


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("plan", [GRADUAL, STREAMED], ids=["magnitude", "taylor"])
def test_it_prunes_by_optimizer_steps_what_an_attached_pruner_prunes(plan: Plan, accumulate: int) -> None:
    model, callback = make_bert(), SecateurCallback(plan)
    twin = copy.deepcopy(model)
    watch = Steps(callback)
    trainer = make_trainer(model, [callback, watch.watch], gradient_accumulation_steps=accumulate)
    trainer.train()
    by_hand = attached_by_hand(twin, plan, gradient_accumulation_steps=accumulate)
    assert callback.pruner is not None
    expect_equal(model, twin)
    assert callback.pruner.history == by_hand.history
    assert callback.pruner.history[-1].step == plan.last
    assert [clock for what, clock in watch.seen if what == "step"] == [1, 2, 3, 4, 5, 6]
    batches = [clock for what, clock in watch.seen if what == "batch"]
    assert batches == ([0, 1, 2, 3, 4, 5] if accumulate == 2 else [])
    assert sc.find_masks(model) is callback.masks


def test_shares_of_training_become_steps() -> None:
    model, callback = make_bert(), SecateurCallback(sparsity=0.8, begin=0.2, end=0.7, allocation="uniform")
    fit(model, callback, max_steps=10)
    assert callback.pruner is not None
    expected = Plan(sparsity=0.8, allocation="uniform", schedule="cubic", begin=2, end=7)
    assert callback.pruner.plan == expected
    assert [point.step for point in callback.pruner.history] == [2, 3, 4, 5, 6, 7]


def test_one_shot_before_the_first_step() -> None:
    model, callback = make_bert(), SecateurCallback(sparsity=0.5)
    twin = copy.deepcopy(model)
    masks = sc.prune(twin, sparsity=0.5)
    fit(model, callback, max_steps=2)
    assert callback.masks is not None
    assert all(torch.equal(callback.masks[name], masks[name]) for name in masks)
    callback.masks.check()


def test_it_holds_the_masks_of_a_model_that_was_pruned_before() -> None:
    model, callback = make_bert(), SecateurCallback()
    batch = {key: torch.stack([one[key] for one in make_sentences(8)]) for key in make_sentences(1)[0]}
    masks = sc.prune(model, sparsity=0.6, criterion="snip", data=[batch])
    before, start = {name: masks[name] for name in masks}, copy.deepcopy(model)
    trainer = fit(model, callback, logging_strategy="steps", logging_steps=1)
    assert callback.masks is masks
    assert callback.pruner is None
    masks.check()
    assert all(torch.equal(before[name], masks[name]) for name in masks)
    assert not torch.equal(model.classifier.weight, start.classifier.weight), "nothing was trained"  # type: ignore[union-attr]
    assert trainer.state.log_history[0]["sparsity"] == pytest.approx(0.6, abs=0.01)


def test_a_second_training_goes_on() -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    trainer = fit(model, callback)
    pruner = callback.pruner
    trainer.train()
    assert callback.pruner is pruner
    assert pruner is not None
    assert pruner.clock == 12
    assert len(pruner.history) == len(GRADUAL.updates)
    pruner.masks.check()


def test_another_model_gets_another_pruner() -> None:
    callback = SecateurCallback(GRADUAL)
    first, second = make_bert(), make_bert()
    fit(first, callback)
    masks = callback.masks
    fit(second, callback)
    assert callback.masks is not masks
    assert callback.masks is sc.find_masks(second)
    expect_equal(first, second)


def test_the_sparsity_stands_in_the_logs(capsys: pytest.CaptureFixture[str]) -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    steps = {"logging_strategy": "steps", "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    trainer = make_trainer(model, [callback], **steps)
    result = trainer.train()
    assert callback.masks is not None
    history = trainer.state.log_history
    by_step = {entry["step"]: entry["sparsity"] for entry in history if "loss" in entry}
    targets = sum(mask.numel() for mask in callback.masks.values())
    due = {step: 1 - round((1 - GRADUAL.sparsity_at(step)) * targets) / targets for step in GRADUAL.updates}
    assert by_step[1] == 0.0
    for step, sparsity in due.items():
        assert by_step[step] == pytest.approx(sparsity, abs=1 / targets)
    assert by_step[4] == by_step[3]
    assert all("sparsity" in entry for entry in history)
    assert result.metrics["sparsity"] == pytest.approx(0.75, abs=1 / targets)
    assert "'sparsity': '0.75'" in capsys.readouterr().out


def test_frozen_weights_are_pruned_while_adapters_train() -> None:
    model = make_bert()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name.startswith("classifier")
    start = copy.deepcopy(model)
    callback = SecateurCallback(sparsity=0.75, begin=1, end=5, exclude="classifier*")
    trainer = fit(model, callback)
    assert callback.masks is not None
    assert callback.pruner is not None
    assert callback.pruner.clock == 6
    assert 0.74 < callback.masks.shares().units < 0.76
    for name, before in start.named_parameters():
        after = model.get_parameter(name)
        mask = callback.masks.get(name)
        if mask is None:
            assert torch.equal(after, before) == (not name.startswith("classifier")), name
        else:
            assert torch.equal(after, torch.where(mask, before, 0)), name
    trainer.train()
    assert callback.pruner.clock == 12, "the clock of the first training ticked too"


def test_gradients_of_frozen_weights_are_asked_for_in_vain() -> None:
    model = make_bert()
    model.bert.encoder.requires_grad_(False)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"frozen \(bert.encoder.*exclude="):
        fit(model, SecateurCallback(STREAMED))
    assert sc.find_masks(model) is None


def test_tied_weights_are_masked_once(tmp_path: Path) -> None:
    model = make_llama()
    assert model.lm_head.weight is model.model.embed_tokens.weight  # type: ignore[union-attr]
    callback = SecateurCallback(sparsity=0.5, targets=["model.embed_tokens.weight", "lm_head.weight", "*down_proj*"])
    fit(model, callback, data=words(16), max_steps=3)
    assert callback.masks is not None
    assert sorted(callback.masks) == ["model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"]
    callback.masks.check()
    callback.save_pretrained(tmp_path / "sparse")
    again = type(model).from_pretrained(tmp_path / "sparse")  # type: ignore[attr-defined]
    assert again.lm_head.weight is again.model.embed_tokens.weight
    expect_equal(again, model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "this one has none: prune it first"),
        ({"sparsity": 0.5, "targets": "decoder*"}, "decoder"),
        ({"sparsity": 0.5, "unit": "channel"}, "give example_inputs="),
    ],
)
def test_what_does_not_fit_the_model_is_refused(options: dict[str, Any], message: str) -> None:
    model = make_bert()
    start = copy.deepcopy(model)
    with pytest.raises(ValueError, match=message):
        fit(model, SecateurCallback(**options))
    expect_equal(model, start)
    assert sc.find_masks(model) is None


def test_a_plan_that_training_is_too_short_for_is_said() -> None:
    model, callback = make_bert(), SecateurCallback(sparsity=0.8, begin=0, end=100)
    with pytest.warns(UserWarning, match=r"at step 100, and training ends at step 2: .* 0\.047, not 0\.8"):
        fit(model, callback, max_steps=2)
    assert callback.masks is not None
    callback.masks.check()


def test_masks_of_before_and_a_plan_do_not_mix() -> None:
    model = make_bert()
    masks = sc.prune(model, sparsity=0.5)
    with pytest.raises(ValueError, match="already has masks"):
        fit(model, SecateurCallback(GRADUAL))
    assert sc.find_masks(model) is masks
    masks.check()


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "secateur.integrations.trainer")
    with pytest.raises(ImportError, match=r"pip install secateur\[hf\]"):
        importlib.import_module("secateur.integrations.trainer")


def test_secateur_alone_imports_neither_library() -> None:
    code = "import sys, secateur; print(sorted({'transformers', 'pytorch_lightning', 'accelerate'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
