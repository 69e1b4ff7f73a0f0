"""mkdocs hook: fills ``<!-- table:NAME -->`` with the package's own tables, and shares CONTRIBUTING.md.

The catalogue page is thereby never out of date: it is drawn from the rows that the program uses.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from secateur.core import ALLOCATIONS, CRITERIA, SCHEDULES, UNITS
from secateur.core.names import hyperparameters, needs
from secateur.core.solvers import SOLVERS
from secateur.types import CriterionEntry

__all__ = ["TABLES", "fill", "on_page_markdown"]

ROOT = Path(__file__).resolve().parents[2]
MARKER = re.compile(r"<!-- table:(\w+) -->")
INCLUDE = re.compile(r"<!-- include:([\w./-]+) -->")


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows])


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split()) or "-"


def _options(function: Callable[..., Any]) -> str:
    return ", ".join(f"`{name}`" for name in hyperparameters(function))


_FORWARD, _BACKWARD, _SAMPLES = "forward", "forward and backward", "a backward pass for each sample"
_DIAGONAL = "backward passes: for each sample and output (ggn), sample (fisher), probe (hutchinson) or weight (exact)"
_COSTS = {
    **dict.fromkeys(("weight", "init", "bias", "outgoing", "bn_scale", "noise"), ""),
    **dict.fromkeys(("grad", "grad_abs", "grad_sq", "gate_grad_sq", "reader_gate_abs"), _BACKWARD),
    **dict.fromkeys(("gate_example_abs", "gate_example_sq"), _BACKWARD),
    **dict.fromkeys(("activation_mean", "activation_zeros"), _FORWARD),
    **dict.fromkeys(("macs", "unit_macs"), "multiply-adds counted on the way"),
    **dict.fromkeys(("input_norm", "input_sum", "output_sum"), _FORWARD),
    **dict.fromkeys(("activation_pooled", "activation_max", "labels"), "forward; a number for each unit and example"),
    **dict.fromkeys(("activation_covariance", "contribution_gram"), "forward; units x units numbers for each layer"),
    **dict.fromkeys(("meta_grad", "meta_gate"), "forward and backward through all steps, and the memory of them all"),
    **dict.fromkeys(("hessian_diagonal", "loss_change_sq"), _DIAGONAL),
    "activation_rank": "forward; the rank of every feature map",
    "fisher_diagonal": _SAMPLES,
    "flow": "forward and backward for one example, in float64",
    "gate_change_sq": "forward and backward, and one backward pass through that for each unit",
    "hessian_gradient": "forward, backward, and a backward pass through that",
    "inverse_fisher_diagonal": f"{_SAMPLES}; 128 numbers for each weight (block=)",
    "inverse_hessian_diagonal": "as obd; weights x weights numbers",
    "movement": "one product for each weight in every step of the training",
    "top_dependency": "forward, then forward and backward",
}
"""Evidence -> what a batch costs."""
_PAIRS = frozenset({"geometric_median", "cosine", "weight_correlation", "srinivas_babu"})


def _cost(name: str, row: CriterionEntry) -> str:
    """What a score costs, in passes and memory."""
    passes = "; ".join(dict.fromkeys(cost for kind in needs(row.function) if (cost := _COSTS[kind])))
    if name in _PAIRS:
        return "products of all pairs of units of a layer"
    if not passes:
        return "a pass over the weights"
    read = f"{row.batches} x " if row.data == "batches" else ""
    return f"{row.rounds} rounds: {read}{passes}" if row.rounds > 1 else f"{read}{passes}"


def criteria() -> str:
    """Name, formula, what it reads and costs, hyper-parameters, what the user gives, level and pooling, reference."""
    heads = (
        "criterion",
        "score (low goes first)",
        "reads",
        "costs",
        "options",
        "you give",
        "level, pooled by",
        "reference",
    )
    return _table(
        heads,
        (
            (
                f"`{name}`",
                row.summary,
                ", ".join(needs(row.function)),
                _cost(name, row),
                _options(row.function),
                row.data,
                f"{row.level}, {row.reduce}" if row.level == "weight" else "unit",
                row.reference,
            )
            for name, row in CRITERIA.items()
        ),
    )


def units() -> str:
    """Name and what is removed together."""
    return _table(("unit", "what is removed together"), ((f"`{name}`", row.summary) for name, row in UNITS.items()))


def allocations() -> str:
    """Name, rule, what it reads, options, reference."""
    return _table(
        ("allocation", "units each parameter keeps", "reads", "options", "reference"),
        (
            (f"`{name}`", row.summary, ", ".join(needs(row.function)), _options(row.function), row.reference)
            for name, row in ALLOCATIONS.items()
        ),
    )


def schedules() -> str:
    """Name, formula, options, reference."""
    return _table(
        ("schedule", "sparsity at progress t", "options", "reference"),
        ((f"`{name}`", row.summary, _options(row.function), row.reference) for name, row in SCHEDULES.items()),
    )


def solvers() -> str:
    """Name, rule, whether it chooses, reference."""
    return _table(
        ("solver", "what it does in each layer", "chooses the weights", "reference"),
        ((f"`{name}`", row.summary, "yes" if row.chooses else "no", row.reference) for name, row in SOLVERS.items()),
    )


TABLES: dict[str, Callable[[], str]] = {
    "criteria": criteria,
    "units": units,
    "allocations": allocations,
    "schedules": schedules,
    "solvers": solvers,
}


def fill(markdown: str) -> str:
    """Replace the markers of a page.

    Raises:
        KeyError: for a table that does not exist.
    """
    page = MARKER.sub(lambda match: TABLES[match.group(1)](), markdown)
    return INCLUDE.sub(lambda match: (ROOT / match.group(1)).read_text(encoding="utf-8"), page)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)
