"""Smaller images for the trace and for most probes: which channels go together does not depend on an image's size.

Whether it does not is seen, not assumed: at both sizes the model has to call the same operators in the same order with
the same parameters, on tensors of as many axes, of which the same have length 1. A model that has its size written
down (a position for each patch, a linear layer over all pixels) raises at another size, and is traced at the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, TypeAlias, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.model.graph.examples import Example, call, elements, mapped, resized
from secateur.model.graph.trace import run_fast, slow_paths, tensor_names
from secateur.model.graph.twins import twin
from secateur.model.quietly import quietly

__all__ = ["Size", "cut_down", "smaller_size"]

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


def smaller_size(root: nn.Module, examples: Sequence[Example]) -> Size | None:
    """The first size at which the model runs as it does at the size of the examples; None: there is none.

    Copies of the model run, so that what a forward keeps (a mask for the size it saw last) is not the user's.

    Args:
        root: an unwrapped module; it is left as it was.
        examples: as the user gave them.

    Returns:
        For ``cut_down``.
    """
    large: list[list[_Step]] | None = None
    for size in range(max(map(len, _LONGEST.values()))):
        cut = [cut_down(example, size) for example in examples]
        if sum(map(elements, cut)) > _WORTH * sum(map(elements, examples)):
            continue
        small = _steps(root, cut)
        if small is None:
            continue
        large = _steps(root, examples) if large is None else large
        if large is None:
            return None
        if all(_alike(one, other) for one, other in zip(small, large, strict=True)):
            return size
    return None


_Step: TypeAlias = tuple[Any, ...]
"""An operator, what it was given, and what it returned."""


def _steps(root: nn.Module, examples: Sequence[Example]) -> list[list[_Step]] | None:
    """What the model calls for one row of each example; None where it does not take them."""
    found: list[list[_Step]] = []
    try:
        model = twin(root)
        for example in examples:
            recorder = _Recorder(tensor_names(model))
            with quietly(model), slow_paths(), torch.no_grad(), recorder:
                call(model, resized(example, 1))
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
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._onednn: bool = torch._C._get_mkldnn_enabled()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile, as the tracer."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = self._note(args), self._note(tuple((kwargs or {}).items()))
        out = run_fast(func, args, kwargs or {}, onednn=self._onednn)
        self.steps.append((func, *given, self._note(out)))
        return out

    def _note(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._names.get(id(value)) or _Shape(tuple(value.shape), value.dtype)
        if isinstance(value, (tuple, list)):
            return tuple(self._note(item) for item in value)
        return value


@final
class _Shape:
    """Of a tensor that is no parameter."""

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
        self.sizes, self.dtype = sizes, dtype

    def like(self, larger: _Shape) -> bool:
        """As many axes, none of them longer, and the same ones of length 1: those have no slices to the tracer."""
        pairs = list(zip(self.sizes, larger.sizes, strict=False))
        same = len(self.sizes) == len(larger.sizes) and self.dtype == larger.dtype
        return same and all(a <= b and (a == 1) == (b == 1) for a, b in pairs)


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
