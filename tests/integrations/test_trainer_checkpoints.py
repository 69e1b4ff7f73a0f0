"""SecateurCallback and what the Trainer writes: checkpoints that go on, folders that load, the best model."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.integrations.mask_files import MASKS_FILE
from secateur.integrations.trainer import STATE_FILE, SecateurCallback, load_masks
from secateur.train.plan import Plan
from tests.integrations.training import GRADUAL, fit, make_llama, make_trainer, words
from tests.masks.nets import expect_equal
from tests.masks.trainers import make_bert, quiet

SAVING = {"save_strategy": "steps", "save_steps": 2}
EXAMPLE = {"input_ids": torch.ones(2, 5, dtype=torch.long)}


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path) -> Iterator[None]:
    with quiet(tmp_path):
        yield


def expect_same_run(one: SecateurCallback, other: SecateurCallback) -> None:
    assert one.masks is not None
    assert other.masks is not None
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    assert one.pruner is not None
    assert other.pruner is not None
    assert one.pruner.history == other.pruner.history
    assert one.pruner.clock == other.pruner.clock


CALLBACKS: dict[str, Callable[[], SecateurCallback]] = {
    "magnitude": lambda: SecateurCallback(GRADUAL),
    "shares": lambda: SecateurCallback(sparsity=0.7, begin=0.2, end=0.9, every=2),
    "streamed": lambda: SecateurCallback(Plan(0.7, criterion="movement", schedule="linear", begin=1, end=5)),
    "soft": lambda: SecateurCallback(Plan(0.7, schedule="linear", begin=1, end=5, policy="soft")),
    "channel": lambda: SecateurCallback(
        Plan(0.5, unit="channel", schedule="linear", begin=1, end=5), example_inputs=EXAMPLE
    ),
}


@pytest.mark.parametrize("kind", CALLBACKS)
def test_a_resumed_run_ends_with_the_same_weights(kind: str) -> None:
    whole, model = CALLBACKS[kind](), make_bert()
    fit(model, whole, **SAVING)
    again, resumed = make_bert(), CALLBACKS[kind]()
    fit(again, resumed, "out/checkpoint-2", **SAVING)
    expect_equal(again, model)
    expect_same_run(resumed, whole)
    sc.find_masks(again).undo()  # type: ignore[union-attr]
    sc.find_masks(model).undo()  # type: ignore[union-attr]
    expect_equal(again, model)


def test_the_same_trainer_can_go_back_to_a_checkpoint() -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    trainer = fit(model, callback, **SAVING)
    expected = copy.deepcopy(model.state_dict())
    trainer.train(resume_from_checkpoint="out/checkpoint-2")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert callback.pruner is not None
    assert [point.step for point in callback.pruner.history] == [1, 3, 5]


def test_the_last_checkpoint_is_found_and_a_resumed_run_can_be_resumed() -> None:
    model = make_bert()
    fit(model, SecateurCallback(GRADUAL), **SAVING)
    for step in (4, 6):
        shutil.rmtree(f"out/checkpoint-{step}")
    fit(make_bert(), SecateurCallback(GRADUAL), "out/checkpoint-2", **SAVING)
    shutil.rmtree("out/checkpoint-6")
    again = make_bert()
    trainer = fit(again, SecateurCallback(GRADUAL), Path("out/checkpoint-4"), **SAVING)
    assert trainer.state.global_step == 6
    expect_equal(again, model)


def test_held_masks_come_back_with_the_checkpoint() -> None:
    model = make_bert()
    sc.prune(model, sparsity=0.6)
    whole = SecateurCallback()
    fit(model, whole, **SAVING)
    again, resumed = make_bert(), SecateurCallback()
    fit(again, resumed, "out/checkpoint-4", **SAVING)
    expect_equal(again, model)
    assert resumed.masks is not None
    assert whole.masks is not None
    assert all(torch.equal(resumed.masks[name], whole.masks[name]) for name in whole.masks)


def test_another_plan_is_refused_and_the_model_left_alone() -> None:
    fit(make_bert(), SecateurCallback(GRADUAL), **SAVING)
    shares = {"sparsity": 0.75, "begin": 0.2, "end": 0.8}
    other = Plan(sparsity=0.5, schedule="cubic", begin=1, end=5, every=2)
    for callback, message in (
        (SecateurCallback(other), "another plan; it differs in sparsity"),
        (SecateurCallback(**shares), r"differs in every\. begin and end are shares"),
        (SecateurCallback(), "is of a run with a plan"),
    ):
        model = make_bert()
        with pytest.raises(ValueError, match=message):
            fit(model, callback, "out/checkpoint-4")
        assert sc.find_masks(model) is None
        assert callback.masks is None


def test_a_checkpoint_of_a_run_without_the_callback_is_refused() -> None:
    make_trainer(make_bert(), [], **SAVING).train()
    with pytest.raises(ValueError, match="checkpoint-2 was saved without SecateurCallback"):
        fit(make_bert(), SecateurCallback(GRADUAL), "out/checkpoint-2")
    model = make_bert()
    masks = sc.prune(model, sparsity=0.5)
    fit(model, SecateurCallback(), "out/checkpoint-2", **SAVING)
    masks.check()


def test_a_moved_checkpoint_is_asked_for_and_a_stale_one_is_not_taken() -> None:
    model = make_bert()
    fit(model, SecateurCallback(GRADUAL), **SAVING)
    shutil.move("out/checkpoint-2", "kept")
    with pytest.raises(ValueError, match=r"the resumed checkpoint-2 was not found.*elsewhere.*checkpoint=folder"):
        fit(make_bert(), SecateurCallback(GRADUAL), "kept", output_dir="elsewhere")
    again = make_bert()
    fit(again, SecateurCallback(GRADUAL, checkpoint="kept"), "kept", output_dir="elsewhere")
    expect_equal(again, model)
    fit(make_bert(), SecateurCallback(GRADUAL), **SAVING, seed=1)  # another run, into the folder of the first
    with pytest.raises(ValueError, match="was not found"):
        fit(make_bert(), SecateurCallback(GRADUAL), "kept")


def test_a_checkpoint_in_another_folder_is_found_where_it_was_written() -> None:
    model = make_bert()
    fit(model, SecateurCallback(GRADUAL), **SAVING)
    again = make_bert()
    fit(again, SecateurCallback(GRADUAL), "out/checkpoint-2", output_dir="elsewhere")
    expect_equal(again, model)


def test_what_lies_in_the_folders() -> None:
    model = make_bert()
    fit(model, SecateurCallback(GRADUAL), **SAVING)
    assert {path.name for path in Path("out").iterdir()} == {*(f"checkpoint-{n}" for n in (2, 4, 6)), MASKS_FILE}
    assert {STATE_FILE, MASKS_FILE, "model.safetensors"} <= {path.name for path in Path("out/checkpoint-2").iterdir()}
    torch.load("out/checkpoint-2/" + STATE_FILE, weights_only=True)
    fit(make_bert(), SecateurCallback(GRADUAL), **SAVING, save_only_model=True, output_dir="small")
    assert STATE_FILE not in {path.name for path in Path("small/checkpoint-2").iterdir()}
    assert (Path("small/checkpoint-2") / MASKS_FILE).is_file()


def test_every_checkpoint_loads_in_plain_transformers_and_takes_its_masks_back() -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    fit(model, callback, **SAVING)
    assert callback.pruner is not None
    for step, kept in ((2, 0), (4, 1), (6, 2)):
        folder = f"out/checkpoint-{step}"
        loaded = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
        assert sc.find_masks(loaded) is None
        masks = load_masks(loaded, folder)
        assert sum(masks.kept(name) for name in masks) == callback.pruner.history[kept].kept


def test_from_pretrained_to_a_small_file_and_on_with_training(tmp_path: Path) -> None:
    model, callback = make_llama(), SecateurCallback(sparsity=0.8, begin=1, end=4)
    fit(model, callback, data=words(24))
    callback.save_pretrained(tmp_path / "sparse")
    loaded: Any = type(model).from_pretrained(tmp_path / "sparse")  # type: ignore[attr-defined]
    expect_equal(loaded, model)
    masks = load_masks(loaded, tmp_path / "sparse")
    size = sc.save(loaded, tmp_path / "small.safetensors")
    assert size == sc.save(model, tmp_path / "direct.safetensors")
    config = type(loaded.config).from_pretrained(tmp_path / "sparse")
    again = sc.load(tmp_path / "small.safetensors", into=lambda: type(loaded)(config))
    expect_equal(again, model)
    fit(loaded, SecateurCallback(), data=words(24), output_dir="tuned")
    masks.check()
    assert not torch.equal(loaded.model.embed_tokens.weight, again.model.embed_tokens.weight)
    trained = type(model).from_pretrained(tmp_path / "sparse")  # type: ignore[attr-defined]
    make_trainer(trained, [], data=words(24), output_dir="dense").train()
    with pytest.raises(ValueError, match="are not zero where these masks remove them"):
        load_masks(trained, tmp_path / "sparse")


def test_saving_refuses_before_training_and_when_zeros_grew_back(tmp_path: Path) -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    with pytest.raises(ValueError, match="no masks yet"):
        callback.save_pretrained(tmp_path / "sparse")
    fit(model, callback)
    with torch.no_grad():
        model.classifier.weight.fill_(1.0)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="no longer zero"):
        callback.save_pretrained(tmp_path / "sparse")
    assert not (tmp_path / "sparse").exists()


def scripted(values: list[float]) -> Callable[[Any], dict[str, float]]:
    """A metric that says at each evaluation what the test wants."""
    left = iter(values)
    return lambda _: {"score": next(left)}


@pytest.mark.parametrize(
    ("values", "options", "best"),
    [
        ([0.9, 0.8, 0.7, 0.3, 0.5, 0.4], {}, 5),  # the plan ends at 5: what was better before is not as sparse
        ([0.9, 0.8, 0.7, 0.3, 0.5, 0.6], {}, 6),
        ([0.9, 0.8], {"max_steps": 2}, 2),  # training ended before the plan did: the last is the sparsest
    ],
)
def test_the_best_model_is_one_of_full_sparsity(values: list[float], options: dict[str, Any], best: int) -> None:
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    arguments = {**steps, **chosen, "compute_metrics": scripted(values), **options}
    if options:
        with pytest.warns(UserWarning, match="last update is at step 5"):
            trainer = fit(model, callback, **arguments)
    else:
        trainer = fit(model, callback, **arguments)
    assert trainer.state.best_global_step == best
    expect_equal(model, type(model).from_pretrained(f"out/checkpoint-{best}"))  # type: ignore[attr-defined]
    assert callback.masks is not None
    callback.masks.check()


@pytest.mark.parametrize("first", [True, False])
def test_training_is_not_stopped_early_for_what_pruning_costs(first: bool) -> None:
    from transformers import EarlyStoppingCallback

    callback, early = SecateurCallback(GRADUAL), EarlyStoppingCallback(early_stopping_patience=2)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    score = scripted([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    callbacks = [callback, early] if first else [early, callback]
    trainer = make_trainer(make_bert(), callbacks, **steps, **chosen, compute_metrics=score, max_steps=12)
    trainer.train()
    assert trainer.state.global_step == 7, "two worse ones after the last update, at 5"
    assert trainer.state.best_global_step == 5


def test_a_training_that_is_stopped_before_the_plan_ends_keeps_its_last_model() -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 3

    model, callback = make_bert(), SecateurCallback(GRADUAL)
    steps = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    chosen = {"load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True}
    trainer = make_trainer(model, [callback, Stop()], **steps, **chosen, compute_metrics=scripted([0.9]))
    trainer.train()
    assert trainer.state.best_global_step is None
    assert callback.masks is not None
    assert callback.pruner is not None
    assert [point.step for point in callback.pruner.history] == [1, 3]
    assert sum(callback.masks.kept(name) for name in callback.masks) == callback.pruner.history[1].kept
    callback.masks.check()


def test_trials_of_a_search_have_folders_of_their_own() -> None:
    """As ``hyperparameter_search`` lays them out, which needs a package more."""
    model, callback = make_bert(), SecateurCallback(GRADUAL)
    trainer = make_trainer(model, [callback], **SAVING)
    trainer._get_output_dir = lambda trial: str(Path("out") / "run-0")
    trainer.train()
    assert (Path("out/run-0/checkpoint-2") / STATE_FILE).is_file()


def test_the_state_of_the_trainer_stays_json() -> None:
    fit(make_bert(), SecateurCallback(GRADUAL), **SAVING)
    known = json.loads(Path("out/checkpoint-2/trainer_state.json").read_text())["stateful_callbacks"]
    assert set(known) == {"TrainerControl", "secateur"}
    fit(make_bert(), SecateurCallback(GRADUAL), "out/checkpoint-2", restore_callback_states_from_checkpoint=True)
