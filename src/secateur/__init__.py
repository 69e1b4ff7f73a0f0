"""Secateur makes neural networks sparse and turns the sparsity into something you can feel.

    import secateur as sc

    masks = sc.prune(model, sparsity=0.9)            # magnitude, global, one shot
    sc.save(model, "model.safetensors")              # a really smaller file
    record = sc.measure(dense=model0, sparse=model, data=test)

The words are in ``docs/concepts.md``; ``secateur methods`` lists what there is.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from secateur.core.combine import combine
from secateur.core.knapsack import knapsack
from secateur.deploy.attention import open_attention
from secateur.deploy.files import load, save
from secateur.deploy.pack import CostTable, Explanation, PackedModel, cost_table, pack
from secateur.io import Bundle
from secateur.measure import agreement, effective, evaluate, latency, measure
from secateur.model.graph import Group, Groups, find_groups
from secateur.model.masked import masked
from secateur.model.masks import Masks
from secateur.model.registry import find_masks
from secateur.records import Record, Report, Shares
from secateur.report.figures import figure
from secateur.report.html import to_html
from secateur.report.table import print_table
from secateur.train import Plan, Pruner, Reconstruction, prune, reconstruct, score
from secateur.train.compress import Compressed, Goal, Stage, compress
from secateur.train.loop.fit import fit
from secateur.train.loop.snapshot import Snapshot
from secateur.train.loop.training import Training
from secateur.train.permute import Permutation, permute_channels
from secateur.train.recalibrate import recalibrate
from secateur.train.recovery import dense_sparse_dense, prune_rounds, recover, scratch, tickets
from secateur.train.sensitivity import Sensitivity, sensitivity
from secateur.train.shrink import shrink
from secateur.train.shrinkage import Shrinkage, shrinkage
from secateur.train.slimming import slimming
from secateur.train.unit_costs import costs
from secateur.types import NM, KeyLayout, Layout, Unit

groups = find_groups

try:
    __version__ = version("secateur")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0.0.0+source"

__all__ = [
    "NM",
    "Bundle",
    "Compressed",
    "CostTable",
    "Explanation",
    "Goal",
    "Group",
    "Groups",
    "KeyLayout",
    "Layout",
    "Masks",
    "PackedModel",
    "Permutation",
    "Plan",
    "Pruner",
    "Reconstruction",
    "Record",
    "Report",
    "Sensitivity",
    "Shares",
    "Shrinkage",
    "Snapshot",
    "Stage",
    "Training",
    "Unit",
    "agreement",
    "combine",
    "compress",
    "cost_table",
    "costs",
    "dense_sparse_dense",
    "effective",
    "evaluate",
    "figure",
    "find_masks",
    "fit",
    "groups",
    "knapsack",
    "latency",
    "load",
    "masked",
    "measure",
    "open_attention",
    "pack",
    "permute_channels",
    "print_table",
    "prune",
    "prune_rounds",
    "recalibrate",
    "reconstruct",
    "recover",
    "save",
    "score",
    "scratch",
    "sensitivity",
    "shrink",
    "shrinkage",
    "slimming",
    "tickets",
    "to_html",
]
