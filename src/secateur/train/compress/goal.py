"""What a user wants of the smaller model, and how far a point is from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from secateur.records import Trial
from secateur.text import data_size, quantity, three

__all__ = ["SIZES", "Goal", "Limits", "size_of"]

_ROUNDING = 1e-6
"""Points that a drop may be above its limit: 99.00 - 98.00 is a little more than 1 in floating point."""

SIZES = ("bytes", "params", "macs")
"""The figures that need no clock and no data."""

_SHOW: dict[str, Callable[[float], str]] = {
    "bytes": lambda value: f"a file of {data_size(int(value))}",
    "params": lambda value: f"{quantity(value)} parameters",
    "macs": lambda value: f"{quantity(value)} multiply-adds",
}


@dataclass(frozen=True)
class Goal:
    """What the smaller model has to meet; several hold together.

    Args:
        max_drop: at most so many points of the metric lost (percentage points of accuracy, where that is the metric).
        speedup: at least so many times as fast as the dense model, measured: 2.0 is half the time per call.
        bytes: of the file that ``sc.save`` writes.
        params: parameters that are kept; masked ones are not.
        macs: multiply-adds that run for one sample; masked weights run.

    The last three are fractions of the dense model's figure up to 1.0, and absolute figures above.

    Raises:
        ValueError: for a goal without anything, and for figures that no model has.

    Example:
        >>> Goal(max_drop=1.0, bytes=1 / 8).given
        {'max_drop': 1.0, 'bytes': 0.125}
    """

    max_drop: float | None = None
    speedup: float | None = None
    bytes: float | None = None
    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        if not self.given:
            raise ValueError("this goal asks for nothing: give max_drop=, speedup=, bytes=, params= or macs=")
        for name, value in self.given.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(f"goal: {name}={value!r} is no number")
        if self.max_drop is not None and self.max_drop < 0:
            raise ValueError(f"goal: max_drop={self.max_drop}: how many points may be lost, 0 or more")
        if self.speedup is not None and self.speedup <= 1:
            raise ValueError(
                f"goal: speedup={self.speedup}: times as fast as the dense model, above 1; 2.0 is half the time"
            )
        for name in SIZES:
            value = self.given.get(name)
            if value is not None and value <= 0:
                raise ValueError(f"goal: {name}={value}: give a fraction of the dense model in (0, 1], or a figure")

    @property
    def given(self) -> dict[str, float]:
        """What was asked."""
        asked = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in asked.items() if value is not None}

    @property
    def of_size(self) -> bool:
        """Whether it asks for anything that training does not change."""
        return bool(self.given.keys() - {"max_drop"})

    @property
    def of_time(self) -> bool:
        """Whether it asks for less computation, which masks alone do not give."""
        return self.speedup is not None or self.macs is not None

    @property
    def of_file(self) -> bool:
        """Whether it asks for fewer bytes or parameters."""
        return self.bytes is not None or self.params is not None

    def against(self, dense: Mapping[str, float]) -> Limits:
        """The goal in absolute figures.

        Args:
            dense: figures of the dense model: ``bytes``, ``params``, ``macs``.

        Returns:
            The limits.

        Raises:
            ValueError: for a figure that the dense model meets as it is.
        """
        limits = dict[str, float]()
        for name in SIZES:
            value = self.given.get(name)
            if value is None:
                continue
            if name == "macs" and not dense[name]:
                raise ValueError(
                    "goal: macs: no multiply-add of this model is counted; ask for params or bytes instead"
                )
            limits[name] = value * dense[name] if value <= 1 else value
            if limits[name] >= dense[name]:
                raise ValueError(
                    f"goal: {name}={value:g}: the dense model has {_SHOW[name](dense[name])} already; give fewer, or a "
                    "fraction of it such as 0.25"
                )
        return Limits(self.max_drop, self.speedup, limits)


@dataclass(frozen=True)
class Limits:
    """A goal in absolute figures.

    Attributes:
        max_drop: in points.
        speedup: measured ratio.
        sizes: ``bytes``, ``params``, ``macs`` -> at most.
    """

    max_drop: float | None
    speedup: float | None
    sizes: Mapping[str, float]

    def misses(self, point: Trial) -> dict[str, float]:
        """What a trained point misses on valid, each as a share of what was asked; empty where it meets all."""
        found = self.misses_of_size(point.to_record())
        if self.max_drop is not None and point.valid.drop > self.max_drop + _ROUNDING:
            whole = abs(point.valid.value + point.valid.drop)  # a metric's points may be hundredths
            found["max_drop"] = (point.valid.drop - self.max_drop) / (max(self.max_drop, 0.01 * whole) or 1.0)
        return found

    def misses_of_size(self, figures: Mapping[str, Any], slack: float = 0.0) -> dict[str, float]:
        """What figures of size and speed miss, each as a share of what was asked.

        Args:
            figures: ``bytes``, ``params``, ``macs``, and ``speedup`` where that was asked.
            slack: a share by which they have to be better than asked.

        Returns:
            Figure -> how much too large (too slow) it is, as a share.
        """
        found = {
            name: float(figures[name]) / limit - 1
            for name, limit in self.sizes.items()
            if figures[name] > limit * (1 - slack)
        }
        if self.speedup is not None and figures["speedup"] < self.speedup * (1 + slack):
            found["speedup"] = self.speedup / figures["speedup"] - 1
        return found

    def told(self, point: Trial) -> tuple[str, ...]:
        """What a point misses, in words."""
        words = list[str]()
        for name in self.misses(point):
            if name == "max_drop":
                words.append(f"{_points(point.valid.drop)} points lost on valid, {self.max_drop:g} allowed")
            elif name == "speedup":
                words.append(f"{point.speedup:.2f} x as fast, {self.speedup:g} x asked")
            else:
                words.append(f"{_SHOW[name](getattr(point, name))}, {_SHOW[name](self.sizes[name])} asked")
        return tuple(words)

    def __str__(self) -> str:
        words = (
            []
            if self.max_drop is None
            else [f"at most {self.max_drop:g} point{'' if self.max_drop == 1 else 's'} lost"]
        )
        words += [] if self.speedup is None else [f"{three(self.speedup)} x as fast"]
        return ", ".join(words + [f"at most {_SHOW[name](limit)}" for name, limit in self.sizes.items()])


def _points(drop: float) -> str:
    return f"{drop:.2f}" if drop >= 1 else three(drop)


def size_of(goal: Goal, point: Trial) -> tuple[float, float]:
    """What "smaller" means under a goal: bytes, where it asks for speed alone multiply-adds; the other breaks ties.

    Args:
        goal: what was asked.
        point: a trained point.

    Returns:
        A pair to compare points by.
    """
    size, work = float(point.bytes), float(point.macs)
    return (work, size) if goal.of_time and not goal.of_file else (size, work)
