"""Evidence: from a model, and batches where needed, to the tensors that criteria read. See `table` to add a kind."""

from secateur.model.evidence.source import Source
from secateur.model.evidence.table import (
    DATA_KINDS,
    EXAMPLE_KINDS,
    FORWARD_KINDS,
    GRADIENT_KINDS,
    KINDS,
    collect,
    streamers,
)
from secateur.model.evidence.training_passes import TrainingPasses

__all__ = [
    "DATA_KINDS",
    "EXAMPLE_KINDS",
    "FORWARD_KINDS",
    "GRADIENT_KINDS",
    "KINDS",
    "Source",
    "TrainingPasses",
    "collect",
    "streamers",
]
