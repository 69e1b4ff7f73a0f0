"""Smaller images for the trace and for most probes: which channels go together does not depend on an image's size.

Whether it does not is seen, not assumed: at both sizes the model has to call the same operators in the same order with
the same parameters, on tensors of as many axes, of which the same have length 1. A model that has its size written
down (a position for each patch, a linear layer over all pixels) raises at another size, and is traced at the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.graph.examples import Example, call, elements, mapped, resized
from secateur.model.graph.trace import ParameterWriteError, run_fast, slow_paths, storage_of, tensor_names, written
from secateur.model.graph.twins import twin
from secateur.model.quietly import quietly

__all__ = ["Size", "Steps", "cut_down", "smaller_size", "steps_of"]

Size: TypeAlias = int
"""Place in the rows of ``_LONGEST``."""

_LONGEST: Mapping[int, tuple[int, ...]] = {3: (512, 4096), 4: (64, 128), 5: (32, 64)}
"""Axes of a tensor -> lengths that its longest axis in space is cut down to, tried in turn."""
_WORTH = 0.5
"""A size is tried if it leaves at most this share of the elements."""
_STEP = 32
"""Lengths stay multiples of what they are multiples of, up to this: networks that halve an image need it."""


def cut_down(example: Example, size: Size) -> Example:
    """The example with its images cut down; other tensors stay as they are.

    An image, a volume or a signal is a floating-point tensor ``[B, C, ...]`` of three to five axes. Its upper left
    corner stays, of the same aspect.

    Example:
        >>> cut_down(Example((torch.zeros(1, 3, 224, 448),)), 0).args[0].shape
        torch.Size([1, 3, 32, 64])
    """

    def change(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point() and tensor.dim() in _LONGEST:
            lengths = _lengths(tuple(tensor.shape[2:]), _LONGEST[tensor.dim()][size])
            return tensor[(slice(None), slice(None), *(slice(length) for length in lengths))].clone()
        return tensor

    return Example(mapped(tuple(example.args), change), mapped(dict(example.kwargs), change))


def _lengths(given: tuple[int, ...], longest: int) -> list[int]:
    share = longest / max(given)
    found = list[int]()
    for length in given:
        step = gcd(length, _STEP)
        least = max(step, min(length, longest, _STEP))
        found.append(length if share >= 1 else min(length, max(least, round(length * share / step) * step)))
    return found


_Step: TypeAlias = tuple[Any, ...]
"""An operator, what it was given, and what it returned."""
Steps: TypeAlias = list[list[_Step]]
"""All operators of a run, for each example."""


def smaller_size(root: nn.Module, examples: Sequence[Example]) -> tuple[Size | None, Steps | None]:
    """The first size at which the model runs as it does at the size of the examples.

    Copies of the model run, so that what a forward keeps (a mask for the size it saw last) is not the user's.

    Args:
        root: an unwrapped module; it is left as it was.
        examples: as the user gave them.

    Returns:
        The size for ``cut_down``, None: as they are; and what ``steps_of`` says there.
    """
    large: Steps | None = None
    for size in range(max(map(len, _LONGEST.values()))):
        cut = [cut_down(example, size) for example in examples]
        if sum(map(elements, cut)) > _WORTH * sum(map(elements, examples)):
            continue
        small = steps_of(root, cut)
        if small is None:
            continue
        large = steps_of(root, examples) if large is None else large
        if large is None:
            return None, None
        if all(_same_run(one, other) for one, other in zip(small, large, strict=True)):
            return size, small
    return None, steps_of(root, examples) if large is None else large


def steps_of(root: nn.Module, examples: Sequence[Example]) -> Steps | None:
    """What the model calls for one row of each example; it is left as it was.

    Returns:
        None where it does not take them, or writes into its parameters.
    """
    found: Steps = []
    try:
        model = twin(root)
        for example in (resized(each, 1) for each in examples):
            recorder = _Recorder(tensor_names(model))
            with quietly(model), slow_paths(), torch.no_grad(), recorder:
                call(model, example)
            if recorder.writes:
                return None
            found.append(recorder.steps)
    except Exception:  # noqa: BLE001 - whatever it is: at the user's own size it is met again, and told
        return None
    return found


@final
class _Recorder(TorchDispatchMode):
    """Notes every operator of a run."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.writes = False
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        parameters = [(name, tensor) for name, tensor in tensors.items() if isinstance(tensor, nn.Parameter)]
        self._owners = {storage_of(tensor): name for name, tensor in parameters}
        self._onednn: bool = torch._C._get_mkldnn_enabled()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, as the tracer."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(storage_of(tensor) in self._owners for tensor in written(func, args, kwargs or {})):
            self.writes = True
            raise ParameterWriteError("the forward writes into its parameters")
        given = self._note(args), self._note(tuple((kwargs or {}).items()))
        out = run_fast(func, args, kwargs or {}, onednn=self._onednn)
        self.steps.append((func, *given, self._note(out)))
        return out

    def _note(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            name = self._names.get(id(value)) or self._owners.get(storage_of(value), "")
            return _Shape(tuple(value.shape), value.dtype, name)
        if isinstance(value, (tuple, list)):
            return tuple(self._note(item) for item in value)
        return value


@final
@dataclass(frozen=True)
class _Shape:
    """Of a tensor.

    Attributes:
        sizes: of its axes.
        dtype: of its elements.
        owner: the parameter or buffer that it is, or the parameter that it is a view of.
    """

    sizes: tuple[int, ...]
    dtype: torch.dtype
    owner: str

    def like(self, larger: _Shape) -> bool:
        """As many axes, none of them longer, and the same ones of length 1: those have no slices to the tracer."""
        pairs = list(zip(self.sizes, larger.sizes, strict=False))
        same = (len(self.sizes), self.dtype, self.owner) == (len(larger.sizes), larger.dtype, larger.owner)
        return same and all(a <= b and (a == 1) == (b == 1) for a, b in pairs)


def _same_run(small: Sequence[_Step], large: Sequence[_Step]) -> bool:
    return len(small) == len(large) and all(
        _alike(one, other) and (not _along_equal_axes(one, other) or _numbers(one[1:3]) == _numbers(other[1:3]))
        for one, other in zip(small, large, strict=True)
    )


def _along_equal_axes(small: _Step, large: _Step) -> bool:
    """Whether an operator works along axes that are as long in both runs: its numbers then say what it takes."""
    axes = _axes(small)
    if not axes or axes != _axes(large):
        return bool(axes)
    one, other = small[1][0], large[1][0]
    if isinstance(one, _Shape) and isinstance(other, _Shape):
        return all(one.sizes[axis] == other.sizes[axis] for axis in axes if -len(one.sizes) <= axis < len(one.sizes))
    return True


def _axes(step: _Step) -> list[Any]:
    for place, given in enumerate(step[0]._schema.arguments):
        if given.name in ("dim", "dims"):
            return _numbers(step[1][place] if place < len(step[1]) else dict(step[2]).get(given.name))
    return []


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, (tuple, list)):
        return [number for item in value for number in _numbers(item)]
    return [value] if _is_number(value) else []


def _alike(small: Any, large: Any) -> bool:
    """Whether two runs, or parts of them, are the same but for lengths."""
    if isinstance(small, (tuple, list)) and isinstance(large, (tuple, list)):
        return len(small) == len(large) and all(map(_alike, small, large))
    if isinstance(small, _Shape) and isinstance(large, _Shape):
        return small.like(large)
    if _is_number(small) and _is_number(large):
        return True  # lengths among the arguments
    return bool(type(small) is type(large) and small == large)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
