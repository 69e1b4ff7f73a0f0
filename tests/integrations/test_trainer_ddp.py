"""SecateurCallback where two processes train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.integrations.mask_files import MASKS_FILE
from secateur.integrations.trainer import STATE_FILE
from tests.integrations.worker_trainer_ddp import (
    lightning_reads_all_ranks,
    prunes_and_resumes,
    trainer_reads_all_ranks,
)
from tests.masks.gloo import spawn


@pytest.mark.slow
def test_two_processes_prune_alike_and_resume(tmp_path: Path) -> None:
    spawn(prunes_and_resumes, tmp_path)
    assert all((tmp_path / f"done{rank}").exists() for rank in range(2))
    assert (tmp_path / "out" / MASKS_FILE).is_file()
    assert (tmp_path / "out" / "checkpoint-2" / STATE_FILE).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("work", [trainer_reads_all_ranks, lightning_reads_all_ranks])
def test_two_processes_decide_by_what_both_of_them_read(work: Callable[[int, Path], None], tmp_path: Path) -> None:
    spawn(work, tmp_path)
    assert all((tmp_path / f"done{rank}").exists() for rank in range(2))
