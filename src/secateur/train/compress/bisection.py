"""Which strength to train next: bisection of one family by the drop, and families in turn."""

from __future__ import annotations

from typing import final

from secateur.train.compress.cheap import Range

__all__ = ["Bisection"]

_FINE = 2
"""Closer than so many places of the grid (4 % of what is kept) strengths are not told apart."""
_STEP = 3
_FIRST = 64
"""Where a family without a least strength begins: three quarters of the weights gone."""
_STRIDE = 32


@final
class Bisection:
    """Proposes strengths of one family.

    With an allowed drop: first the least strength that meets the sizes, where there is one; while the drop is within
    what is allowed, on in growing strides, and after the first that is not, the middle of the gap. Without: that least
    strength, and a little more as long as what was trained misses the sizes; where no strength meets them, the
    strongest and two between.

    Args:
        span: where the family is worth training.
        by_drop: whether a drop is allowed for.

    Example:
        >>> search = Bisection(Range(None, 320, 0, {}), by_drop=True)
        >>> search.next()
        64
        >>> search.tell(64, within=True, sized=True)
        >>> search.next()
        96
        >>> search.tell(96, within=False, sized=True)
        >>> search.next()
        80
    """

    def __init__(self, span: Range, *, by_drop: bool) -> None:
        self._by_drop, self._span = by_drop, span
        self._low, self._high, self._stride = 0, span.last + 1, _STRIDE
        if by_drop:
            self._first = [max(1, min(_FIRST, span.last // 2)) if span.least is None else span.least]
        elif span.least is not None:
            self._first = [span.least]
        else:
            self._first = list(dict.fromkeys([span.last, max(1, span.last // 2), max(1, 3 * span.last // 4)]))

    @property
    def too_far(self) -> bool:
        """Whether even the least strength that meets the sizes lost too much; what is weaker tells the frontier."""
        return self._span.least is not None and self._high <= self._span.least

    def next(self) -> int | None:
        """The index of the strength to train; None where there is nothing more to learn."""
        if self._first:
            return self._first[0]
        if not self._by_drop or self._high - self._low <= _FINE:
            return None
        if self._high > self._span.last:
            return min(self._span.last, self._low + self._stride) if self._low < self._span.last else None
        return (self._low + self._high) // 2

    def tell(self, index: int, *, within: bool, sized: bool) -> None:
        """What came of it.

        Args:
            index: that was trained.
            within: whether the drop is within what is allowed.
            sized: whether the sizes are met.
        """
        again = index not in self._first
        self._first = [other for other in self._first if other != index]
        if self._by_drop and within:
            self._low = max(self._low, index)
            self._stride = 2 * self._stride if again else self._stride
        elif self._by_drop:
            self._high = min(self._high, index)
        elif not sized and self._span.least is not None and index < self._span.last:
            self._first = [min(self._span.last, index + _STEP)]
