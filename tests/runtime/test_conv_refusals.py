"""Nothing that a caller passes makes a convolution read or write where it must not: it is refused at creation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from secateur.runtime.columns import Array
from secateur.runtime.conv_cuts import Planes, Window
from secateur.runtime.conv_streams import pack_conv
from tests.native.oracle import needs_core
from tests.runtime.test_conv_kernels import PLAIN, conv_step, layer

pytestmark = needs_core


def _change(index: int, at: int, value: int) -> Callable[[list[Array]], None]:
    def change(streams: list[Array]) -> None:
        streams[index][at] = value

    return change


def _cut_off(index: int) -> Callable[[list[Array]], None]:
    def cut_off(streams: list[Array]) -> None:
        streams[index] = streams[index][:-1]

    return cut_off


def _extend(index: int) -> Callable[[list[Array]], None]:
    def extend(streams: list[Array]) -> None:
        streams[index] = np.append(streams[index], streams[index][:1])

    return extend


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize(
    "spoil",
    [_change(1, 0, 65535), _change(0, 0, 40), _change(0, 0, 1), _change(0, 1, 60000)]
    + [make(index) for make in (_cut_off, _extend) for index in range(3)],
)
def test_streams_that_lead_astray_are_refused(direct: bool, spoil: Callable[[list[Array]], None]) -> None:
    work = layer((5, 6), (9, 15), Window(3, 3, 1, 1), 1.0)
    cut = replace(PLAIN, direct=direct)
    streams = [stream.copy() for stream in pack_conv(work.weight, work.mask, cut, work.x, work.y, work.window)]
    conv_step("portable", work, cut, (0, 0, 0), tuple(streams))
    spoil(streams)
    with pytest.raises(ValueError, match="convolution: "):
        conv_step("portable", work, cut, (0, 0, 0), tuple(streams))


@pytest.mark.parametrize(
    "spoil",
    [_change(0, 0, 20000), _change(0, 1, 8), _change(0, 1, 3), _change(0, 2, 60000), _change(1, 0, 65535)]
    + [make(index) for make in (_cut_off, _extend) for index in range(3)],
)
def test_channels_in_step_that_lead_astray_are_refused(spoil: Callable[[list[Array]], None]) -> None:
    """Of channels that are numbered, 8 is none of the chunk, and 3 stands in another group already."""
    work = layer((5, 6), (9, 15), Window(3, 3, 1, 1), 1.0)
    cut = replace(PLAIN, layout="even", unit=4)
    streams = [stream.copy() for stream in pack_conv(work.weight, work.mask, cut, work.x, work.y, work.window)]
    conv_step("portable", work, cut, (0, 0, 0), tuple(streams))
    spoil(streams)
    with pytest.raises(ValueError, match="convolution: "):
        conv_step("portable", work, cut, (0, 0, 0), tuple(streams))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Planes(6, 8, 15, 1)}, "sizes"),
        ({"x": Planes(5, 9, 15, 0)}, "padding"),
        ({"window": Window(3, 3, 1, 1, 1, 2)}, "groups"),
        ({"window": Window(3, 3, 2, 1)}, "sizes"),
    ],
)
def test_geometries_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    work = layer((5, 6), (9, 15), Window(3, 3, 1, 1))
    streams = pack_conv(work.weight, work.mask, PLAIN, work.x, work.y, work.window)
    with pytest.raises(ValueError, match=message):
        conv_step("portable", replace(work, **change), PLAIN, (0, 0, 0), streams)


def test_direct_needs_equal_rows() -> None:
    work = layer((5, 6), (9, 15), Window(3, 3, 1, 1), pads=(1, 0))
    with pytest.raises(ValueError, match="direct"):
        conv_step("portable", work, replace(PLAIN, direct=True), (0, 0, 0))
