"""Records of speed may come from a file that nobody vouches for: their types and signs are checked before drawing."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, TypeAlias

from secateur.records import Explanation, Rivals

__all__ = ["Speed", "check_speed"]

Speed: TypeAlias = Explanation | Rivals

_ANY = {"off_by"}  # nan and infinity are findings there
_SIGNED = {"other_us"}  # a difference of times


def check_speed(record: Speed) -> None:
    """Refuse what no measurement can have said.

    Raises:
        ValueError: naming the record, the place and the value.

    Example:
        >>> check_speed(Explanation((), 0.0, -1.0, 2.0))
        Traceback (most recent call last):
        ...
        ValueError: Explanation '': us = -1.0: expected a number from 0 on
    """
    if not isinstance(record, Explanation | Rivals):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"speed: expected what explain() or secateur bench give, not {type(record).__name__}")
    where = f"{type(record).__name__} {record.title!r}"
    _check_fields(record, where)
    if isinstance(record, Rivals):
        for row in record.rows:
            if row.status == "timed":
                _above(row, ("median_ms", "p10_ms", "p90_ms"), f"{where}: runtime {row.name!r}")
        return
    for line in record.layers:
        _above(line, ("us", "dense_us"), f"{where}: layer {line.name!r}")
    if record.layers:
        _above(record, ("us", "dense_us"), where)
    if record.roofs is not None:
        _above(record.roofs, ("gflops", "gflops_bf16"), f"{where}: roofs")
        if not record.roofs.bandwidths:
            raise ValueError(f"{where}: roofs without a bandwidth")
        for band in record.roofs.bandwidths:
            _above(band, ("gbps",), f"{where}: roofs, {band.level}")


def _above(record: object, names: tuple[str, ...], where: str) -> None:
    for name in names:
        value = getattr(record, name)
        if value is None or value <= 0:
            raise ValueError(f"{where}: {name} = {value!r}: expected a number above 0")


def _check_fields(record: Any, where: str) -> None:
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        if field.name not in _ANY or not isinstance(getattr(record, field.name), float):
            _check(hints[field.name], getattr(record, field.name), where, field.name)


def _check(hint: Any, value: Any, where: str, name: str) -> None:
    """A value against the type of its field; numbers are finite, and hardly any may be negative."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is not None:
            _check(next(each for each in inner if each is not type(None)), value, where, name)
        elif type(None) not in inner:
            raise ValueError(f"{where}: {name} is missing")
    elif origin is tuple:
        if not isinstance(value, tuple):
            raise ValueError(f"{where}: {name} = {value!r}: expected a list")
        for i, each in enumerate(value):
            _check(inner[0], each, where, f"{name}[{i}]")
    elif dataclasses.is_dataclass(hint):
        if not isinstance(value, typing.cast("type", hint)):
            raise ValueError(f"{where}: {name} = {value!r}: expected a record")
        _check_fields(value, f"{where}: {name}")
    elif hint in (int, float):
        _check_number(hint, value, where, name)
    elif not isinstance(value, hint):
        raise ValueError(f"{where}: {name} = {value!r}: expected {'a text' if hint is str else 'true or false'}")


def _check_number(hint: type, value: Any, where: str, name: str) -> None:
    allowed = int if hint is int else (int, float)
    if not isinstance(value, allowed) or isinstance(value, bool) or not math.isfinite(value):
        wrong = True
    else:
        wrong = value < 0 and name not in _SIGNED
    if wrong:
        what = "a whole number" if hint is int else "a number"
        raise ValueError(f"{where}: {name} = {value!r}: expected {what} from 0 on")
