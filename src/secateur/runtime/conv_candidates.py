"""Which cuts of a convolution are worth timing. The sizes come from measurements on a first cache of 32 KB."""

from __future__ import annotations

from secateur.runtime.conv_cuts import Cut, Planes, Window

__all__ = ["conv_candidates", "image_candidates", "runs_direct"]

_DIRECT = 13_000  # floats of pixels that a block of channels may take: 1x1 reads them once per chunk, in order
_TAPS = 8_000  # the same where several taps read them
_COPIED = 9_000
_STEPS, _ALIKE = 4, 8_192  # of channels in step: vectors of a tile; floats of pixels of a block
_CHANNELS = 32  # of a block where several taps read copied pixels
_SPARSE = 0.07  # at lower densities blocks are larger: a row should keep 15 weights and more in a block
_REACH = 65_535  # offsets have 16 bits
_LONGEST = 14  # vectors that registers hold
_BESIDE = 44 * 256  # floats of 16 images that a block of channels may take where several taps read them
_BESIDE_ONE = 72 * 256  # and with one tap
_PAYING = 16  # output channels that pay for copying the pixels of 16 images
_WIDE = {1: 8, 2: 8, 4: 6}  # pixels of 16 images that a group of so many output channels takes at once


def runs_direct(x: Planes, y: Planes, window: Window) -> bool:
    """Whether a convolution can read its pixels where they are.

    Example:
        >>> runs_direct(Planes(8, 14, 14, pad=1), Planes(8, 14, 14, pad=1), Window(1, 1))
        True
    """
    return window.step == 1 and x.row == y.row


def conv_candidates(x: Planes, y: Planes, window: Window, density: float, threads: int = 1) -> list[Cut]:
    """Two to four cuts, of which usually one is within 3 % of the best.

    Args:
        x: geometry of the input.
        y: geometry of the output.
        window: the kernel.
        density: share of kept weights. 1 gives dense cuts, for weights that lost nothing.
        threads: into how many pieces the output channels are cut at least, if there are enough.

    Returns:
        Cuts for `pack_conv`, the likeliest first.

    Example:
        >>> x = Planes(256, 14, 14, pad=1)
        >>> [(cut.layout, cut.unit, cut.direct) for cut in conv_candidates(x, x, Window(3, 3, padding=1), 0.1)]
        [('blocks', 1, False), ('rows', 4, False), ('blocks', 1, True), ('even', 4, False)]
    """
    if not 0 <= density <= 1 or threads < 1:
        raise ValueError(f"density={density}, threads={threads}: expected a share from 0 to 1 and at least one thread")
    outputs = y.channels // window.groups
    if density == 1 and outputs >= 2:
        units = [("blocks", 4 if outputs > 2 else 2)]
    elif outputs == 1 or density < _SPARSE:
        units = [("blocks", 1)]
    else:
        units = [("blocks", 1), ("rows", 4 if outputs > 2 else 2)]
        units = units[::-1] if density >= 0.15 else units
    cuts: list[Cut] = []
    for direct in _ways(x, y, window):
        for layout, unit in units:
            chunk = -(-outputs // threads)
            chunk = min(-(-chunk // unit) * unit, 32768)
            lanes, tile, block = (_direct if direct else _copied)(x, y, window, density, unit)
            cuts.append(Cut(layout, unit, direct, lanes, tile, block, chunk))
    return _with_even(cuts[:3], x, y, window, density, threads)


def _with_even(cuts: list[Cut], x: Planes, y: Planes, window: Window, density: float, threads: int) -> list[Cut]:
    """Four channels in step are likeliest with one tap; several pay where pixels are copied."""
    outputs, inputs, direct = y.channels // window.groups, x.channels // window.groups, cuts[0].direct
    one = window.height * window.width == 1
    if density == 1 or outputs < 4 or (not one and (direct or density < _SPARSE or cuts[0].lanes == 8)):
        return cuts
    block = _ALIKE // (16 * _STEPS) * (2 if density < _SPARSE else 1) if one else _CHANNELS
    if direct:
        most = _REACH // (x.stride >> 4) + 1
    else:
        most = _REACH * 8 // _copied_floats(y, window, min(_STEPS, y.height), cuts[0].lanes)
    chunk = -(-outputs // threads)
    tile = _STEPS if direct else min(_STEPS, y.height)
    lanes = 16 if direct else cuts[0].lanes
    even = Cut("even", 4, direct, lanes, tile, _even(inputs, min(block, most)), min(-(-chunk // 4) * 4, 32768))
    return [even, *cuts] if one else [*cuts, even]


def image_candidates(x: Planes, y: Planes, window: Window, density: float, threads: int = 1) -> list[Cut]:
    """As `conv_candidates`, for 16 images side by side.

    Example:
        >>> x = Planes(256, 14, 14, pad=1, lanes=16)
        >>> [(cut.layout, cut.unit, cut.tile) for cut in image_candidates(x, x, Window(3, 3, padding=1), 0.1)]
        [('blocks', 1, 7), ('rows', 4, 5)]
    """
    outputs = y.channels // window.groups
    copied = window.height * window.width == 1 and outputs >= _PAYING
    if density == 1 and outputs >= 2:
        units = [("blocks", 4 if outputs > 2 else 2)]
    elif outputs == 1 or (density < _SPARSE and not copied):
        units = [("blocks", 1)]
    else:
        units = [("blocks", 1), ("rows", 4 if outputs > 2 else 2)]
        units = units[::-1] if copied else units
    cuts: list[Cut] = []
    for layout, unit in units:
        tile, block = (_neighbours if copied else _where_they_are)(x, y, window, density, unit)
        chunk = outputs if copied else -(-outputs // threads)  # threads share the tiles of what is copied
        cuts.append(Cut(layout, unit, not copied, 16, tile, block, min(-(-chunk // unit) * unit, 32768)))
    return cuts


def _where_they_are(x: Planes, y: Planes, window: Window, density: float, unit: int) -> tuple[int, int]:
    """Tile and block of 16 images side by side."""
    tile = _even(y.width, _WIDE[unit]) if window.step <= 2 else 1
    pixels = (tile - 1) * window.step + window.dilation * (window.width - 1) + 1
    taps = window.height * window.width
    block = (_BESIDE // (window.height * pixels * 16)) if taps > 1 else _BESIDE_ONE // (tile * 16)
    block = 2 * block if density < _SPARSE else block
    far = window.dilation * ((window.height - 1) * x.row + (window.width - 1) * 16) >> 4
    return tile, _even(x.channels // window.groups, min(block, (_REACH - far) // (x.stride >> 4) + 1))


def _neighbours(x: Planes, y: Planes, window: Window, density: float, unit: int) -> tuple[int, int]:
    """The same where the pixels of a tile are copied: fewer of them the more channels there are."""
    inputs = x.channels // window.groups
    if density == 1:
        return _WIDE[4], _even(inputs, 192)
    tile, block = (8 if inputs <= 128 else 5, 160) if unit == 1 else (min(6, max(3, 640 // inputs)), 256)
    return tile, _even(inputs, 2 * block if density < _SPARSE else block)


def _ways(x: Planes, y: Planes, window: Window) -> list[bool]:
    """Direct or copied, the likelier first."""
    if not runs_direct(x, y, window):
        return [False]
    if window.height * window.width == 1 or window.groups == x.channels:
        return [True]
    # Few output channels do not pay for the copy; wide maps lose more by rows rounded up than by loads across lines.
    few = y.channels // window.groups <= 32 or -(-y.width // 16) * 16 > 1.13 * y.width > 40
    return [True, False] if few or y.width >= 40 else [False, True]


def _direct(x: Planes, y: Planes, window: Window, density: float, unit: int) -> tuple[int, int, int]:
    pixels = (y.height - 1) * y.row + y.width
    lanes = 8 if -(-pixels // 8) % 2 and pixels <= 8 * _LONGEST else 16
    vectors = -(-pixels // lanes)
    inputs = x.channels // window.groups
    step, taps, shift = _reach(x, window)
    if window.height * window.width == 1:
        least, most = (4, 6) if unit == 4 else (6, 12)  # few channels: longer runs of every plane are written at once
        tile = min(vectors, max(least, min(most, _COPIED // (lanes * inputs))))
        block = _DIRECT // (tile * lanes)
    else:
        tile = min(vectors, 12 if window.groups < x.channels else _LONGEST)
        block = _TAPS // (tile * lanes + (window.height - 1) * x.row)
    block = 2 * block if density < _SPARSE else block
    return lanes, tile, _even(inputs, min(block, (_REACH - (taps >> shift)) // (step >> shift) + 1))


def _copied(x: Planes, y: Planes, window: Window, density: float, unit: int) -> tuple[int, int, int]:
    lanes = 16 if -(-y.width // 16) * 2 == -(-y.width // 8) else 8
    if y.width > 24:  # the ends of long rows cost less than twice as many instructions
        lanes = 16
    vectors = -(-y.width // lanes)
    tile = min(max(1, round((_LONGEST / 2 + 0.5) / vectors)), y.height)
    inputs = x.channels // window.groups
    while 2 * tile <= min(y.height, 4) and inputs * _copied_floats(y, window, 2 * tile, lanes) <= _COPIED:
        tile *= 2  # few channels, as of a stem: the weights are read less often
    floats = _copied_floats(y, window, tile, lanes)
    block = (_COPIED if window.height * window.width > 1 else _DIRECT) // floats
    block = 2 * block if density < _SPARSE else block
    return lanes, tile, _even(inputs, min(block, _REACH * 8 // floats))


def _copied_floats(y: Planes, window: Window, tile: int, lanes: int) -> int:
    """Of one channel, for a tile of so many rows."""
    rows = sum(tile + max(h * window.dilation // window.step for h in taps) for taps in _phases(window))
    return window.width * rows * -(-y.width // lanes) * lanes


def _phases(window: Window) -> list[list[int]]:
    """Rows of the kernel that share copied rows of pixels."""
    places = [[h for h in range(window.height) if h * window.dilation % window.step == f] for f in range(window.step)]
    return [taps for taps in places if taps]


def _reach(x: Planes, window: Window) -> tuple[int, int, int]:
    taps = (window.height - 1) * window.dilation * x.row + (window.width - 1) * window.dilation
    return x.stride, taps, 4 if window.height * window.width == 1 else 0


def _even(channels: int, most: int) -> int:
    """Blocks as equal as can be."""
    blocks = -(-channels // max(most, 1))
    return -(-channels // blocks)
