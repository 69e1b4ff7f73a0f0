"""The processes of a data-parallel model as one reader of data: what each of them summed up, added over all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from secateur.model.names import unwrap, wrappers

__all__ = ["OfRanks", "Ranks", "ranks_of", "ranks_of_world"]


@final
class Ranks:
    """The ranks that share the data of one model; by itself, a single process, where everything stays as it is.

    Every method is a collective call where there are several. What can go wrong on one rank alone belongs into a
    ``together`` block, and no collective call into such a block: then all ranks raise, and none waits for another.

    Args:
        group: of the processes; None: this one alone.
        device: on which the group exchanges tensors.

    Example:
        >>> Ranks().sums({"a": torch.tensor([1.0, 2.0])})["a"], Ranks().total(3)
        (tensor([1., 2.]), 3)
    """

    def __init__(self, group: dist.ProcessGroup | None = None, device: torch.device | None = None) -> None:
        self._group, self._device = group, device or torch.device("cpu")
        self._size = 1 if group is None else dist.get_world_size(group)

    @property
    def several(self) -> bool:
        """Whether there is more than one."""
        return self._size > 1

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the block raises on one rank is raised on all of them, when all have come to its end.

        Raises:
            ValueError: on ranks that came through, where another did not.
        """
        if not self.several:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised again below, when the others know
            own = error
        told = self.gathered(None if own is None else f"{type(own).__name__}: {own}")
        if own is not None:
            raise own
        for rank, text in enumerate(told):
            if text is not None:
                raise ValueError(f"rank {rank} could not do its part, so no rank goes on. It says: {text}")

    def gathered(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order; for small things, which travel pickled."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self._size
        dist.all_gather_object(found, value, group=self._group)
        return found

    def total(self, count: int) -> int:
        """The sum of a count."""
        return sum(self.gathered(count))

    def sums(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums over the ranks, made in float64; a name that a rank does not have counts as zeros there.

        Args:
            own: of this rank.

        Returns:
            Every name that any rank has, in the order of the first that has it -> the sum, in the same dtype.

        Raises:
            ValueError: on all ranks, for tensors of different shapes.
        """
        if not self.several:
            return dict(own)
        found: dict[str, Tensor] = {}
        for name, (shape, dtype) in self._places(own).items():
            mine = own.get(name)
            wide = torch.zeros(shape, dtype=torch.float64) if mine is None else mine.detach().double().clone()
            wide = wide.to(self._device).contiguous()
            dist.all_reduce(wide, group=self._group)
            found[name] = wide.to(torch.device("cpu") if mine is None else mine.device, dtype)
        return found

    def of_first(self, own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The tensors of the first rank; all ranks have the same names and shapes."""
        if not self.several:
            return own
        found: dict[str, Tensor] = {}
        for name in self._places(own):
            mine = own[name]
            plain = mine.to(torch.uint8) if mine.dtype == torch.bool else mine.detach()
            copy = plain.to(self._device).clone(memory_format=torch.contiguous_format)
            assert self._group is not None
            dist.broadcast(copy, src=dist.get_process_group_ranks(self._group)[0], group=self._group)
            found[name] = copy.to(mine.device, mine.dtype)
        return found

    def _places(self, own: Mapping[str, Tensor]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> shape and dtype, over all ranks and in the same order on each."""
        found: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
        for places in self.gathered({name: (tuple(one.shape), one.dtype) for name, one in own.items()}):
            for name, (shape, dtype) in places.items():
                if found.setdefault(name, (shape, dtype))[0] != shape:
                    raise ValueError(
                        f"{name!r} has shape {found[name][0]} on one rank and {shape} on another: the ranks have to "
                        "run the same model on batches of the same kind"
                    )
        return found


@final
class OfRanks(nn.Module):
    """A module, or a part of one, that a trainer holds inside its ``DistributedDataParallel``, with the ranks of that.

    A wrapper like others: looked through everywhere, and asked for its ranks by ``ranks_of``.

    Args:
        model: the module inside; wrappers are looked through.
        ranks: over which it is data-parallel.

    Example:
        >>> ranks_of(OfRanks(nn.Linear(2, 2), Ranks())).several
        False
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self._of_ranks, self.ranks = unwrap(model), ranks


def ranks_of(model: nn.Module) -> Ranks:
    """The ranks over which a model is data-parallel: those of its ``DistributedDataParallel``, or of ``OfRanks``.

    Args:
        model: as the user gave it. A sharded model is one process here: its gradients are averaged as they are made.

    Example:
        >>> ranks_of(nn.Linear(2, 2)).several
        False
    """
    for one in wrappers(model):
        if isinstance(one, OfRanks):
            return one.ranks
        if isinstance(one, nn.parallel.DistributedDataParallel):
            group: Any = one.process_group
            return _of_group(group, one)
    return Ranks()


def ranks_of_world(model: nn.Module) -> Ranks:
    """All processes of the default group, for a model that is data-parallel over them and does not say so itself.

    Example:
        >>> ranks_of_world(nn.Linear(2, 2)).several
        False
    """
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    group: Any = dist.group.WORLD
    return _of_group(group, model)


def _of_group(group: dist.ProcessGroup, model: nn.Module) -> Ranks:
    device = next(model.parameters()).device
    return Ranks(group, device if "nccl" in dist.get_backend(group) else None)
