"""Iterative pruning that stops: folders that are gone on with, failures that leave no trace."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.train.loop.snapshot import model_tensors
from secateur.train.recovery import prune_rounds
from secateur.train.recovery.row import Rounds
from tests.train.recovery.nets import blobs, counts, mlp, state, trained, training


class Stop(BaseException):
    pass


def stopping(steps: int):
    """A loss that gives up after so many calls."""
    calls = []

    def loss(output, labels):
        calls.append(1)
        if len(calls) > steps:
            raise Stop
        return torch.nn.functional.cross_entropy(output, labels)

    return loss


def test_masks_that_came_in_a_failed_round_keep_everything_again() -> None:
    net, _, first = trained()
    masks = sc.prune(net, 0.5, targets="0")
    before = state(net)
    with pytest.raises(Stop):
        prune_rounds(net, blobs(), training(2, loss=stopping(4)), rounds=1, snapshot=first, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    assert sc.find_masks(net) is masks
    assert counts(net) == {"0.weight": 36, "3.weight": 96, "5.weight": 24}
    masks.check()


@pytest.mark.parametrize("finished", [0, 2])
def test_a_failed_round_leaves_the_round_before(finished) -> None:
    net, _, first = trained()
    seen = [model_tensors(net)]
    broken = training(2, loss=stopping(finished * 6 + 4))
    with pytest.raises(Stop):
        prune_rounds(
            net, blobs(), broken, rounds=5, snapshot=first, progress=False,
            on_round=lambda row, model: seen.append(model_tensors(model)),
        )  # fmt: skip
    assert len(seen) == finished + 1
    assert all(torch.equal(seen[-1][name], tensor) for name, tensor in model_tensors(net).items())
    masks = sc.find_masks(net)
    if finished == 0:
        assert masks is None
    else:
        assert sum(map(masks.kept, masks)) == 123
        masks.check()


def test_a_folder_is_gone_on_with_in_mid_round_and_extended(tmp_path) -> None:
    net, given, first = trained()
    whole = prune_rounds(net, blobs(), given, rounds=3, snapshot=first, folder=tmp_path / "whole", progress=False)

    other, _, again = trained()
    calls = []

    def late(row, model) -> None:
        calls.append(row.index)
        if calls == [1, 2]:
            raise Stop

    with pytest.raises(Stop):
        prune_rounds(
            other, blobs(), given, rounds=2, snapshot=again, folder=tmp_path / "cut", on_round=late, progress=False
        )
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        "rounds.json", "round-01.safetensors", "round-02.safetensors", "round-02.checkpoint", "round-02.masks",
    }  # fmt: skip
    fresh, _, again = trained()  # as in another process
    done = prune_rounds(
        fresh, blobs(), given, rounds=3, snapshot=again, folder=tmp_path / "cut", on_round=late, progress=False
    )
    assert calls == [1, 2, 2, 3]
    assert [row.kept for row in done.rows] == [row.kept for row in whole.rows] == [154, 123, 98]
    assert all(torch.equal(state(net)[name], tensor) for name, tensor in state(fresh).items())
    assert {path.name for path in (tmp_path / "cut").iterdir()} == {
        "rounds.json", *(f"round-0{index}.safetensors" for index in (1, 2, 3)),
    }  # fmt: skip
    assert [Path(row.file).name for row in done.rows] == [f"round-0{index}.safetensors" for index in (1, 2, 3)]


def test_a_finished_folder_brings_any_round_back(tmp_path) -> None:
    net, given, first = trained()
    kept = []
    prune_rounds(
        net, blobs(), given, rounds=3, snapshot=first, folder=tmp_path, progress=False,
        on_round=lambda row, model: kept.append(state(model)),
    )  # fmt: skip
    for rounds in (2, 3, 1):  # the model has other masks each time
        done = prune_rounds(net, blobs(), given, rounds=rounds, snapshot=first, folder=tmp_path, progress=False)
        assert len(done.rows) == rounds
        assert all(torch.equal(kept[rounds - 1][name], tensor) for name, tensor in state(net).items())
        sc.find_masks(net).check()
    loaded = sc.load(done.rows[0].file, into=mlp())
    assert all(torch.equal(kept[0][name], tensor) for name, tensor in state(loaded).items())


def test_the_masks_of_a_round_that_was_begun_are_taken_again(tmp_path) -> None:
    """Scores may come out otherwise the second time: here the criterion says the opposite then."""
    net, given, first = trained()
    sign, calls = [1.0], []

    def criterion(weight):
        return sign[0] * weight.abs()

    def progress(steps: int = 1) -> None:
        calls.append(steps)
        if len(calls) == 4:
            raise Stop

    expected = sc.prune(net, 0.5, inplace=False)[1]
    for sign[0], fails in ((1.0, True), (-1.0, False)):
        again = {"sparsities": [0.5], "snapshot": first, "criterion": criterion, "folder": tmp_path}
        if fails:
            with pytest.raises(Stop):
                prune_rounds(net, blobs(), given, progress=progress, **again)
            assert (tmp_path / "round-01.checkpoint").exists()
            assert sc.find_masks(net) is None
        else:
            prune_rounds(net, blobs(), given, progress=progress, **again)
    assert all(torch.equal(sc.find_masks(net)[name], expected[name]) for name in expected)


@pytest.mark.parametrize("change", ["rate", "training", "snapshot", "sparsities", "how"])
def test_a_folder_of_another_run_is_refused_and_nothing_touched(change, tmp_path) -> None:
    net, given, first = trained()
    amount = {"sparsities": [0.2, 0.4]} if change == "sparsities" else {"rounds": 1}
    prune_rounds(net, blobs(), given, snapshot=first, folder=tmp_path, progress=False, **amount)
    before = state(net)
    choices = {"snapshot": first, **amount}
    if change == "rate":
        choices["rate"] = 0.3
    elif change == "training":
        given = training(2, lr=0.2)
    elif change == "sparsities":
        choices["sparsities"] = [0.3, 0.4]
    elif change == "how":
        choices |= {"how": "rewind_lr", "epochs": 2, "snapshot": None}
    else:
        choices["snapshot"] = trained(lr=0.3)[2]
        choices["snapshot"].model["0.bias"].add_(1)
    with pytest.raises(ValueError, match=f"another run .*{change}"):
        prune_rounds(net, blobs(), given, folder=tmp_path, progress=False, **choices)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(net).items())
    with pytest.raises(ValueError, match="is a file; give a folder"):
        prune_rounds(net, blobs(), given, **{**choices, "folder": tmp_path / "rounds.json"})
    (tmp_path / "rounds.json").write_text("[]")
    with pytest.raises(ValueError, match="no list of rounds"):
        prune_rounds(net, blobs(), given, folder=tmp_path, progress=False, **choices)


def test_a_folder_is_of_one_dense_model(tmp_path) -> None:
    """Without a snapshot nothing else tells them apart: rounds of the first would come back as those of the second."""
    choices = {"how": "finetune", "epochs": 1, "folder": tmp_path, "progress": False}
    net, given, _ = trained()
    prune_rounds(net, blobs(), given, rounds=1, **choices)
    prune_rounds(net, blobs(), given, rounds=2, **choices)  # with masks it is gone on with
    other = trained(lr=0.3)[0]
    before = state(other)
    with pytest.raises(ValueError, match=r"another run .*model"):
        prune_rounds(other, blobs(), given, rounds=2, **choices)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(other).items())
    assert len(prune_rounds(trained()[0], blobs(), given, rounds=2, **choices).rows) == 2
    text = json.loads((tmp_path / "rounds.json").read_text())
    del text["settings"]["model"]  # as earlier versions wrote it
    (tmp_path / "rounds.json").write_text(json.dumps(text))
    assert len(prune_rounds(other, blobs(), given, rounds=2, **choices).rows) == 2


SCRIPT = """
import sys
from secateur.train.recovery import prune_rounds
from secateur.train.loop.snapshot import Snapshot
import secateur as sc
from tests.train.recovery.nets import blobs, mlp, training
folder = sys.argv[1]
net, first = mlp(), Snapshot.load(folder + "/first.snapshot")
sc.load(folder + "/dense.safetensors", into=net)
def wait(steps=1):
    print("step", flush=True)
    sys.stdin.readline()
prune_rounds(net, blobs(), training(2), rounds=3, snapshot=first, folder=folder + "/rounds", progress=wait)
"""


def test_a_killed_process_is_gone_on_with_to_the_same_weights(tmp_path) -> None:
    net, given, first = trained()
    first.save(tmp_path / "first.snapshot")
    sc.save(net, tmp_path / "dense.safetensors")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(10):  # in the second epoch of the second round
            assert process.stdout.readline() == "step\n"
            process.stdin.write("go on\n")
            process.stdin.flush()
        process.stdout.readline()
        process.kill()
    assert len(list((tmp_path / "rounds").glob("*.checkpoint"))) == 1
    again, _, _ = trained()
    steps = []
    prune_rounds(
        again, blobs(), given, rounds=3, snapshot=first, folder=tmp_path / "rounds",
        progress=lambda count=1: steps.append(count),
    )  # fmt: skip
    assert steps == [3] + [1] * 3 + [1] * 6  # the second round's first epoch is not made again
    prune_rounds(net, blobs(), given, rounds=3, snapshot=first, progress=False)
    assert all(torch.equal(state(net)[name], tensor) for name, tensor in state(again).items())


def test_rows_can_be_printed_and_written_down() -> None:
    net, given, first = trained()
    done = prune_rounds(net, blobs(), given, rounds=2, snapshot=first, valid=blobs(), progress=False)
    text = str(done)
    assert [line.split()[0] for line in text.splitlines()] == ["round", "1", "2"]
    assert "80.21%" in text
    assert json.loads(json.dumps(done.to_record()))[1]["kept"] == 123
    assert Rounds(()).to_record() == []
