"""Evidence of data-parallel ranks, each with batches of its own: two processes, and the table of collectors."""

from __future__ import annotations

from pathlib import Path

from secateur.core import evidence_needed
from secateur.model.evidence.table import COLLECTORS
from tests.masks import worker_ranks
from tests.masks.gloo import spawn


def test_two_ranks_with_a_share_of_the_batches_find_what_one_process_finds_with_all(tmp_path: Path) -> None:
    spawn(worker_ranks.work, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"], "both came to the end"


def test_every_collector_says_what_becomes_of_ranks_and_those_that_combine_are_tried() -> None:
    """What reads batches is combined, or the first rank's; the list of the worker leaves no row of the table out."""
    tried = {kind for name, _, _ in worker_ranks.OF_ALL for kind in evidence_needed(name)} | {"contribution_gram"}
    for row in COLLECTORS:
        assert (row.ranks == "alike") == (not row.data), row.kinds
        assert row.ranks != "all" or tried & row.kinds.keys(), f"no rank was asked for {list(row.kinds)}"
    assert [list(row.kinds) for row in COLLECTORS if row.ranks == "first"] == [["meta_grad", "meta_gate"]]
