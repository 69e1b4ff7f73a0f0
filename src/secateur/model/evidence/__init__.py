"""Evidence: from a model, and batches where needed, to the tensors that criteria read. See `table` to add a kind."""

from secateur.model.evidence.source import Source
from secateur.model.evidence.table import DATA_KINDS, EXAMPLE_KINDS, GRADIENT_KINDS, KINDS, collect

__all__ = ["DATA_KINDS", "EXAMPLE_KINDS", "GRADIENT_KINDS", "KINDS", "Source", "collect"]
