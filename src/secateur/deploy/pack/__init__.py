"""From a model to programs: export, regions, lowering, the choice by measurement, the module that runs."""

from __future__ import annotations

from secateur.deploy.pack.costs import CostTable, LayerCost, cost_table
from secateur.deploy.pack.packed import PackedModel, pack
from secateur.records import Explanation, LayerLine

__all__ = ["CostTable", "Explanation", "LayerCost", "LayerLine", "PackedModel", "cost_table", "pack"]
