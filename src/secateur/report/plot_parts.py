"""What plots share: colours, axes, labels, texts that plotly takes as they are."""

from __future__ import annotations

import html
import math
import textwrap
from typing import Any

from secateur.report.series import LIGHT

__all__ = [
    "DENSE",
    "Plot",
    "bar_layout",
    "colour",
    "hover",
    "layer_label",
    "log_ticks",
    "record_label",
    "safe",
    "short",
    "title",
]

Plot = dict[str, Any]

DENSE = "var(--dense)"
LABEL = 30  # characters of a name beside an axis


def colour(record: int) -> str:
    """The colour of a record, the same in every plot."""
    return f"var(--c{record % len(LIGHT)})"


def log_ticks(low: float, high: float, suffix: str = "") -> Plot:
    """Ticks of a logarithmic axis at 1, 2 and 5, or at powers of ten alone where there are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high <= 2000 * low else (1,)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    return {"tickvals": inside, "ticktext": [f"{tick:g}{suffix}" for tick in inside]}


def bar_layout(labels: list[str], row: int, reach: float, suffix: str, pixels: int = 60) -> Plot:
    """Horizontal bars, the first on top, ``row`` pixels each."""
    places = list(range(len(labels)))
    tick = {"tickvals": places, "ticktext": [label + "  " for label in labels]}
    prefixed = {} if suffix.endswith("s") else {"tickformat": "~s"}
    return {
        "height": pixels + row * max(1, len(labels)),
        "barmode": "overlay",
        "xaxis": {"range": [0, reach], "ticksuffix": suffix, "nticks": 6, **prefixed},
        "yaxis": {**tick, "range": [len(labels) - 0.5, -0.5], "automargin": True, "showgrid": False, "zeroline": False},
        "margin": {"t": 8, "b": 36, "l": 8, "r": 16},
    }


def title(text: str) -> Plot:
    """Of an axis."""
    return {"text": text, "font": {"size": 13}, "standoff": 12}


def short(name: str) -> str:
    """A name beside an axis."""
    return name if len(name) <= LABEL else name[: LABEL - 1] + "…"


def layer_label(name: str) -> str:
    """Module paths differ at their ends."""
    return safe(name if len(name) <= LABEL else "…" + name[1 - LABEL :])


def record_label(name: str) -> str:
    """Up to two lines, so that a telephone has room for the bars."""
    lines = textwrap.wrap(name, LABEL // 2 + 2, max_lines=2, placeholder="…") or [""]
    return "<br>".join(map(safe, lines))


def safe(text: str) -> str:
    """Plotly reads a subset of HTML, and TeX between dollar signs; a name is neither."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def hover(name: str, *lines: str) -> str:
    """What stands beside the pointer."""
    return "<br>".join([f"<b>{safe(name)}</b>", *map(safe, lines)])
