"""The table of readers of activations. To add a statistic: a reader in a file of its own, and a row here."""

from __future__ import annotations

from secateur.model.evidence.covariance import COVARIANCE
from secateur.model.evidence.feature_maps import FEATURE_MAPS
from secateur.model.evidence.features import FEATURES
from secateur.model.evidence.moments import MOMENTS
from secateur.model.evidence.readers import ReaderRow

__all__ = ["READERS"]

READERS: tuple[ReaderRow, ...] = (MOMENTS, FEATURES, COVARIANCE, FEATURE_MAPS)
