"""From the times of the rounds to the rows of the record, and what the reader should know about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from secateur.measure.environment import environment
from secateur.measure.latency import quantile
from secateur.measure.rivals.runtimes import TOLERANCE
from secateur.measure.rivals.turns import Lane, Settings
from secateur.records import RivalRow, Rivals

__all__ = ["rivals_of"]

_BUSY = 0.5


def rivals_of(
    lanes: Sequence[Lane], title: str, batch: int, threads: int, *, settings: Settings, load: float
) -> Rivals:
    """The record of one race.

    Args:
        lanes: as ``Race.run`` left them.
        title: of the table.
        batch: length of axis 0.
        threads: of every runtime.
        settings: how long it was to take.
        load: average number of running programs before the first process was started.

    Returns:
        A row per lane; the best dense float32; the spread of the first runtime against itself.
    """
    timed = {lane.name: lane for lane in lanes if lane.status == "timed"}
    medians = {name: quantile(lane.ms, 0.5) for name, lane in timed.items()}
    dense = [name for name, lane in timed.items() if lane.runtime.dense and lane.runtime.precision == "float32"]
    first = [name for name in dense if not timed[name].twin_of] or dense
    best = min(first, key=lambda name: medians[name]) if first else None
    rounds = max((len(lane.ms) for lane in timed.values()), default=0)
    spread = _spread(timed)
    rows = tuple(_row(lane, timed.get(best or "")) for lane in lanes)
    restless = [lane.name for lane in lanes if lane.restless]
    notes = tuple(_notes(rows, best, spread, (rounds, settings.rounds), load, restless))
    return Rivals(
        title=title,
        batch=batch,
        threads=threads,
        rounds=rounds,
        turn_s=settings.turn_s,
        rows=rows,
        best=best,
        spread=spread,
        notes=notes,
        environment=replace(environment(), threads=threads),
    )


def _row(lane: Lane, best: Lane | None) -> RivalRow:
    row = RivalRow(
        name=lane.name,
        precision=lane.runtime.precision,
        dense=lane.runtime.dense,
        version=lane.runtime.version(),
        status=lane.status,
        why=lane.why,
        stderr=lane.stderr,
        off_by=lane.off_by,
        tolerance=TOLERANCE[lane.runtime.precision],
        twin_of=lane.twin_of,
    )
    if lane.status != "timed":
        return row
    gains = [] if best is None else [a / b for a, b in zip(best.ms, lane.ms, strict=True)]
    low, median, high = (quantile(lane.ms, share) for share in (0.1, 0.5, 0.9))
    return replace(
        row,
        median_ms=median,
        p10_ms=low,
        p90_ms=high,
        least_ms=min(lane.least),
        gain=quantile(gains, 0.5) if gains else None,
        gain_range=(quantile(gains, 0.1), quantile(gains, 0.9)) if gains else None,
        ms=tuple(lane.ms),
    )


def _spread(timed: dict[str, Lane]) -> tuple[float, float] | None:
    """Which of the two is named first must not matter, so every ratio counts with its inverse."""
    twin = next((lane for lane in timed.values() if lane.twin_of in timed), None)
    if twin is None:
        return None
    ratios = [a / b for a, b in zip(timed[twin.twin_of].ms, twin.ms, strict=True)]
    both = ratios + [1 / ratio for ratio in ratios]
    return quantile(both, 0.1), quantile(both, 0.9)


def _notes(
    rows: Sequence[RivalRow],
    best: str | None,
    spread: tuple[float, float] | None,
    rounds: tuple[int, int],
    load: float,
    restless: Sequence[str],
) -> Iterator[str]:
    if best is not None:
        yield f"gain: time of {best} / time, median of the rounds. off by: largest difference to eager torch."
    if spread is not None:
        low, high = spread
        who = next(row.twin_of for row in rows if row.twin_of)
        yield f"{who} against itself, in two processes, round by round: {low:.3f} to {high:.3f}."
    others = [row for row in rows if row.gain_range and best not in (row.name, row.twin_of)]
    same = [row.name for row in others if row.gain_range and row.gain_range[0] <= 1 <= row.gain_range[1]]
    if same:
        yield f"Not told apart from {best} (1 is within the middle 80 % of the gains): {', '.join(same)}."
    if 0 < rounds[0] < rounds[1]:
        yield f"{rounds[0]} rounds instead of {rounds[1]}, to stay within the budget."
    if restless:
        yield f"Kept a processor busy after their turns, and slowed the others: {', '.join(restless)}."
    if load >= _BUSY:
        yield f"Before the start {load:.1f} other programs were at work on average: the times are less certain."
