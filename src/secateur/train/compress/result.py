"""What ``compress`` gives back."""

from __future__ import annotations

from typing import final

from torch import nn

from secateur.records import Report, Trial, Trials
from secateur.train.compress.page import page

__all__ = ["Compressed"]


@final
class Compressed:
    """The smaller model, and everything that was found on the way; print it.

    Attributes:
        model: the best that meets the goal, in eval mode, with its masks where weights are masked; the nearest one
            where nothing meets it.
        record: goal, every point, frontier, chosen, rivals, environment: plain JSON by ``to_record()``.
        report: the chosen model, its rivals and some of the frontier, each measured beside the dense model: for
            ``report.to_html`` and ``sc.print_table``.
    """

    def __init__(self, model: nn.Module, record: Trials, report: Report) -> None:
        self.model, self.record, self.report = model, record, report

    @property
    def met(self) -> bool:
        """Whether ``model`` meets the goal."""
        return self.record.met

    @property
    def frontier(self) -> tuple[Trial, ...]:
        """The points than which no other is better in metric, bytes and multiply-adds together."""
        return tuple(self.record.point(key) for key in self.record.frontier)

    def __str__(self) -> str:
        return page(self.record)

    def __repr__(self) -> str:
        return f"<Compressed: goal {'met' if self.met else 'not met'}, {len(self.record.points)} points; print it>"
