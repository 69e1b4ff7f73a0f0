"""What the latency page says in words: the whole, where the time goes, which layers are far from their roof."""

from __future__ import annotations

from secateur.records import Explanation, RivalRow, Rivals, Roofs
from secateur.report import numbers
from secateur.report.speed import Model, setting, slow_layers

__all__ = ["layers_sentence", "measured_roofs", "race_sentence", "roof_sentence", "speed_headline", "whole_sentence"]

_NAMED = 3


def speed_headline(found: list[Model]) -> str:
    """A sentence per model, up to three."""
    said = [_model_sentence(model) for model in found]
    rest = f" And {len(said) - _NAMED} more below." if len(said) > _NAMED else ""
    return " ".join(said[:_NAMED]) + rest


def _model_sentence(model: Model) -> str:
    first = race_sentence(model.rivals[0]) if model.rivals else whole_sentence(model.explained[0])
    return f"{model.name}: {first}"


def race_sentence(race: Rivals) -> str:
    """The fastest sparse runtime against the best dense one of either precision."""
    timed = [row for row in race.rows if row.status == "timed" and not row.twin_of]
    sparse = _fastest([row for row in timed if not row.dense])
    best = _fastest([row for row in timed if row.name == race.best])
    half = _fastest([row for row in timed if row.dense and row.precision != "float32"])
    if sparse is None or best is None:
        missing = "no sparse runtime" if sparse is None else "no dense float32 runtime"
        return f"{missing} was timed at {setting(race)}, so there is no gain to state."
    gain = sparse.gain if sparse.gain is not None else _ms(best) / _ms(sparse)
    said = (
        f"{sparse.name} takes {_time(sparse)} at {setting(race)}, {gain:.2f} × as fast as the best dense float32 "
        f"runtime, {best.name} ({_time(best)})"
    )
    inside = sparse.gain_range is not None and sparse.gain_range[0] <= 1 <= sparse.gain_range[1]
    said += "; the two cannot be told apart" if inside else ""
    return f"{said}. The best dense {half.precision} runtime, {half.name}, takes {_time(half)}." if half else f"{said}."


def _fastest(rows: list[RivalRow]) -> RivalRow | None:
    return min(rows, key=_ms, default=None)


def _ms(row: RivalRow) -> float:
    assert row.median_ms is not None
    return row.median_ms


def _time(row: RivalRow) -> str:
    return numbers.duration(_ms(row))


def whole_sentence(found: Explanation) -> str:
    """The model as a whole against torch, as the packer measured it."""
    if not found.layers:
        return f"no gain: stay dense; {found.reason}."
    said = (
        f"the packed model takes {numbers.duration(found.us / 1e3)} at {setting(found)}, {found.gain:.2f} × as fast as "
        f"dense in torch ({numbers.duration(found.dense_us / 1e3)})"
    )
    return f"{said}. No gain: stay dense; {found.reason}." if found.reason else f"{said}."


def layers_sentence(found: Explanation) -> str:
    """Which layers take most of the time, and how much lies between them."""
    whole = max(found.programs_us, sum(line.us for line in found.layers))  # noise may make a difference negative
    largest = sorted(found.layers, key=lambda line: -line.us)[:_NAMED]
    named = ", ".join(f"{line.name} ({100 * line.us / whole:.0f} %)" for line in largest)
    between = f"{numbers.three(found.other_us)} µs ({100 * found.other_us / whole:.0f} %)"
    rest = "" if found.threads == 1 else f" Layers are timed on one thread, the whole on up to {found.threads}."
    return (
        f"{len(found.layers)} layers in the order in which they run. Most of the packed time goes to {named}; "
        f"conversions, sums and pools between the layers take {between}.{rest}"
    )


def roof_sentence(found: Explanation) -> str:
    """How many layers are far from their roof, and which cost most time there."""
    assert found.roofs is not None
    packed = [line for line in found.layers if line.program is not None]
    if not packed:
        return "No layer runs in a program: torch runs them all."
    slow, level = slow_layers(found), found.roofs.level_of(found.working_bytes).level
    where = (
        f"Packed weights and the largest layer's values are {numbers.data_size(found.working_bytes)}, which "
        f"{'fits into the' if level != 'memory' else 'comes from'} {level}: its bandwidth is the roof here. "
    )
    if not slow:
        return f"{where}All {len(packed)} packed layers reach at least half of what this machine could."
    named = ", ".join(f"{line.name} ({100 * share:.0f} % of its roof)" for line, share in slow[:_NAMED])
    most = " the one with" if len(slow) == 1 else " those with"
    saved = sum(line.us * (1 - share) for line, share in slow)
    return (
        f"{where}{len(slow)} of {len(packed)} packed layers run{'s' if len(slow) == 1 else ''} at under half of what "
        f"this machine could;{most} most time to win: {named}. At their roofs they would save "
        f"{numbers.three(saved)} µs of {numbers.three(found.programs_us)}."
    )


def measured_roofs(roofs: Roofs) -> str:
    """How the roofs were found."""
    arrays = ", ".join(f"{numbers.data_size(band.array)} for the {band.level}" for band in roofs.bandwidths)
    return (
        f"All roofs are measured on this machine, on one thread, with instruction set {roofs.isa}: multiply-adds in "
        f"registers, and reading an array over and over ({arrays}); the best of short runs."
    )
