"""One self-contained page: the records as tables, plots and pictures, with no request to any network."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from secateur.records import Explanation, Report, Rivals
from secateur.report import grids, plots
from secateur.report.columns import LEGEND, notes
from secateur.report.headline import headline
from secateur.report.pictures import Masks, pictures
from secateur.report.plot_parts import Plot
from secateur.report.series import DARK, DENSE, LIGHT
from secateur.report.speed import Model, models
from secateur.report.speed_check import Speed
from secateur.report.speed_page import speed_context, speed_plots
from secateur.report.speed_words import speed_headline
from secateur.report.subject import Subject, as_report, need

__all__ = ["to_html"]


def to_html(
    subject: Subject | Speed,
    path: str | os.PathLike[str],
    *,
    masks: Masks | None = None,
    speed: Iterable[Speed] = (),
) -> Path:
    """Writes the report as one HTML file that opens anywhere, offline.

    plotly.js is inlined once; the page forbids itself every request by its content security policy,
    and every name is escaped. The records themselves are inside, as JSON in the element ``#report``.

    Args:
        subject: a ``Record`` or a ``Report``; or one record of speed, alone.
        path: the file to write; its folder is made, an older file is replaced in one step.
        masks: record name -> parameter name -> bool array of two or four dimensions, True =
            kept; up to five of each record, from the first layer to the last, are drawn.
        speed: what ``fast.explain(roofs=True)`` and races of runtimes gave; those with the same title are of the same
            model. Each model gets a part of its own: runtimes, layer by layer, the roofline. A report that has no
            records of its own is then allowed.

    Returns:
        The path that was written.

    Raises:
        ValueError: for a report without records, names that do not line up, masks of a
            record that is not there or of another shape or type, and for times that cannot be.
        ImportError: where jinja2 or plotly is missing, naming the extra.

    Example:
        >>> to_html(Report("nothing", (), ()), "report.html")
        Traceback (most recent call last):
        ...
        ValueError: report 'nothing' has no records: there is nothing to show
    """
    text = _render(*_parts(subject, list(speed)), masks)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _parts(subject: Subject | Speed, speed: list[Speed]) -> tuple[Report, list[Speed]]:
    if isinstance(subject, Explanation | Rivals):
        return Report(subject.title or "Packed model", (), ()), [subject, *speed]
    bare = bool(speed) and isinstance(subject, Report) and not subject.records
    return (subject if bare else as_report(subject)), speed  # type: ignore[return-value]


def _render(report: Report, speed: list[Speed], masks: Masks | None) -> str:
    jinja2, markup = need("jinja2"), need("markupsafe").Markup
    scripts = {"boot": _asset("boot.js"), "plotly": need("plotly.offline").get_plotlyjs(), "page": _asset("page.js")}
    for name, script in scripts.items():
        assert not re.search("</script|<!--", script, re.IGNORECASE), f"{name}.js would end its own element"
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.loader = jinja2.DictLoader({name: _asset(name) for name in ("page.html.j2", "speed.html.j2")})
    found = models(speed)
    timed = speed_plots(found)
    said = _headline(report, found)
    return environment.get_template("page.html.j2").render(
        **_context(report, masks),
        headline=said.replace(" ×", "\u00a0×").replace(" %", "\u00a0%"),
        speed=speed_context(found, timed, said),
        policy=_policy(list(scripts.values())),
        css=markup(_asset("page.css")),
        scripts={name: markup(script) for name, script in scripts.items()},
        payload=markup(_script_json(_payload(report, timed))),
        records=markup(_script_json(report.to_record())),
        speed_records=markup(_script_json([record.to_record() for record in speed])),
    )


def _context(report: Report, masks: Masks | None) -> dict[str, Any]:
    layered = [(i, name) for i, name in enumerate(report.names) if report.records[i].dense.layers]
    return {
        "title": report.title,
        "names": report.names,
        "everyone": list(enumerate(report.names)),
        "headline_grids": grids.headline_grids(report),
        "legend": LEGEND,
        "accuracy": plots.accuracy_plot(report) is not None,
        "layered": layered,
        "layer_grids": [(name, grids.layer_grid(report.records[i], i)) for i, name in layered],
        "scheduled": [(i, name) for i, name in enumerate(report.names) if report.records[i].schedule],
        "latencies": [heading for heading, _ in plots.latency_plots(report)],
        "networks": [heading for heading, _ in plots.bytes_plots(report)],
        "fit_grid": grids.fit_grid(report),
        "agreement_grid": grids.agreement_grid(report),
        "cost_grid": grids.cost_grid(report),
        "pictures": pictures(report, masks),
        "notes": notes(report),
        "environments": grids.environments(report),
        "plans": grids.plans(report),
        "light": LIGHT,
        "dark": DARK,
        "dense": DENSE,
    }


def _headline(report: Report, found: list[Model]) -> str:
    return headline(report) if report.records else speed_headline(found)


def _payload(report: Report, timed: dict[str, Plot]) -> dict[str, Any]:
    """What ``page.js`` draws: plots by name, and the layer plots of each record by its index."""
    drawn: dict[str, Any] = {
        "accuracy": plots.accuracy_plot(report),
        "schedule": plots.schedule_plot(report),
    }
    drawn |= {f"latency-{i}": plot for i, (_, plot) in enumerate(plots.latency_plots(report))}
    drawn |= {f"bytes-{i}": plot for i, (_, plot) in enumerate(plots.bytes_plots(report))}
    layers = {
        str(i): dict(plots.layer_plots(record, i)) for i, record in enumerate(report.records) if record.dense.layers
    }
    return {"plots": {name: plot for name, plot in drawn.items() if plot is not None} | timed, "layers": layers}


def _policy(scripts: list[str]) -> str:
    """A content security policy that allows these scripts, inline styles and data images, and nothing else."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _asset(name: str) -> str:
    return resources.files("secateur.report").joinpath(name).read_text(encoding="utf-8").strip()


def _script_json(value: Any) -> str:
    """JSON that no HTML parser can leave: the three signs of markup and the two line separators are escaped."""
    text = json.dumps(_finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null, which plotly leaves out."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
