"""The sizes and the speed of a candidate: its real file, its counts, the clock."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.deploy.files import save
from secateur.measure.count import count
from secateur.measure.latency import against_itself
from secateur.records import Score, Trial
from secateur.train.compress.setting import Setting

__all__ = ["Speeds", "as_trial", "clocked", "file_bytes", "sizes_of"]

_ROUNDS = 30
_BUDGET_S = 10.0
_QUIET = 1.2
_TIMES = 3


@dataclass(frozen=True)
class Speeds:
    """Milliseconds per call, the ratio to dense in the same rounds, and what equal models' ratios spread over."""

    ms: float
    speedup: float
    spread: tuple[float, float]


def file_bytes(model: nn.Module) -> int:
    """Bytes of the file that ``sc.save(model, path)`` writes.

    Args:
        model: with its masks, if it has any.
    """
    with tempfile.TemporaryDirectory() as folder:
        return save(model, Path(folder) / "model.safetensors")


def sizes_of(setting: Setting, model: nn.Module) -> dict[str, float]:
    """Bytes of the file, parameters kept, multiply-adds that run.

    Args:
        setting: of the run.
        model: a candidate.

    Returns:
        ``bytes``, ``params``, ``macs``.
    """
    counts = count(model, setting.example)
    return {"bytes": file_bytes(model), "params": counts.kept, "macs": counts.macs}


def clocked(setting: Setting, model: nn.Module, *, rounds: int = _ROUNDS) -> Speeds:
    """Candidate and dense model in the same rounds, one thread, with dense measured a second time.

    Where equal models differ by more than a fifth the machine is busy: then it is measured up to three times, and the
    time with the narrowest spread counts, whatever its ratio.

    Args:
        setting: of the run.
        model: a candidate.
        rounds: interleaved rounds.

    Returns:
        Medians, and the spread of the ratio.
    """
    best: Speeds | None = None
    for _ in range(_TIMES):
        found = against_itself(
            setting.dense, model, setting.inputs, (setting.batch,), rounds=rounds, threads=1, budget_s=_BUDGET_S
        )
        now = Speeds(found.latency[1][0].median_ms, found.ratio[0], found.spread[0])
        best = now if best is None or now.spread[1] < best.spread[1] else best
        if best.spread[1] <= _QUIET:
            break
    assert best is not None
    return best


def as_trial(setting: Setting, model: nn.Module, valid: Score, **known: Any) -> Trial:
    """The record of one model: what is known of it, and what is measured here.

    Args:
        setting: of the run.
        model: to be measured.
        valid: its score.
        known: the other fields of ``Trial``.

    Returns:
        The record.
    """
    sizes, speed = sizes_of(setting, model), clocked(setting, model)
    own: dict[str, Any] = {"family": "", "strength": 0.0, "sparsities": (), "untrained": None, "test": None}
    own |= {"epochs": 0, "steps": 0, "seconds": 0.0}
    own |= {"bytes": int(sizes["bytes"]), "params": int(sizes["params"]), "macs": int(sizes["macs"])}
    own |= {"ms": speed.ms, "speedup": speed.speedup, "spread": speed.spread}
    return Trial(valid=valid, **(own | known))
