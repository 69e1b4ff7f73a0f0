"""The table of solvers: what makes up for removed weights inside one layer. To add one: a file, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from secateur.core.solvers.layer import Layer, damped, from_groups, relative_error, to_groups
from secateur.core.solvers.obc import obc
from secateur.core.solvers.pairs import Pairs, aim, mean_shift, pair_error, split_pairs
from secateur.core.solvers.refit import refit
from secateur.core.solvers.sparsegpt import sparsegpt

__all__ = [
    "SOLVERS",
    "Layer",
    "Pairs",
    "Solver",
    "SolverEntry",
    "aim",
    "damped",
    "from_groups",
    "mean_shift",
    "pair_error",
    "relative_error",
    "split_pairs",
    "to_groups",
]

Solver: TypeAlias = Callable[[Layer], tuple[Tensor, Tensor]]
"""A layer's problem in; new weights and what is kept out, both ``[groups, rows, columns]``."""


@dataclass(frozen=True, slots=True)
class SolverEntry:
    """A row of the table of solvers.

    Attributes:
        function: the solver.
        chooses: whether it says itself which weights go; else they are gone already.
        summary: one line, with the formula.
        reference: authors, year, arXiv.
    """

    function: Solver
    chooses: bool
    summary: str
    reference: str


def _none(layer: Layer) -> tuple[Tensor, Tensor]:
    return layer.weight * layer.kept, layer.kept


SOLVERS: Mapping[str, SolverEntry] = {
    "none": SolverEntry(_none, False, "masks alone, on inputs that the pruned layers before make", "Sun et al. 2023"),
    "refit": SolverEntry(
        refit, False, "least squares of the kept weights, row by row: min ||(W - W') X||", "normal equations"
    ),
    "sparsegpt": SolverEntry(
        sparsegpt,
        True,
        "columns left to right, (w_j / u_jj)^2 in blocks of 128, the rest makes up for what went",
        "Frantar, Alistarh 2023, arXiv 2301.00774",
    ),
    "obc": SolverEntry(
        obc,
        True,
        "each row greedily by w^2 / [H^-1]_qq, then the layer by what each step costs",
        "Frantar, Singh, Alistarh 2022, arXiv 2208.11580",
    ),
}
