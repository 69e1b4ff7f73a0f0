"""The points than which none is better in everything."""

from __future__ import annotations

from collections.abc import Iterable

from secateur.records import Trial

__all__ = ["frontier_of"]


def frontier_of(points: Iterable[Trial], dense: Trial | None = None) -> tuple[Trial, ...]:
    """The points than which no other, nor the dense model, is at least as good in everything and better in something.

    Compared are the metric on valid, bytes of the file and multiply-adds that run: all of them exact, so that the
    frontier does not hang on the noise of a clock. Of equal points the first stays.

    Args:
        points: trained ones.
        dense: the model they came from.

    Returns:
        Those of the frontier, from the best metric down.
    """
    rivals = [] if dense is None else [dense]
    kept = list[Trial]()
    # In this order nothing that comes later is better than what came before: one pass over the kept ones will do.
    for point in sorted(points, key=lambda each: (-each.valid.value, each.bytes, each.macs)):
        if not any(_as_good(other, point) for other in rivals + kept):
            kept.append(point)
    return tuple(kept)


def _as_good(one: Trial, other: Trial) -> bool:
    return one.valid.value >= other.valid.value and one.bytes <= other.bytes and one.macs <= other.macs
