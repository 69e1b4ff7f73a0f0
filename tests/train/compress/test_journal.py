"""What a run remembers on the disk: whole lines only, of one run only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.train.compress.journal import Journal, Shelf
from tests.train.compress.nets import trained_mlp

ABOUT = {"model": "abc", "goal": {"bytes": 0.5}}


def test_a_line_is_on_the_disk_at_once_and_comes_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ABOUT)
    journal.add("cheap", "k", {"bytes": 7})
    lines = [json.loads(line) for line in (tmp_path / "trials.jsonl").read_text().splitlines()]
    assert lines == [{"kind": "run", "key": "", **ABOUT}, {"kind": "cheap", "key": "k", "bytes": 7}]
    journal.close()
    again = Journal(tmp_path, ABOUT)
    assert again.get("cheap", "k") == {"bytes": 7}
    again.close()


def test_a_line_that_was_cut_is_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path, ABOUT)
    journal.add("cheap", "k", {"bytes": 7})
    journal.close()
    path = tmp_path / "trials.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"cheap","key":"half","by')
    again = Journal(tmp_path, ABOUT)
    assert again.get("cheap", "half") is None
    again.add("cheap", "next", {"bytes": 8})
    again.close()
    assert path.read_bytes().startswith(whole)
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()] == ["", "k", "next"]


def test_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    Journal(tmp_path, ABOUT).close()
    before = (tmp_path / "trials.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r'differs in goal: there \{"bytes": 0.5\}, here \{"bytes": 0.25\}'):
        Journal(tmp_path, {**ABOUT, "goal": {"bytes": 0.25}})
    assert (tmp_path / "trials.jsonl").read_bytes() == before
    Journal(tmp_path, ABOUT).close()  # the lock is gone


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    first = Journal(tmp_path, ABOUT)
    with pytest.raises(ValueError, match="another process works in"):
        Journal(tmp_path, ABOUT)
    first.close()


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "trials.jsonl").write_text("my own notes\n")
    with pytest.raises(ValueError, match="line 1 is not of a compress run"):
        Journal(tmp_path, ABOUT)
    assert (tmp_path / "trials.jsonl").read_text() == "my own notes\n"


def test_models_are_kept_in_files_or_as_long_as_they_may_be_chosen(tmp_path: Path) -> None:
    dense = trained_mlp()
    pruned, masks = sc.prune(dense, 0.5, inplace=False)
    memory = Shelf(None, dense)
    memory.put("a", pruned)
    memory.put("b", dense)
    memory.keep({"a"})
    assert memory.get("a") is pruned
    assert memory.get("b") is None
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "a-0.checkpoint").write_text("of its training")
    (tmp_path / "points" / "b-0.checkpoint").write_text("of another")
    files = Shelf(tmp_path, dense)
    files.put("a", pruned)
    files.keep(set())
    again = files.get("a")
    assert again is not None
    assert torch.equal(again[0].weight, pruned[0].weight)
    assert torch.equal(sc.find_masks(again)["0.weight"], masks["0.weight"])  # type: ignore[index]
    assert sorted(path.name for path in (tmp_path / "points").iterdir()) == ["a.safetensors", "b-0.checkpoint"]
