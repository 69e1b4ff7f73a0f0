"""The batches of a training, in an order that depends on the seed and the epoch alone, so that it can be replayed."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast, final

import torch
from torch import Tensor

from secateur.model.batches import Batch, to_device
from secateur.train.loop.randomness import mixed, seed_all, seed_torch
from secateur.train.loop.training import Training

__all__ = ["Feed", "fingerprint", "make_feed", "steps_per_epoch"]


class Feed(ABC):
    """The batches of every epoch."""

    @property
    @abstractmethod
    def length(self) -> int | None:
        """Batches per epoch; None where only reading tells."""

    @property
    def generators(self) -> Sequence[torch.Generator]:
        """Random states of the data itself that ``epoch`` seeds."""
        return ()

    @abstractmethod
    def describe(self) -> str:
        """What is read, to tell two data sets apart."""

    @abstractmethod
    def epoch(self, number: int) -> Iterator[Batch]:
        """Seed everything for an epoch (from 0) and give its batches, on the model's device."""


@final
class TensorFeed(Feed):
    """Whole tensors, cut into batches along axis 0 in a new order each epoch."""

    def __init__(
        self, data: tuple[Tensor, ...] | Mapping[str, Tensor], training: Training, device: torch.device
    ) -> None:
        self._data, self._size, self._seed, self._device = data, training.batch_size, training.seed, device
        tensors = list(data.values()) if isinstance(data, Mapping) else list(data)
        lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
        if len(lengths) != 1 or not min(lengths):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
            raise ValueError(f"data of shapes {shapes}: axis 0 has to be the samples, the same number for all, not 0")
        self._samples = lengths.pop()
        self._at = tensors[0].device

    @property
    def length(self) -> int:
        return -(-self._samples // self._size)

    def describe(self) -> str:
        values = self._data.values() if isinstance(self._data, Mapping) else self._data
        return "tensors of shapes " + ", ".join(str(tuple(tensor.shape)) for tensor in values)

    def epoch(self, number: int) -> Iterator[Batch]:
        seed_all(mixed(self._seed, number, 1))
        order = torch.randperm(self._samples, generator=torch.Generator().manual_seed(mixed(self._seed, number, 0)))
        parts = cast("tuple[Tensor, ...]", order.to(self._at).split(self._size))  # pyright: ignore[reportUnknownMemberType]
        data, here = self._data, self._at == self._device
        if isinstance(data, Mapping):
            found: Iterator[Batch] = ({key: tensor[index] for key, tensor in data.items()} for index in parts)
        else:
            found = (tuple([tensor[index] for tensor in data]) for index in parts)
        return found if here else (to_device(batch, self._device) for batch in found)


@final
class LoaderFeed(Feed):
    """A DataLoader, or anything else that can be read again and again."""

    def __init__(self, data: Any, training: Training, device: torch.device) -> None:
        if not hasattr(data, "__iter__"):
            raise ValueError(f"data={data!r} is no data: give a DataLoader, a list of batches, or tensors (x, y)")
        if _is_used_up(data):
            raise ValueError(
                f"data={type(data).__name__} can be read once only, and every epoch reads it: give the loader itself, "
                "a list of batches, or a pair of tensors (x, y)"
            )
        self._data: Any = data
        self._seed, self._device = training.seed, device
        sampler, batches = getattr(data, "sampler", None), getattr(data, "batch_sampler", None)
        self._parts = [data, sampler, batches, getattr(batches, "sampler", None)]
        owned = {id(g): g for p in self._parts if isinstance(g := getattr(p, "generator", None), torch.Generator)}
        self._generators = tuple(owned.values())

    @property
    def length(self) -> int | None:
        try:
            return len(self._data)
        except TypeError:  # a loader of an iterable data set
            return None

    @property
    def generators(self) -> Sequence[torch.Generator]:
        return self._generators

    def describe(self) -> str:
        samples: Any = getattr(self._data, "dataset", None)
        length = f" of {len(samples)} samples" if isinstance(samples, Sized) else ""
        return f"{type(self._data).__name__}{length}"

    def epoch(self, number: int) -> Iterator[Batch]:
        for place, generator in enumerate(self._generators):
            generator.manual_seed(mixed(self._seed, number, 2, place))
        seed_all(mixed(self._seed, number, 1))
        for tell in {id(part): getattr(part, "set_epoch", None) for part in self._parts}.values():
            if callable(tell):
                tell(number)
        # Loader workers draw for themselves, and a list draws nothing: only what is read here needs its own stream.
        alone = type(self._data) in (list, tuple) or getattr(self._data, "num_workers", 0) > 0
        batches: Iterator[Batch] = iter(self._data) if alone else _Apart(self._data)
        seed_torch(mixed(self._seed, number, 3))
        return (to_device(batch, self._device) for batch in batches)


@final
class _Apart(Iterator[Any]):
    """Reads with a stream of random numbers of its own, so that what the model draws does not change the data.

    Only so can batches be skipped without running the model on them. The stream is torch's: models draw from no other.
    """

    def __init__(self, data: Any) -> None:
        self._batches = iter(data)
        self._state = torch.get_rng_state()

    def __next__(self) -> Any:
        outside = torch.get_rng_state()
        torch.set_rng_state(self._state)
        try:
            return next(self._batches)
        finally:
            self._state = torch.get_rng_state()
            torch.set_rng_state(outside)


def make_feed(data: Any, training: Training, device: torch.device) -> Feed:
    """The feed of what the user gave.

    Args:
        data: a pair of tensors ``(x, y)`` or a mapping of tensors, batched here; or a DataLoader or another
            re-iterable of batches.
        training: batch size and seed.
        device: where batches go.

    Returns:
        The feed.

    Raises:
        ValueError: for tensors of different lengths, and for an iterator.

    Example:
        >>> feed = make_feed((torch.zeros(10, 3), torch.zeros(10)), Training(1, batch_size=4), torch.device("cpu"))
        >>> [len(x) for x, _ in feed.epoch(0)]
        [4, 4, 2]
    """
    if (
        isinstance(data, Mapping)
        and data
        and all(isinstance(v, Tensor) for v in cast("Mapping[str, Any]", data).values())
    ):
        return TensorFeed(cast("Mapping[str, Tensor]", data), training, device)
    if isinstance(data, (tuple, list)) and len(cast("list[Any]", data)) == 2:
        first, second = cast("list[Any]", data)
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            return TensorFeed((first, second), training, device)
    return LoaderFeed(data, training, device)


def steps_per_epoch(data: Any, training: Training) -> int:
    """Optimizer steps in one pass over the data.

    steps = ceil(batches / accumulate); the last step of an epoch may see fewer batches.

    Args:
        data: as for ``fit``.
        training: batch size and ``accumulate``.

    Returns:
        A whole number.

    Raises:
        ValueError: for a loader without a length.

    Example:
        >>> steps_per_epoch((torch.zeros(10, 3), torch.zeros(10)), Training(1, batch_size=2, accumulate=2))
        3
    """
    length = make_feed(data, training, torch.device("cpu")).length
    if length is None:
        raise ValueError(
            f"this {type(data).__name__} has no len(), so its steps per epoch are not known before reading"
        )
    return -(-length // training.accumulate)


def _is_used_up(data: Any) -> bool:
    """Whether reading uses the data up: an iterator, a generator, ``map``, ``zip`` and the like."""
    return hasattr(data, "__next__")


def fingerprint(batch: Batch) -> int:
    """A checksum of all tensors of a batch, to see whether data comes again as it came before."""
    found = 0
    todo: list[Any] = [batch]
    while todo:
        value = todo.pop()
        if isinstance(value, Mapping):
            todo.extend(cast("Mapping[Any, Any]", value).values())
        elif isinstance(value, (tuple, list)):
            todo.extend(cast("list[Any]", value))
        elif isinstance(value, Tensor) and value.layout is torch.strided and value.numel():
            flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found = zlib.crc32(flat.numpy().data, found)
    return found
