"""Two processes: data-parallel, sharded before and after pruning, and distributed checkpoints.

Each spawn imports torch twice, so the checks of one topic share one; the workers raise what fails.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.masks import worker_checkpoint, worker_ddp, worker_fsdp
from tests.masks.gloo import spawn


@pytest.mark.parametrize(
    "work",
    [worker_ddp.work, worker_fsdp.work, worker_checkpoint.work],
    ids=["data-parallel", "sharded", "checkpoints"],
)
def test_two_processes_agree_with_one_that_sees_the_whole_batch(
    work: Callable[[int, Path], None], tmp_path: Path
) -> None:
    spawn(work, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("done*")) == ["done0", "done1"], "both came to the end"
