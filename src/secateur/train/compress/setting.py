"""What every candidate of a run has in common: the dense model, the data, the clock's inputs, the judge."""

from __future__ import annotations

import copy
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from secateur.measure.fit import Data, compare, evaluate, first_inputs
from secateur.measure.latency import repeated
from secateur.measure.quiet import quiet
from secateur.model.batches import limited, to_device
from secateur.model.names import unwrap
from secateur.model.removal.registry import carry_mark
from secateur.records import Score
from secateur.train.loop.feed import make_feed
from secateur.train.loop.fitted import Metric
from secateur.train.loop.training import Training
from secateur.train.recovery.fresh import Initialise

__all__ = ["ACCURACY", "Judge", "Setting", "copied", "example_of", "undisturbed"]

ACCURACY = "accuracy, %"
"""What the metric is called where the user gives none; no function can be called so."""


@final
class Judge:
    """Scores models beside the dense one.

    Args:
        dense: the user's model.
        metric: the user's; None: top-1 accuracy in per cent.
    """

    def __init__(self, dense: nn.Module, metric: Metric | None) -> None:
        self._dense, self._metric = dense, metric
        self._known: dict[str, float] = {}

    @property
    def name(self) -> str:
        """Of the metric."""
        return ACCURACY if self._metric is None else getattr(self._metric, "__name__", "metric")

    def dense(self, data: Data, split: str) -> Score:
        """Score of the dense model.

        Args:
            data: of the split.
            split: its name.

        Returns:
            A score without a drop.

        Raises:
            ValueError: if the metric is no finite number.
        """
        return Score(split, self._of_dense(data, split))

    def score(self, model: nn.Module, data: Data, split: str) -> Score:
        """Score of a candidate, and what the dense model has more.

        The drop of accuracy is paired: its error comes from the samples that one of the two gets right alone.

        Args:
            model: the candidate.
            data: of the split.
            split: its name.

        Returns:
            The score.

        Raises:
            ValueError: if the metric is no finite number.
        """
        if self._metric is not None:
            value = self._value(model, data, split)
            return Score(split, value, self._of_dense(data, split) - value)
        dense, found, both = compare(self._dense, model, data)
        lost = dense.top1 - found.top1
        variance = max(2 * both.negative_flips - lost - lost * lost, 0.0) / dense.samples
        return Score(split, 100 * found.top1, 100 * lost, 100 * variance**0.5)

    def _of_dense(self, data: Data, split: str) -> float:
        if split not in self._known:
            self._known[split] = self._value(self._dense, data, split)
        return self._known[split]

    def _value(self, model: nn.Module, data: Data, split: str) -> float:
        if self._metric is None:
            try:
                return 100 * evaluate(model, data, split=split).top1
            except ValueError as error:
                raise ValueError(f"{split}: {error}. Here: give metric=, e.g. lambda model, data: a number") from error
        with quiet(model, loader=data):
            value = self._metric(model, data)
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"metric(model, {split}) returned {value!r}; it has to return one number") from error
        if not np.isfinite(number):
            which = "the dense model" if model is self._dense else "a candidate"
            raise ValueError(f"metric(model, {split}) of {which} is {number}; it has to be a finite number")
        return number


@dataclass(frozen=True)
class Setting:
    """What every candidate of a run has in common.

    Attributes:
        dense: a copy of the user's model, in eval mode; never changed.
        train: what is trained on, and what criteria and batch norms read.
        valid: what is searched on.
        test: what is told; None: valid.
        recovery: how points are trained; loss and step are in it.
        judge: of models.
        example: inputs to trace and count with.
        batch: of the clock.
        seed: of everything random.
        fresh_state: for roads that begin before training: a state dict of weights that were never trained.
        initialise: else this initialises a model; None: its modules do.
    """

    dense: nn.Module
    train: Any
    valid: Any
    test: Any
    recovery: Training
    judge: Judge
    example: Any
    batch: int
    seed: int
    fresh_state: Mapping[str, Tensor] | None = None
    initialise: Initialise | None = None

    @property
    def inputs(self) -> Any:
        """What the clock runs."""
        return repeated(self.example, self.batch)

    @property
    def evidence(self) -> Any:
        """Training data in batches, always in the same order, for what reads a few of them."""
        device = next((parameter.device for parameter in self.dense.parameters()), torch.device("cpu"))
        return _Replayed(self.train, self.recovery, device)


@final
class _Replayed:
    """The first epoch of a training, as often as it is asked for."""

    def __init__(self, data: Any, training: Training, device: torch.device) -> None:
        self._data, self._training, self._device = data, training, device

    def __iter__(self) -> Iterator[Any]:
        return make_feed(self._data, self._training, self._device).epoch(0)


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode that still knows that it was shrunk; masks stay behind.

    Args:
        model: any module.
    """
    root = unwrap(model)
    twin = copy.deepcopy(root).eval()
    carry_mark(root, twin)
    for parameter in twin.parameters():
        parameter.grad = None
    return twin


def example_of(model: nn.Module, data: Any, given: Any) -> Any:
    """Two samples to trace and count with, on the model's device.

    Args:
        model: whose inputs they are.
        data: to take them from.
        given: by the user, or None.

    Returns:
        A tensor, a tuple, or a mapping of keyword arguments.

    Raises:
        ValueError: if they cannot be taken from data.
    """
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    if given is not None:
        return to_device(given, device)
    with quiet(loader=data):
        batch = next(limited(data, 1))
    if isinstance(batch, Mapping):
        raise ValueError(
            "batches are mappings, of which example inputs cannot be guessed: give example_inputs=, what goes in as "
            "model(**example_inputs), without labels"
        )
    try:
        inputs = first_inputs(data)
    except ValueError as error:
        raise ValueError(f"example inputs cannot be taken from valid: {error}. Here: give example_inputs=") from error
    return to_device(repeated(inputs, 2), device)


@contextmanager
def undisturbed(*loaders: Any) -> Generator[None]:
    """Every random state, and the order of the loaders, is afterwards as it was.

    Example:
        >>> state = torch.get_rng_state()
        >>> with undisturbed():
        ...     _ = torch.rand(3)
        >>> torch.equal(torch.get_rng_state(), state)
        True
    """
    batches = [getattr(each, "batch_sampler", None) for each in loaders]
    places = [*loaders, *batches, *(getattr(each, "sampler", None) for each in (*loaders, *batches))]
    owned = [getattr(place, "generator", None) for place in places]
    generators = [(g, g.get_state()) for g in owned if isinstance(g, torch.Generator)]
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is the user's
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):  # pyright: ignore[reportUnknownMemberType]
        try:
            yield
        finally:
            for generator, state in generators:
                generator.set_state(state)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
