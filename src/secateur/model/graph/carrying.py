"""Where the channels of a layer lie in a tensor further on, as ids of that tensor's plane.

After an addition of two layers' outputs the tracer names the channels by the ids of one of them. What is carried
here are the names of each layer's own channels, so that neither is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.model.graph.planes import FIRST_ID, Plane

__all__ = ["Carried", "Marks", "follow", "lay_out", "plane_of"]

Ids: TypeAlias = NDArray[np.int64]
_GONE = -1


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """One call of a layer, in a tensor that was computed from its output.

    Attributes:
        ids: of each of the layer's channels, -1 where the channel is not there.
        direct: nothing but parameters and numbers has met it since.
    """

    ids: Ids
    direct: bool = True


@dataclass(slots=True)
class Marks:
    """What a tensor carries: call -> channels, before their first nonlinear operator and after it."""

    pending: dict[int, Carried] = field(default_factory=dict[int, Carried])
    active: dict[int, Carried] = field(default_factory=dict[int, Carried])

    def take(self, other: Marks, planes: Sequence[Plane]) -> None:
        """Carry what of another tensor's load is in a tensor with these planes, besides what is carried already."""
        self.pending = _present(other.pending, planes) | self.pending
        self.active = _present(other.active, planes) | self.active


def plane_of(planes: Sequence[Plane], ids: Ids) -> Plane | None:
    """The plane of a tensor in which some of these ids lie."""
    for plane in planes:
        if np.isin(plane.ids.numpy(), ids[ids >= FIRST_ID]).any():
            return plane
    return None


def _present(carried: dict[int, Carried], planes: Sequence[Plane]) -> dict[int, Carried]:
    found: dict[int, Carried] = {}
    for call, one in carried.items():
        plane = plane_of(planes, one.ids)
        if plane is not None:
            here = np.isin(one.ids, plane.ids.numpy())
            found[call] = one if here.all() else replace(one, ids=np.where(here, one.ids, _GONE))
    return found


def follow(
    carried: dict[int, Carried], planes: Sequence[Plane], made: Sequence[Plane], shape: Sequence[int], *, alone: bool
) -> dict[int, Carried]:
    """What is carried through an operator on each element.

    Args:
        carried: by one of its inputs.
        planes: of that input.
        made: planes of the result.
        shape: of the result.
        alone: no other activation met it.

    Returns:
        The same calls under the ids of the result; a channel that shares its place with another one is left out.
    """
    found: dict[int, Carried] = {}
    for call, one in carried.items():
        before = plane_of(planes, one.ids)
        if before is None:
            continue
        wide = before.aligned(shape)
        after = [plane for plane in made if plane.axes == wide.axes]
        if not after:
            continue
        same = any(torch.equal(wide.ids, plane.ids) for plane in after)
        ids = one.ids if same else _renamed(one.ids, wide.ids, after[0].ids)
        if (ids >= FIRST_ID).any():
            found[call] = replace(one, ids=ids, direct=one.direct and alone)
    return found


def _renamed(ids: Ids, before: Tensor, after: Tensor) -> Ids:
    old, new = torch.broadcast_tensors(before, after)
    pairs = np.unique(np.stack([old.numpy().reshape(-1), new.numpy().reshape(-1)]), axis=1)
    names, counts = np.unique(pairs[0], return_counts=True)
    single = pairs[:, np.isin(pairs[0], names[counts == 1])]
    places = np.searchsorted(single[0], ids)
    places[places >= single.shape[1]] = 0
    known = (single[0][places] == ids) if single.size else np.zeros(ids.shape, dtype=bool)
    renamed = np.where(known, single[1][places] if single.size else _GONE, _GONE)
    renamed[renamed < FIRST_ID] = _GONE
    names, counts = np.unique(renamed, return_counts=True)
    renamed[np.isin(renamed, names[counts > 1])] = _GONE
    return renamed


def lay_out(plane: Plane, ids: Ids, wanted: NDArray[np.bool_]) -> Tensor:
    """For each place of a plane's ids the channel that lies there.

    Args:
        plane: of the tensor.
        ids: of each channel.
        wanted: which channels.

    Returns:
        Channel numbers ``[places]``, -1 elsewhere.
    """
    channels = np.flatnonzero(wanted & (ids >= FIRST_ID))
    channels = channels[np.argsort(ids[channels], kind="stable")]
    flat, names = plane.ids.numpy().reshape(-1), ids[channels]
    index = np.full(flat.shape, _GONE, dtype=np.int64)
    if channels.size:
        places = np.minimum(np.searchsorted(names, flat), channels.size - 1)
        index = np.where(names[places] == flat, channels[places], _GONE)
    return torch.from_numpy(index)
