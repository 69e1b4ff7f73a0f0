"""Units: what is removed together.

With W[O, I/g, kh, kw] after the turn that ``canonical`` makes (a linear layer is a 1x1 convolution):

    weight      (o, i, y, x)    one weight             kernel      (o, i, :, :)
    row         (o, i, y, :)    last kernel axis       filter      (o, :, :, :)    output channel, neuron, token
    column      (o, i, :, x)    the one before it      in_channel  (:, i, :, :)    i counts over all groups
    block(r, c) tile of the 2-D view [O, I/g*kh*kw]    layer       everything
    channel     slices of several parameters that only go together (a coupled group; see unit_channel)

The ladder weight, vector, kernel, filter follows Mao et al. 2017, arXiv 1705.08922 (from memory, not
verified). Units of one kind are disjoint and cover the parameter, so ``pool(expand(m)) == m``:
pooling a bool tensor says for each unit whether all its members are kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from secateur.core.names import lookup, parse_spec
from secateur.core.select import Within
from secateur.core.unit_axes import Column, Filter, InChannel, Kernel, Layer, Row, Weight
from secateur.core.unit_channel import Channel
from secateur.core.unit_tiles import Block
from secateur.types import NM, Layout, Unit, UnitEntry

__all__ = [
    "UNITS",
    "Block",
    "Channel",
    "Column",
    "Filter",
    "InChannel",
    "Kernel",
    "Layer",
    "Row",
    "Weight",
    "parse_unit",
    "unit_name",
    "unit_sizes",
]


UNITS: Mapping[str, UnitEntry] = {
    "weight": UnitEntry(Weight, "single weights"),
    "row": UnitEntry(Row, "vectors along the last kernel axis, (o, i, y, :)"),
    "column": UnitEntry(Column, "vectors along the last kernel axis but one, (o, i, :, x)"),
    "kernel": UnitEntry(Kernel, "one input channel of one filter, (o, i, :, :)"),
    "filter": UnitEntry(Filter, "one output channel, neuron or token, (o, :, :, :)"),
    "in_channel": UnitEntry(InChannel, "all that reads one input channel, (:, i, :, :)"),
    "block": UnitEntry(Block, "block(rows, columns): tile of the 2-D view [O, I*kh*kw]"),
    "layer": UnitEntry(Layer, "whole layers"),
    "channel": UnitEntry(
        Channel,
        "every slice of a coupled channel; scored by its producers, channel(all) by its readers too, "
        "channel(out, weights) by all weights at once",
    ),
}


def parse_unit(value: str | Unit | NM) -> tuple[Unit, Within]:
    """A unit and the window its selection runs in.

    Args:
        value: a unit, a spec such as ``"filter"`` or ``"block(4, 1)"``, ``NM(keep=2, of=4)``, or ``"2 of 4"``.

    Returns:
        ``(unit, "tensor")``, and ``(Weight(), NM(...))`` for n of m.

    Raises:
        ValueError: for an unknown name or wrong arguments; ``"2:4"`` is refused, since tools disagree about
            whether the first number counts the kept weights or the zeros.

    Example:
        >>> parse_unit("block(4, 1)")
        (Block(rows=4, columns=1), 'tensor')
        >>> parse_unit("2 of 4")
        (Weight(), NM(keep=2, of=4))
    """
    if isinstance(value, NM):
        return Weight(), value
    if not isinstance(value, str):
        if isinstance(value, Unit):  # pyright: ignore[reportUnnecessaryIsInstance]
            return value, "tensor"
        raise ValueError(f"unit {value!r}: give a name ({', '.join(UNITS)}), '2 of 4', or a unit object")
    pattern = re.fullmatch(r"\s*(\d+)\s*(of|:)\s*(\d+)\s*", value)
    if pattern:
        first, word, second = pattern.groups()
        if word == ":":
            raise ValueError(
                f"unit {value!r}: some tools count the kept weights with the first number and some the zeros; "
                f"write '{first} of {second}' to keep {first} of every {second}"
            )
        return Weight(), NM(int(first), int(second))
    name, args, kwargs = parse_spec(_quoted(value))
    entry = lookup("unit", UNITS, name)
    try:
        return entry.factory(*args, **kwargs), "tensor"
    except TypeError:
        raise ValueError(f"unit {value!r} has the wrong arguments: {name} is {entry.summary}") from None


def unit_name(unit: Unit) -> str:
    """The name of a unit without its arguments.

    Example:
        >>> unit_name(Block(4, 1))
        'block'
    """
    return parse_spec(_quoted(unit.spec))[0]


def unit_sizes(unit: Unit, layout: Layout) -> dict[str, int]:
    """How many units each key has.

    Example:
        >>> from secateur.types import KeyLayout
        >>> unit_sizes(Filter(), {"fc": KeyLayout((10, 6))})
        {'fc': 10}
    """
    return {key: math.prod(unit.grid(one)) for key, one in layout.items()}


def _quoted(spec: str) -> str:
    """Words as arguments are strings: ``"channel(all, weights)"`` reads as ``"channel('all', 'weights')"``."""
    return re.sub(r"(?<=[(,=])\s*([a-z]+)\s*(?=[,)])", r"'\1'", spec)
