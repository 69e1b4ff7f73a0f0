"""Accuracy, calibration, bytes, multiply-adds, latency, energy and training cost, as records."""

from __future__ import annotations

from secateur.measure.cost import TrainingMeter
from secateur.measure.count import Counts, LayerShare, count, fraction_to_keep, table
from secateur.measure.effective import Effective, effective
from secateur.measure.energy import EnergyMeter, energy_per_call, find_counters
from secateur.measure.environment import environment
from secateur.measure.fit import agreement, compare, evaluate, expected_calibration_error
from secateur.measure.latency import latency
from secateur.measure.macs import CONVENTION, SHRINKBENCH_CONVENTION
from secateur.measure.measure import measure
from secateur.measure.sizes import sizes

__all__ = [
    "CONVENTION",
    "SHRINKBENCH_CONVENTION",
    "Counts",
    "Effective",
    "EnergyMeter",
    "LayerShare",
    "TrainingMeter",
    "agreement",
    "compare",
    "count",
    "effective",
    "energy_per_call",
    "environment",
    "evaluate",
    "expected_calibration_error",
    "find_counters",
    "fraction_to_keep",
    "latency",
    "measure",
    "sizes",
    "table",
]
