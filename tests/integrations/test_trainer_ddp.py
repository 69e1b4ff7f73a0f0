"""SecateurCallback where two processes train."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.integrations.mask_files import MASKS_FILE
from secateur.integrations.trainer import STATE_FILE
from tests.integrations.worker_trainer_ddp import prunes_and_resumes
from tests.masks.gloo import spawn


@pytest.mark.slow
def test_two_processes_prune_alike_and_resume(tmp_path: Path) -> None:
    spawn(prunes_and_resumes, tmp_path)
    assert all((tmp_path / f"done{rank}").exists() for rank in range(2))
    assert (tmp_path / "out" / MASKS_FILE).is_file()
    assert (tmp_path / "out" / "checkpoint-2" / STATE_FILE).is_file()
