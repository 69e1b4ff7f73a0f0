"""The latency page put together: what the template is given per model, and the plots under their names."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from secateur.records import Environment, Explanation, Rivals
from secateur.report import numbers
from secateur.report.plot_parts import Plot
from secateur.report.speed import Model, setting
from secateur.report.speed_grids import race_grid, speed_layers_grid
from secateur.report.speed_plots import DASHES, race_plot, roofline_plot, speed_layers_plot, whole_plot
from secateur.report.speed_words import (
    layers_sentence,
    measured_roofs,
    race_sentence,
    roof_sentence,
    whole_sentence,
)

__all__ = ["speed_context", "speed_plots"]

_STROKES = {"solid": "", "dash": "9 5", "dot": "2 4", "dashdot": "9 4 2 4"}


def speed_plots(found: list[Model]) -> dict[str, Plot]:
    """Every plot under the name that the template gives it."""
    drawn: dict[str, Plot | None] = {}
    for number, model in enumerate(found):
        drawn |= {f"race-{number}-{i}": race_plot(race) for i, race in enumerate(model.rivals)}
        for i, one in enumerate(model.explained):
            place = f"{number}-{i}"
            drawn[f"whole-{place}"] = None if model.rivals else whole_plot(one)
            drawn[f"speed-layers-{place}"] = speed_layers_plot(one) if one.layers else None
            drawn[f"roofline-{place}"] = roofline_plot(one)
    return {name: plot for name, plot in drawn.items() if plot is not None}


def speed_context(found: list[Model], plots: dict[str, Plot], headline: str) -> list[dict[str, Any]]:
    """What the template shows of each model; sentences that the headline has do not stand twice."""
    return [
        {
            "name": model.name,
            "races": [_race(race, f"race-{number}-{i}", plots, headline) for i, race in enumerate(model.rivals)],
            "explained": [_explained(one, f"{number}-{i}", plots, headline) for i, one in enumerate(model.explained)],
            "machines": [_facts(machine) for machine in _machines(model)],
        }
        for number, model in enumerate(found)
    ]


def _race(race: Rivals, name: str, plots: dict[str, Plot], headline: str) -> dict[str, Any]:
    reasons = [f"{row.name}: {row.status}: {row.why}" for row in race.rows if row.why]
    return {
        "heading": setting(race),
        "sentence": _unless_said(race_sentence(race), headline),
        "plot": name if name in plots else None,
        "grid": race_grid(race),
        "notes": [*reasons, *race.notes],
    }


def _explained(one: Explanation, place: str, plots: dict[str, Plot], headline: str) -> dict[str, Any]:
    roofs = one.roofs
    return {
        "heading": setting(one),
        "sentence": _unless_said(whole_sentence(one), headline),
        "whole": f"whole-{place}" if f"whole-{place}" in plots else None,
        "layers": f"speed-layers-{place}" if one.layers else None,
        "layers_sentence": layers_sentence(one) if one.layers else "",
        "count": len(one.layers),
        "grid": speed_layers_grid(one) if one.layers else None,
        "roofline": f"roofline-{place}" if f"roofline-{place}" in plots else None,
        "no_roofline": _why_no_roofline(one),
        "roof_sentence": roof_sentence(one) if roofs is not None and one.layers else "",
        "measured": "" if roofs is None else measured_roofs(roofs),
        "lines": [] if roofs is None else _lines(one),
    }


def _lines(one: Explanation) -> list[tuple[str, str, float]]:
    """(words, strokes, width) of every roof."""
    roofs = one.roofs
    assert roofs is not None
    here = roofs.level_of(one.working_bytes)
    peaks = [("multiply-adds in float32", roofs.gflops)]
    peaks += [("multiply-adds of bf16 pairs", roofs.gflops_bf16)] if any(line.in_bf16 for line in one.layers) else []
    return [(f"{numbers.three(top)} GFLOP/s: {name}", "", 2.5) for name, top in peaks] + [
        (
            f"{numbers.three(band.gbps)} GB/s: reads from {'' if band.holds is None else 'the '}{band.level}",
            _STROKES[DASHES.get(band.level, "dashdot")],
            2.5 if band is here else 1.2,
        )
        for band in roofs.bandwidths
    ]


def _why_no_roofline(one: Explanation) -> str:
    if not one.layers:
        return ""
    if one.roofs is None:
        asked = "the roofs of this machine were not measured: `secateur pack --json` and explain(roofs=True) do that"
        return one.no_roofs or asked
    return "" if any(line.flops for line in one.layers) else "no layer has a weight that is not 0"


def _machines(model: Model) -> list[Environment]:
    """Threads stand with the numbers."""
    return list(dict.fromkeys(replace(machine, threads=1) for machine in model.environments))


def _facts(machine: Environment) -> list[tuple[str, str]]:
    return [
        ("processor", f"{machine.cpu}, {machine.cores} cores, instruction set {machine.isa}"),
        ("versions", f"secateur {machine.secateur}, torch {machine.torch}, Python {machine.python}"),
        ("platform", machine.platform),
    ]


def _unless_said(text: str, headline: str) -> str:
    return "" if text in headline else text[:1].upper() + text[1:]
