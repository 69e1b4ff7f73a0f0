"""A run that is killed goes on as if it had not been."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import secateur as sc
from secateur.records import Trial, Trials
from secateur.train.compress import Goal, compress, road
from tests.structure.tree import ROOT
from tests.train.compress.killed import main
from tests.train.compress.nets import digits, no_clock, recovery, trained_mlp


def timeless(record: Trials) -> dict[str, Any]:
    """The record without what a clock says, and without where it is kept."""

    def still(trial: Trial) -> Trial:
        return dataclasses.replace(trial, seconds=0.0)

    rivals = tuple(r if r.trial is None else dataclasses.replace(r, trial=still(r.trial)) for r in record.rivals)
    points = tuple(map(still, record.points))
    return dataclasses.replace(record, points=points, rivals=rivals, folder=None).to_record()


def test_killed_in_the_middle_it_ends_with_the_same_record(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    killed = subprocess.run(
        [sys.executable, "-m", "tests.train.compress.killed", str(folder), "16"], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    lines = [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("point") == 1  # 10 steps each: the second was in its sixth
    assert len(list((folder / "points").glob("*.checkpoint"))) == 1
    result, straight = main(str(folder), None), main(str(tmp_path / "straight"), None)
    assert timeless(result.record) == timeless(straight.record)
    x = digits().test[0]
    assert torch.equal(result.model(x), straight.model(x))
    assert list((folder / "points").glob("*.checkpoint")) == []
    chosen = folder / "points" / f"{result.record.chosen}.safetensors"
    assert chosen.stat().st_size == result.record.point(result.record.chosen).bytes
    assert torch.equal(sc.load(chosen, into=trained_mlp())(x), result.model(x))


def test_a_finished_run_is_not_run_again_and_another_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_clock(monkeypatch)
    data, goal = digits(), Goal(bytes=0.5)
    choices: dict[str, Any] = {"recovery": recovery, "trials": 2, "rivals": False, "progress": False}

    def run(goal: Goal, **other: Any) -> Any:
        model = other.pop("model", trained_mlp())
        return compress(model, data.train, data.valid, goal=goal, folder=tmp_path, **(choices | other))

    first = run(goal)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("it trained again")

    monkeypatch.setattr(road, "fit", never)
    assert run(goal).record == first.record
    other = trained_mlp()
    with torch.no_grad():
        other[0].weight[0, 0] += 1
    for changed, why in (
        ({"goal": Goal(bytes=0.4)}, "differs in goal"),
        ({"goal": goal, "model": other}, "differs in model"),
        ({"goal": goal, "recovery": dataclasses.replace(recovery, epochs=2)}, "differs in recovery"),
        ({"goal": goal, "seed": 1}, "differs in seed"),
    ):
        with pytest.raises(ValueError, match=why):
            run(**changed)
