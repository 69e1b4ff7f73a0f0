"""The table of criteria. To add one: a function in this folder, a row here, a row in the conformance test."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.core.criteria import activation, gradient, trajectory, weight
from secateur.types import CriterionEntry

__all__ = ["CRITERIA"]

_HAN = "Han et al. 2015, arXiv 1506.02626"
_SNIP = "Lee, Ajanthan, Torr 2019, arXiv 1810.02340"
_MOLCHANOV = "Molchanov et al. 2019, arXiv 1906.10771"
_ZHOU = "Zhou et al. 2019, arXiv 1905.01067"

_MAGNITUDE = CriterionEntry(weight.l1, "weight", "mean", "none", "magnitude, |w|", _HAN)

CRITERIA: Mapping[str, CriterionEntry] = {
    "magnitude": _MAGNITUDE,
    "l1": _MAGNITUDE,
    "l2": CriterionEntry(weight.l2, "weight", "rms", "none", "|w|, a unit by its root mean square", _HAN),
    "linf": CriterionEntry(weight.linf, "weight", "max", "none", "|w|, a unit by its largest weight", "definition"),
    "l0": CriterionEntry(weight.l0, "weight", "mean", "none", "share of non-zeros, [w != 0]", "definition"),
    "random": CriterionEntry(weight.random, "unit", "mean", "none", "uniform noise, the baseline", "baseline"),
    "grad_magnitude": CriterionEntry(
        gradient.grad_magnitude, "weight", "mean", "batches", "mean_b |g|", f"variant of {_SNIP}"
    ),
    "snip": CriterionEntry(gradient.snip, "weight", "mean", "batches", "|w| mean_b |g|", _SNIP),
    "snip_signed": CriterionEntry(gradient.snip_signed, "weight", "mean", "batches", "|w mean_b g|", _SNIP),
    "taylor": CriterionEntry(gradient.taylor, "weight", "sum", "batches", "sum w^2 mean_b g^2", _MOLCHANOV, batches=10),
    "gate_taylor": CriterionEntry(
        gradient.gate_taylor,
        "unit",
        "sum",
        "batches",
        "mean_b (dL/dz)^2 of a gate z on each filter",
        _MOLCHANOV,
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "mean_activation": CriterionEntry(
        activation.mean_activation,
        "unit",
        "mean",
        "batches",
        "mean |a| of each channel's activation",
        "Molchanov et al. 2017, arXiv 1611.06440",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "apoz": CriterionEntry(
        activation.apoz,
        "unit",
        "mean",
        "batches",
        "1 - share of zeros of each channel's activation",
        "Hu et al. 2016, arXiv 1607.03250",
        units=frozenset({"channel", "filter"}),
        batches=10,
    ),
    "large_final": CriterionEntry(trajectory.large_final, "weight", "mean", "none", "|w|", _ZHOU),
    "small_final": CriterionEntry(trajectory.small_final, "weight", "mean", "none", "-|w|", _ZHOU),
    "large_init": CriterionEntry(trajectory.large_init, "weight", "mean", "init", "|w_init|", _ZHOU),
    "small_init": CriterionEntry(trajectory.small_init, "weight", "mean", "init", "-|w_init|", _ZHOU),
    "large_init_large_final": CriterionEntry(
        trajectory.large_init_large_final, "weight", "mean", "init", "min(alpha |w|, |w_init|)", _ZHOU
    ),
    "small_init_small_final": CriterionEntry(
        trajectory.small_init_small_final, "weight", "mean", "init", "-max(alpha |w|, |w_init|)", _ZHOU
    ),
    "magnitude_increase": CriterionEntry(
        trajectory.magnitude_increase, "weight", "mean", "init", "|w| - |w_init|", _ZHOU
    ),
    "movement": CriterionEntry(trajectory.movement, "weight", "mean", "init", "|w - w_init|", _ZHOU),
    "movement_sanh": CriterionEntry(
        trajectory.movement_sanh, "weight", "mean", "training", "-sum_t g_t w_t", "Sanh et al. 2020, arXiv 2005.07683"
    ),
}
