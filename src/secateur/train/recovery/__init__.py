"""Recovery after pruning: fine-tuning, rewinding, lottery tickets and their controls, training from scratch."""

from __future__ import annotations

from secateur.train.recovery.dense_sparse_dense import DenseSparseDense, dense_sparse_dense
from secateur.train.recovery.recover import RECOVERIES, recover
from secateur.train.recovery.rounds import prune_rounds
from secateur.train.recovery.row import Round, Rounds
from secateur.train.recovery.scratch import Scratch, scratch, scratch_epochs

__all__ = [
    "RECOVERIES",
    "DenseSparseDense",
    "Round",
    "Rounds",
    "Scratch",
    "dense_sparse_dense",
    "prune_rounds",
    "recover",
    "scratch",
    "scratch_epochs",
]
