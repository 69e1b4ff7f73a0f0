"""Frozen dataclasses as plain JSON and back; unknown keys are refused."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

__all__ = ["Jsonable"]

R = TypeVar("R", bound="Jsonable")


class Jsonable:
    """``to_record`` / ``from_record`` for a dataclass of numbers, strings, tuples and other records."""

    def to_record(self) -> dict[str, Any]:
        """Plain JSON: dicts, lists, numbers, strings, None."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}  # pyright: ignore

    @classmethod
    def from_record(cls: type[R], record: dict[str, Any]) -> R:
        """The inverse of ``to_record``.

        Raises:
            ValueError: for keys that this record does not have, or that are missing and have no default.
        """
        hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)  # pyright: ignore
        names = [field.name for field in fields]
        settled = {field.name for field in fields if field.default is not dataclasses.MISSING}
        wrong = sorted((set(record) ^ set(names)) - (settled - set(record)))
        if wrong:
            raise ValueError(f"{cls.__name__}: keys {wrong} are missing or unknown; it has {names}")
        return cls(**{name: _typed(hints[name], record[name]) for name in names if name in record})


def _plain(value: Any) -> Any:
    if isinstance(value, Jsonable):
        return value.to_record()
    if isinstance(value, tuple):
        return [_plain(item) for item in typing.cast("tuple[Any, ...]", value)]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in typing.cast("dict[str, Any]", value).items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None:
        return None
    if origin in (typing.Union, types.UnionType):
        return _typed(next(a for a in arguments if a is not type(None)), value)
    if origin is tuple:
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_typed(i, v) for i, v in zip(inner, value, strict=True))
    if origin is dict:
        return {k: _typed(arguments[1], v) for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Jsonable):
        return hint.from_record(value)
    return value
