"""The words of the pipeline, and nothing else.

    weights, batches -> evidence -> scores -> pooled -> kept counts -> unit masks -> apply -> measure
                        collect     criterion  unit     allocate       top-k

Everything here is a name for a shape of data or for a kind of function. No module of
the package is imported, so every room may speak these words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from torch import Tensor

__all__ = [
    "NM",
    "Allocation",
    "AllocationEntry",
    "Criterion",
    "CriterionEntry",
    "Evidence",
    "KeyLayout",
    "Kind",
    "Layout",
    "Level",
    "Member",
    "Reduce",
    "Role",
    "Schedule",
    "ScheduleEntry",
    "Tensors",
    "Unit",
    "UnitEntry",
    "Update",
]

Tensors: TypeAlias = Mapping[str, Tensor]
"""Named tensors. The name is the parameter's fully qualified name."""

Evidence: TypeAlias = Mapping[str, Tensors]
"""What a criterion may read: kind of evidence -> (parameter name -> tensor)."""

Role: TypeAlias = Literal["first", "hidden", "output", "depthwise", "embedding"]
Kind: TypeAlias = Literal["linear", "conv", "conv_transpose", "embedding", "bias", "group"]
Level: TypeAlias = Literal["weight", "unit"]
Reduce: TypeAlias = Literal["mean", "sum", "l2", "rms", "max"]


@dataclass(frozen=True, slots=True)
class Member:
    """One axis of one tensor of a coupled group.

    Attributes:
        name: parameter or buffer.
        shape: of that tensor.
        dim: the axis.
        part: ``"out"``: positions along it are made by the tensor (filters), ``"in"``: read by it (input channels),
            ``"follows"``: neither (biases, norms, running statistics), ``"direction"``: rows of a weight norm, which
            have no direction when they are zero: masking leaves them alone and zeroes their lengths.
        owner: for each position along the axis the unit of the group it goes with, -1 for none.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    part: Literal["out", "in", "follows", "direction"]
    owner: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class KeyLayout:
    """How one target is laid out: a parameter, or a coupled group of slices of several.

    A linear layer counts as a 1x1 convolution everywhere: its kernel has one position.

    Attributes:
        shape: shape of the parameter as the module stores it; of a group, the number of its units.
        kind: the operation that reads it, ``"bias"`` for what it adds, or ``"group"``.
        groups: groups of a grouped convolution, else 1.
        role: place in the network; allocations treat the first and the output layer apart.
        members: of a group, the axes of tensors that its units are slices of.
    """

    shape: tuple[int, ...]
    kind: Kind = "linear"
    groups: int = 1
    role: Role = "hidden"
    members: tuple[Member, ...] = ()


Layout: TypeAlias = Mapping[str, KeyLayout]

Criterion: TypeAlias = Callable[..., Tensor]
"""Evidence of one parameter in, its scores out; **low scores go first**.

Positional parameters name the evidence (``snip(weight, grad_abs)``), keyword-only
parameters are hyper-parameters.
"""

Allocation: TypeAlias = Callable[..., dict[str, int]]
"""How many units each key keeps. Inputs are asked for by parameter name:
``scores`` (pooled), ``keep`` (units to keep in all), ``sizes`` (units per key),
``layout``, and the name of any evidence."""

Update: TypeAlias = Callable[..., dict[str, Tensor]]
"""Weights (name -> tensor), masks of what was removed (name -> bool, True: gone) and evidence in, new weights out."""

Schedule: TypeAlias = Callable[[float, float, float], float]
"""``(progress in [0, 1], initial, final) -> sparsity``."""


@dataclass(frozen=True, slots=True)
class NM:
    """Keep ``keep`` of every ``of`` consecutive weights along the input axis.

    The count is of the *kept* weights, as in the hardware's "2:4". A tail shorter
    than ``of`` stays dense; groups never wrap into the next row.

    Example:
        >>> NM(keep=2, of=4).sparsity
        0.5
        >>> str(NM(keep=1, of=4))
        '1 of 4'
    """

    keep: int
    of: int

    def __post_init__(self) -> None:
        whole = all(type(count) is int for count in (self.keep, self.of))
        if not (whole and 1 <= self.keep < self.of <= 64):
            raise ValueError(
                f"NM(keep={self.keep!r}, of={self.of!r}): keep counts the weights that stay in each group, "
                "so 1 <= keep < of <= 64 is needed; hardware 2:4 is NM(keep=2, of=4)"
            )

    @property
    def sparsity(self) -> float:
        """Share of weights removed where the axis divides evenly."""
        return 1.0 - self.keep / self.of

    def __str__(self) -> str:
        return f"{self.keep} of {self.of}"


@runtime_checkable
class Unit(Protocol):
    """What is removed together. Scores are pooled to units, unit masks expanded to weights."""

    @property
    def spec(self) -> str:
        """The string that makes this unit again, ``"block(4, 1)"``."""
        ...

    def grid(self, layout: KeyLayout) -> tuple[int, ...]:
        """Shape of the unit mask of one parameter."""
        ...

    def pool(self, scores: Tensors, layout: Layout, reduce: Reduce = "mean") -> dict[str, Tensor]:
        """Weight scores (parameter shape) -> unit scores (grid shape)."""
        ...

    def expand(self, unit_masks: Tensors, layout: Layout) -> dict[str, Tensor]:
        """Unit masks (grid shape) -> weight masks (parameter shape)."""
        ...


@dataclass(frozen=True, slots=True)
class CriterionEntry:
    """A row of the table of criteria.

    Attributes:
        function: the criterion.
        level: ``"weight"``: scores like the weight, then pooled; ``"unit"``: evidence is
            collected per unit and the score is per unit.
        reduce: how weight scores of one unit become its score, unless the user says otherwise.
        units: for ``level="unit"``, the units it is defined for (None: any).
        batches: how many batches it reads unless the user says otherwise.
        rounds: how many rounds one pruning takes, with new evidence in each, unless the user says otherwise.
        regrow: whether what a round removed may return in the next; it competes with the value it had.
        update: for methods that change the kept weights along: ``(weights, removed, evidence...) -> new weights``,
            mappings of parameter names; the positional parameters behind the first two name the evidence.
        coupled: for ``level="unit"`` and coupled channels: its evidence is per group and unit, not per output of the
            layers that make the channels.
        data: what the user has to give, in words: "none", "init", "batches", "training".
        summary: one line, with the formula.
        reference: authors, year, arXiv.
        merge: for criteria whose removed units others can take over: rows of units (``core/unit_rows``) by name,
            ``kept`` (bool [units]) and ``removed`` (numbers) to the partner and the factor of each removed unit.
            ``weight`` and ``bias`` come with batch norms folded in, for the scores of such a pruning too.
        fit: for criteria whose removed units others stand in for by least squares where they are read:
            ``(covariance, mean, kept)`` of what a layer reads to the fits (``core/criteria/correlated``).
        elementwise: without settings each score follows from the evidence at the same place alone, so that pieces of
            a tensor may be scored by themselves, and more than once.
    """

    function: Criterion
    level: Level
    reduce: Reduce
    data: str
    summary: str
    reference: str
    units: frozenset[str] | None = None
    batches: int = 1
    merge: Callable[..., tuple[Tensor, Tensor]] | None = None
    fit: Callable[[Tensor, Tensor, Tensor], Any] | None = None
    rounds: int = 1
    regrow: bool = False
    update: Update | None = None
    elementwise: bool = False
    coupled: bool = False


@dataclass(frozen=True, slots=True)
class UnitEntry:
    """A row of the table of units: ``factory(*arguments) -> Unit``."""

    factory: Callable[..., Unit]
    summary: str


@dataclass(frozen=True, slots=True)
class AllocationEntry:
    """A row of the table of allocations.

    Attributes:
        function: the allocation.
        summary: one line, with the formula.
        reference: authors, year, arXiv.
        own_total: the rule decides itself how many units stay in all (by cost); ``keep`` does not bind it.
    """

    function: Allocation
    summary: str
    reference: str
    own_total: bool = False


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """A row of the table of schedules."""

    function: Schedule | Callable[..., float]
    summary: str
    reference: str
