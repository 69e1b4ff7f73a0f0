"""What is read of the activations at the places where they are made. To add a statistic, see `reader_table`."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from secateur.model.evidence.example_axis import ExampleAxis
from secateur.model.graph.site import Site
from secateur.model.ranks import Ranks

__all__ = ["Reader", "ReaderRow", "Reading"]


_FIRST = ExampleAxis()


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One activation, as an operator made it.

    Attributes:
        site: whose it is, and along which axes its channels lie.
        number: of this site among those of its producer in this pass.
        values: the operator's output, of any shape; it may be overwritten later in the pass.
        valid: False at padding, broadcastable to ``values``; None where all counts.
        examples: where examples lie, for readers that ask.
        made: the output itself, which has its history when the pass is over; for readers that differentiate.
    """

    site: Site
    number: int
    values: Tensor
    valid: Tensor | None
    made: Tensor
    examples: ExampleAxis = _FIRST

    def by_example(self, values: Tensor, size: int) -> Tensor:
        """``[examples, rows, ..., places]`` of a tensor that spreads to the activation.

        Raises:
            ValueError: where the examples do not lie as they did in the first batch.
        """
        own = self.examples
        if own.axis in self.site.axes or self.values.shape[own.axis] % size:
            raise ValueError(
                f"the activation of {self.site.producer!r} has shape {tuple(self.values.shape)}, and {size} examples "
                f"should lie along axis {own.axis}; take a criterion that does not ask for examples, such as apoz"
            )
        return own.gather(values.expand(self.values.shape), size, self.site.axes)

    def over_rest(self, values: Tensor) -> Tensor:
        """Sums over all axes but those of channels, float64 ``[places]``."""
        rest = [axis for axis in range(values.dim()) if axis not in self.site.axes]
        return (values.sum(rest, dtype=torch.float64) if rest else values.double()).reshape(-1)

    def counts(self) -> Tensor:
        """How many values there are at each place ``[places]``; padding lies beside the axes of channels."""
        places = self.site.index.numel()
        each = self.values.numel() / places
        if self.valid is not None:
            each *= float(self.valid.double().mean())
        return torch.full((places,), float(round(each)), dtype=torch.float64)


class Reader(ABC):
    """Sums something up, pass by pass: what one pass read counts when ``commit`` is called behind it."""

    by_example: ClassVar[bool] = False
    """Whether it asks where examples lie; that is tried by two small runs more."""
    saved: ClassVar[tuple[str, ...]] = ()
    """Attributes that hold what was committed: tensors, numbers, and containers of them."""

    def configure(self, settings: Mapping[str, Any]) -> None:  # noqa: B027 - most readers know none
        """Take what it knows of the hyper-parameters of the criterion that asks."""

    @abstractmethod
    def begin(self, batch: Any) -> None:
        """A pass begins; what an uncommitted one before it read is forgotten."""

    @abstractmethod
    def read(self, reading: Reading) -> None:
        """One activation of the pass."""

    @abstractmethod
    def commit(self) -> None:
        """The pass counts."""

    @abstractmethod
    def combine(self, ranks: Ranks) -> None:
        """What was committed here becomes what was committed on all ranks; collective."""

    @abstractmethod
    def seen(self) -> frozenset[str]:
        """The producers all of whose channels were read."""

    @abstractmethod
    def result(self) -> dict[str, dict[str, Tensor]]:
        """Kind -> producer -> tensor, of those that were seen."""

    @abstractmethod
    def nothing(self, size: int) -> dict[str, Tensor]:
        """Kind -> tensor, of a layer of so many channels that never fires."""

    def state_dict(self) -> dict[str, Any]:
        """What was committed so far, for a checkpoint."""
        return {name: copy.deepcopy(getattr(self, name)) for name in self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        for name in self.saved:
            setattr(self, name, copy.deepcopy(state[name]))


@dataclass(frozen=True, slots=True)
class ReaderRow:
    """A row of the table of readers: ``make(channels of each producer, wanted kinds) -> Reader``."""

    kinds: Mapping[str, str]
    make: Callable[[Mapping[str, int], frozenset[str]], Reader]
