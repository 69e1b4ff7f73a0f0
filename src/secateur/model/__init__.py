"""Knows ``nn.Module``: targets, evidence, and the masks beside a model."""

from __future__ import annotations

from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.model.registry import find_masks
from secateur.model.targets import find_targets

__all__ = ["Masks", "find_masks", "find_targets", "masked"]
