"""Where the values of a program lie: places in one arena, each free again after its last reader."""

from __future__ import annotations

from typing import final

__all__ = ["Arena"]


@final
class Arena:
    """Places for values, taken by the first gap that is large enough, and free again after their last reader.

    Example:
        >>> arena = Arena()
        >>> first, second = arena.take(20), arena.take(16)
        >>> arena.give_back(first)
        >>> first, second, arena.take(8), arena.size
        (0, 32, 0, 48)
    """

    def __init__(self) -> None:
        self.size = 0
        self._taken: list[tuple[int, int]] = []

    def take(self, floats: int) -> int:
        """The first of so many floats, at a cache line."""
        floats = -(-floats // 16) * 16
        at = 0
        for begin, end in sorted(self._taken):
            if begin - at >= floats:
                break
            at = max(at, end)
        self._taken.append((at, at + floats))
        self.size = max(self.size, at + floats)
        return at

    def give_back(self, at: int) -> None:
        """What begins there may be taken again."""
        self._taken = [piece for piece in self._taken if piece[0] != at]
