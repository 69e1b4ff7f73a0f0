"""Where examples lie in the activations that are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, final

from torch import Tensor

from secateur.model.evidence.example_axis import FIXED_SIZE, ExampleAxis, axis_of, count_examples, exchanges
from secateur.model.evidence.readers import Reader, Reading
from secateur.model.evidence.watching import Watch
from secateur.model.graph.site import Sites
from secateur.model.ranks import Ranks

__all__ = ["site_examples"]


@final
class _Kept(Reader):
    """The activations themselves."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, int], Tensor] = {}

    def begin(self, batch: Any) -> None:
        """Nothing yet."""
        self.values.clear()

    def read(self, reading: Reading) -> None:
        """Keep a copy."""
        self.values[reading.site.producer, reading.number] = reading.values.clone()

    def commit(self) -> None:
        """Nothing is summed up."""

    def combine(self, ranks: Ranks) -> None:
        """Nothing is summed up."""

    def seen(self) -> frozenset[str]:
        """Producers of what was kept."""
        return frozenset(name for name, _ in self.values)

    def result(self) -> dict[str, dict[str, Tensor]]:
        """No evidence."""
        return {}

    def nothing(self, size: int) -> dict[str, Tensor]:
        """No evidence."""
        return {}


def site_examples(sites: Sites, batch: Any, run: Callable[[Any], Any]) -> Mapping[tuple[str, int], ExampleAxis]:
    """Try where examples lie, by runs that differ in one of them.

    Args:
        sites: where activations are read.
        batch: examples along the first axis of its tensors.
        run: runs the model on a batch.

    Returns:
        Producer, number of the reading in a pass -> axis.

    Raises:
        ValueError: where examples cannot be told apart.
    """
    for both, twice, size in exchanges(batch):
        last, kept = size == count_examples(batch), (_Kept(), _Kept())
        try:
            ways = [_watched(sites, reader, rows, run) for reader, rows in zip(kept, (both, twice), strict=True)]
        except FIXED_SIZE:
            if last:
                raise
            continue
        if not all(ways) and not last:
            continue  # few examples went another way through the model
        one, other = kept[0].values, kept[1].values
        return {at: axis_of(at[0], one[at], other[at], size) for at in one if at in other}
    return {}


def _watched(sites: Sites, reader: Reader, batch: Any, run: Callable[[Any], Any]) -> bool:
    watch = Watch(sites, [reader], batch)
    with watch:  # and gradients where the passes have them: they call other operators then
        run(batch)
    watch.finish()
    return watch.difference is None
