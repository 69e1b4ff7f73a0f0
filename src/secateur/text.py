"""Numbers as text, one spelling for every room: three significant digits, SI prefixes, decimal bytes."""

from __future__ import annotations

import math

__all__ = ["MISSING", "data_size", "decimals", "quantity", "three"]

MISSING = "–"
"""What stands where a number is not there."""


def three(value: float | None) -> str:
    """Three significant digits, never an exponent.

    Example:
        >>> [three(v) for v in (0.98123, 9.999, 41.26, 1234.5, 0.01239, 0, None, math.inf)]
        ['0.981', '10.0', '41.3', '1,234', '0.0124', '0', '–', '∞']
    """
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0:
        return "0"
    return f"{value:,.{decimals(value)}f}"


def decimals(value: float) -> int:
    """Decimal places that three significant digits take."""
    # the exponent after rounding, so that 9.999 becomes 10.0 and not 10.00
    exponent = int(f"{abs(value):.2e}".partition("e")[2])
    return max(0, 2 - exponent)


def quantity(value: float, unit: str = "") -> str:
    """An SI prefix and three digits.

    Example:
        >>> quantity(41_700_000), quantity(999_999), quantity(61_706), quantity(12), quantity(0)
        ('41.7 M', '1.00 M', '61.7 k', '12', '0')
    """
    for scale, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if float(f"{value:.3g}") >= scale:
            return f"{three(value / scale)} {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def data_size(count: int) -> str:
    """Decimal bytes.

    Example:
        >>> data_size(1_204_332), data_size(61_706), data_size(812)
        ('1.20 MB', '61.7 kB', '812 B')
    """
    return quantity(count, "B")
