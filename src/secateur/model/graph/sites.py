"""Which operator's output is the activation of a layer's channels, whatever way it was written.

``nn.ReLU()``, ``F.relu(x)``, ``x.relu()``, ``torch.relu(x)`` and ``x.relu_()`` all come down to one operator, which
the tracer sees, and hooks on modules do not.

- The activation is the output of the first nonlinear operator on each element that the channels reach; norms, pooling,
  dropout, views and products with numbers may lie between.
- Through an addition both summands go on: of ``relu(a + b)`` the activation of ``a`` and that of ``b`` is the whole.
- Where a layer's output meets the nonlinear function of itself in a product, the activation is the product
  (``x * sigmoid(x)``, ``0.5 x (1 + erf(x))``). Of ``silu(a) * b`` it is ``silu(a)``, and ``b`` has none.
- Channels that reach none have their own output, behind bias, scale and norm where these follow directly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.model.graph.carrying import Carried, Marks, follow, lay_out, plane_of
from secateur.model.graph.examples import tensors_in
from secateur.model.graph.nonlinear import NONLINEAR, makes_zeros
from secateur.model.graph.planes import Plane, Traced
from secateur.model.graph.relations import Axis, Relations
from secateur.model.graph.rules import RULES, apply_rule, contractions, elementwise, moves
from secateur.model.graph.site import Site, Sites
from secateur.model.graph.trace import Tracer, tensor_names, where

__all__ = ["find_sites"]

# All rules of these two files, so that one that is added there counts here too.
_CARRY = {getattr(moves, name) for name in moves.__all__} - {moves.glu} | {elementwise.pool}
_PRODUCTS = {getattr(contractions, name) for name in contractions.__all__} - {contractions.weight_norm}
_NORMS = (elementwise.batch_norm, elementwise.layer_norm, elementwise.group_norm, elementwise.rms_norm)
_ELEMENTWISE = (*_NORMS, elementwise.in_place)
_SUMS = {"sum", "mean", "amax", "amin"}
_SCALES = {"add", "sub", "mul", "div"}


def find_sites(root: nn.Module, run: Callable[[], Any], producers: Mapping[str, int]) -> Sites:
    """Run a model once and find the activations of its layers.

    The caller sets the mode of the model, and switches fused paths and gradients off.

    Args:
        root: an unwrapped module.
        run: calls it.
        producers: weight -> the axis of it along which its outputs lie.

    Returns:
        The operators of the run, and where the activations of the producers are.

    Raises:
        ValueError: for a name that is no parameter or buffer.

    Example:
        >>> from secateur.model.graph.trace import slow_paths
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).eval()
        >>> with torch.no_grad(), slow_paths():
        ...     found = find_sites(net, lambda: net(torch.zeros(2, 3)), {"0.weight": 0, "3.weight": 0})
        >>> [(site.producer, site.operator, site.own) for site in found]
        [('0.weight', 'relu', False), ('3.weight', 'addmm', True)]
    """
    tensors, relations = tensor_names(root), Relations()
    missing = [name for name in producers if name not in tensors]
    if missing:
        raise ValueError(f"{missing[0]!r} is no parameter of {type(root).__name__}; it has {list(tensors)[:8]}")
    known: dict[Tensor, Traced] = {}
    for name, tensor in tensors.items():
        sizes = [(dim, size) for dim, size in enumerate(tensor.shape) if size > 1 or producers.get(name) == dim]
        planes = [Plane.along(dim, tensor.shape, relations.slot(name, dim, size)) for dim, size in sizes]
        known[tensor] = Traced("parameter", tuple(planes))
    finder = _Finder(Tracer(relations, known), [(name, dim) for name, dim in producers.items()])
    with finder:
        run()
    return finder.sites()


Seen: TypeAlias = tuple[Tensor, Traced, Marks]
"""An input of an operator, as it was before: the operator may work in place."""


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """The output of an operator, as a place to read channels at."""

    plane: Plane
    ids: NDArray[np.int64]
    operator: str
    exact: bool
    where: str


@final
class _Call:
    """One call of a layer: for each channel the operator at which it is read."""

    def __init__(self, producer: str, size: int) -> None:
        self.producer = producer
        self.first = np.full(size, -1)
        self.own = np.full(size, -1)
        self.reads: dict[int, _Read] = {}

    def exact(self, places: NDArray[np.bool_]) -> bool:
        return all(self.reads[at].exact for at in np.unique(self.first[places]).tolist())


@final
class _Finder(TorchDispatchMode):
    """Follows the channels of each call of a producer to its first nonlinear operator."""

    def __init__(self, tracer: Tracer, producers: list[Axis]) -> None:
        super().__init__()
        self._tracer, self._slots = tracer, {axis[0]: tracer.relations.slots[axis] for axis in producers}
        self._renamed: dict[str, list[NDArray[np.int64]]] = {}
        self._marks = WeakTensorKeyDictionary()
        self._calls: list[_Call] = []
        self._operators: list[Any] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, as the tracer."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        inputs = [self._seen(tensor) for tensor in tensors_in((args, kwargs))]
        out = func(*args, **kwargs)
        self._operators.append(func)
        apply_rule(self._tracer, func, args, kwargs, out)
        name = func.overloadpacket.__name__
        rule = RULES.get(name)
        made = list(tensors_in(out))
        made = made[:1] if rule in _NORMS else made
        for result in made:
            marks = Marks()
            if rule in _PRODUCTS:
                self._produce(inputs, result, marks, name)
            elif rule in _CARRY or (rule is elementwise.reduce and name in _SUMS):
                for _, _, carried in inputs:
                    marks.take(carried, self._planes(result))
            elif self._seen(result)[1].kind == "parameter":
                self._parametrize(inputs, result)
            elif rule is None or rule in _ELEMENTWISE:
                self._elementwise(inputs, result, marks, name.removesuffix("_") or name, (args, kwargs))
            self._marks[result] = marks
        if name.endswith("_") and not name.endswith("__") and made and inputs:
            self._marks[inputs[0][0]] = self._marks[made[0]]
        return out

    def _seen(self, tensor: Tensor) -> Seen:
        return tensor, self._tracer.of(tensor) or Traced("constant"), self._marks.get(tensor) or Marks()

    def _planes(self, tensor: Tensor) -> tuple[Plane, ...]:
        traced = self._tracer.of(tensor)
        return () if traced is None else traced.planes

    def _produce(self, inputs: list[Seen], out: Tensor, marks: Marks, name: str) -> None:
        """A product with a producer's weight: a new call of it."""
        weights = [
            plane.ids.numpy() for _, traced, _ in inputs if traced.kind == "parameter" for plane in traced.planes
        ]
        for producer, (first, size) in self._slots.items():
            names = [np.arange(first, first + size), *self._renamed.get(producer, [])]
            ids = next((ids for ids in names if any(np.isin(ids, weight).any() for weight in weights)), None)
            if ids is None:
                continue
            plane = plane_of(self._planes(out), ids)
            if plane is None and size == 1:  # the rules keep nothing of an axis with one place
                plane = Plane(tuple(out.shape), torch.full([1] * out.dim(), first))
                self._tracer.set(out, Traced("activation", (plane,)))
            if plane is None:
                continue
            ids = np.where(np.isin(ids, plane.ids.numpy()), ids, -1)
            call = _Call(producer, size)
            call.reads[self._now] = _Read(plane, ids, name, False, where())
            call.own[ids >= 0] = self._now
            marks.pending[len(self._calls)] = Carried(ids)
            self._calls.append(call)

    def _parametrize(self, inputs: list[Seen], out: Tensor) -> None:
        """A weight computed from several parameters goes by the names of one of them."""
        made = self._planes(out)
        for producer, (first, size) in self._slots.items():
            one = {0: Carried(np.arange(first, first + size))}
            for _, traced, _ in inputs:
                for carried in follow(one, traced.planes, made, out.shape, alone=True).values():
                    if carried is not one[0] and not (carried.ids == one[0].ids).all():
                        self._renamed.setdefault(producer, []).append(carried.ids)

    @property
    def _now(self) -> int:
        return len(self._operators) - 1

    def _elementwise(self, inputs: list[Seen], out: Tensor, marks: Marks, name: str, given: Any) -> None:
        others = [traced for _, traced, _ in inputs if traced.kind not in ("parameter", "constant")]
        made, alone = self._planes(out), len(others) < 2
        pending = [follow(m.pending, t.planes, made, out.shape, alone=alone) for _, t, m in inputs]
        active = [follow(m.active, t.planes, made, out.shape, alone=alone) for _, t, m in inputs]
        for carried in active:
            marks.active = carried | marks.active
        for carried in pending:
            marks.pending = carried | marks.pending
        if name in NONLINEAR:
            exact = makes_zeros(name, *given)
            for call, carried in marks.pending.items():
                new = (carried.ids >= 0) & (self._calls[call].first < 0)
                self._read(call, carried, made, new, name, exact)
            marks.active, marks.pending = marks.pending | marks.active, {}
        elif name == "mul" and len(inputs) == 2:
            self._by_itself(pending, active, made, marks)
        if marks.pending and (name in _SCALES or RULES.get(name) in _NORMS):
            self._behind(marks.pending, made, name)

    def _read(
        self, call: int, carried: Carried, made: tuple[Plane, ...], places: NDArray[np.bool_], name: str, exact: bool
    ) -> None:
        plane = plane_of(made, carried.ids)
        if plane is not None and places.any():
            self._calls[call].first[places] = self._now
            self._calls[call].reads[self._now] = _Read(plane, carried.ids, name, exact, where())

    def _by_itself(
        self, pending: list[dict[int, Carried]], active: list[dict[int, Carried]], made: tuple[Plane, ...], marks: Marks
    ) -> None:
        """``x f(x)``: the product is the activation."""
        for plain, curved in ((0, 1), (1, 0)):
            for call in pending[plain].keys() & active[curved].keys():
                carried = pending[plain][call]
                same = (carried.ids == active[curved][call].ids) & (carried.ids >= 0) & (self._calls[call].first >= 0)
                if same.any():
                    self._read(call, carried, made, same, "mul", self._calls[call].exact(same))
                    marks.active[call] = carried
                    marks.pending[call] = Carried(np.where(same, -1, carried.ids), carried.direct)

    def _behind(self, pending: dict[int, Carried], made: tuple[Plane, ...], name: str) -> None:
        """Bias, scale or norm directly behind a layer belong to its own output."""
        for number, carried in pending.items():
            call, plane = self._calls[number], plane_of(made, carried.ids)
            if carried.direct and plane is not None and ((call.own >= 0) == (carried.ids >= 0)).all():
                call.own[carried.ids >= 0] = self._now
                call.reads[self._now] = _Read(plane, carried.ids, name, False, where())

    def sites(self) -> Sites:
        """What was found."""
        found: dict[int, list[Site]] = {}
        for call in self._calls:
            at = np.where(call.first >= 0, call.first, call.own)
            for number in np.unique(at[at >= 0]).tolist():
                found.setdefault(number, []).append(_site(call, number, at == number))
        return Sites(tuple(self._operators), {number: tuple(found[number]) for number in sorted(found)})


def _site(call: _Call, number: int, wanted: NDArray[np.bool_]) -> Site:
    read = call.reads[number]
    axes, own = tuple(sorted(read.plane.axes)), not (call.first[wanted] >= 0).all()
    sizes = tuple(read.plane.shape[axis] for axis in axes)
    index = lay_out(read.plane, read.ids, wanted)
    return Site(call.producer, read.operator, own, read.exact, len(read.plane.shape), axes, sizes, index, read.where)
