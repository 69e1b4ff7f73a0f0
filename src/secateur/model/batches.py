"""Batches and losses: what a loader yields, and how a model turns it into a scalar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "Batch",
    "LossFunction",
    "StepFunction",
    "check_functions",
    "forward_of",
    "limited",
    "loss_of",
    "loss_of_output",
    "rereadable",
    "to_device",
]

Batch: TypeAlias = Any
LossFunction: TypeAlias = Callable[[Any, Any], Tensor]
StepFunction: TypeAlias = Callable[[nn.Module, Batch], Tensor]


def limited(data: Iterable[Batch] | tuple[Any, Any] | Mapping[str, Tensor], batches: int) -> Iterator[Batch]:
    """The first batches of a loader, or the one batch given as such.

    Args:
        data: an iterable of batches, one ``(inputs, labels)`` pair of tensors, or one mapping of tensors.
        batches: how many to read at most.

    Yields:
        Batches as the loader makes them.

    Raises:
        ValueError: if there is none.

    Example:
        >>> x, y = torch.zeros(2, 3), torch.zeros(2)
        >>> len(list(limited([(x, y), (x, y), (x, y)], batches=2)))
        2
    """
    given: Any = data
    if type(batches) is not int or batches < 1:
        raise ValueError(f"batches={batches!r}: how many batches to read, a whole number from 1")
    if not isinstance(given, Iterable) and not hasattr(given, "__getitem__"):
        raise ValueError(f"data={given!r}: give a loader, a list of batches, or one batch")
    one = isinstance(data, Mapping) or (isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor))
    count = 0
    for batch in islice(iter([data] if one else data), batches):
        count += 1
        yield batch
    if count == 0:
        raise ValueError(
            "data yielded no batch. A generator that was used before is empty: give the loader itself, "
            "a list of batches, or one (inputs, labels) pair"
        )


def rereadable(data: Any, batches: int) -> Any:
    """Data that can be read more than once: the first batches of an iterator in a list, other data as they are.

    Example:
        >>> rereadable(iter([torch.zeros(1), torch.ones(1)]), 1)
        [tensor([0.])]
    """
    return list(limited(data, batches)) if isinstance(data, Iterator) else data  # pyright: ignore[reportUnknownArgumentType]


def check_functions(loss: object, step: object) -> None:
    """Refuse what cannot be called, before any batch is read.

    Raises:
        ValueError: for text and the like.

    Example:
        >>> check_functions("cross_entropy", None)
        Traceback (most recent call last):
            ...
        ValueError: loss='cross_entropy': give a function of output and labels, e.g. loss=F.cross_entropy
    """
    if isinstance(loss, type):
        raise ValueError(f"loss={loss.__name__} is a class: give {loss.__name__}(), or a function of output and labels")
    if not (loss is None or callable(loss)):
        raise ValueError(f"loss={loss!r}: give a function of output and labels, e.g. loss=F.cross_entropy")
    if not (step is None or callable(step)):
        raise ValueError(
            f"step={step!r}: give a function of model and batch, e.g. step=lambda model, batch: model(batch[0])"
        )


def loss_of(model: nn.Module, batch: Batch, loss: LossFunction | None, step: StepFunction | None) -> Tensor:
    """The scalar loss of one batch.

    ``step(model, batch)`` if given; a mapping goes in as ``model(**batch)`` and ``output.loss`` is the
    default; an ``(inputs, labels)`` pair needs ``loss(output, labels)``.

    Args:
        model: the module.
        batch: what the loader yielded, on the model's device.
        loss: of output and labels; for a mapping, of output and batch.
        step: overrides all of that.

    Returns:
        A scalar tensor with a graph.

    Raises:
        ValueError: if the batch has another shape, no loss can be found, or it is not one number.
    """
    if step is not None:
        return _one_number(step(model, batch))
    _check_labelled(batch, loss)
    return loss_of_output(forward_of(model, batch, None), batch, loss)


def forward_of(model: nn.Module, batch: Batch, step: StepFunction | None) -> Any:
    """The model's output for one batch; labels are left out, and no loss is asked for.

    Args:
        model: the module.
        batch: a tensor, ``(inputs,)``, ``(inputs, labels)``, or a mapping that goes in as ``model(**batch)``.
        step: overrides all of that; what it returns is the output.

    Returns:
        What the model, or ``step``, returns.

    Raises:
        ValueError: if the batch has another shape.

    Example:
        >>> net = nn.Linear(3, 2)
        >>> forward_of(net, (torch.zeros(4, 3), torch.zeros(4)), None).shape
        torch.Size([4, 2])
    """
    if step is not None:
        return step(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        return model(batch[0])
    raise ValueError(
        f"a batch is a {_kind(batch)}; known are tensors, (inputs,), (inputs, labels) and mappings that go in as "
        "model(**batch). For anything else give step=lambda model, batch: model(...)"
    )


def loss_of_output(output: Any, batch: Batch, loss: LossFunction | None) -> Tensor:
    """The scalar loss of a model's output for one batch.

    Args:
        output: what ``forward_of`` returned.
        batch: an ``(inputs, labels)`` pair, or a mapping.
        loss: of output and labels; for a mapping, of output and batch, ``output.loss`` being the default.

    Returns:
        A scalar tensor with a graph.

    Raises:
        ValueError: if the batch has no labels, no loss can be found, or it is not one number.
    """
    _check_labelled(batch, loss)
    if isinstance(batch, Mapping):
        value = loss(output, batch) if loss is not None else getattr(output, "loss", None)
        if value is None:
            raise ValueError(
                f"model(**batch) returned a {type(output).__name__} without a .loss; put the labels into the batch, "
                "or give loss=lambda output, batch: ..."
            )
        return _one_number(value)
    assert loss is not None  # _check_labelled
    return _one_number(loss(output, batch[1]))


def _check_labelled(batch: Batch, loss: LossFunction | None) -> None:
    if isinstance(batch, Mapping):
        return
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise ValueError(
            f"a batch is a {_kind(batch)}; known are (inputs, labels) pairs and mappings that go in as model(**batch). "
            "For anything else give step=lambda model, batch: loss"
        )
    if loss is None:
        raise ValueError("batches are (inputs, labels) pairs, so loss= is needed, e.g. loss=F.cross_entropy")


def _one_number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss is {given}, not one number; reduce it, e.g. by its mean over the batch")
    return value.reshape(())


def _kind(batch: Batch) -> str:
    return f"{type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device; other things as they are."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple):
        moved = [to_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else tuple(moved)
    if isinstance(batch, list):
        return [to_device(value, device) for value in batch]
    return batch
