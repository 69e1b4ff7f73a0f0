"""Running a model once and watching every operator that it calls.

A ``TorchDispatchMode`` sees the plain operators that any module, functional call or method comes down to. The
fused fast paths are switched off while it looks, so that attention, encoder layers and recurrent layers come
down to matrix products.
"""

from __future__ import annotations

import linecache
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.model.graph.examples import Example, call, tensors_in
from secateur.model.graph.planes import Plane, Traced
from secateur.model.graph.relations import Relations
from secateur.model.names import clean_name
from secateur.model.quietly import quietly

__all__ = [
    "OriginalRunError",
    "ParameterWriteError",
    "Tracer",
    "line_of",
    "run_fast",
    "slow_paths",
    "storage_of",
    "tensor_names",
    "trace",
    "where",
    "written",
]


class OriginalRunError(RuntimeError):
    """The forward of a copy runs layers of the model that it is a copy of."""


class ParameterWriteError(RuntimeError):
    """A forward is about to write into its parameters, while the memory of these is the user's."""


@contextmanager
def slow_paths() -> Iterator[None]:
    """Plain operators instead of fused ones; restored afterwards."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns about TF32
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            torch._C._set_mkldnn_enabled(onednn)


def run_fast(func: Any, args: Any, kwargs: Any, *, onednn: bool) -> Any:
    """Run an operator that was seen: a convolution is one operator either way, so it may use oneDNN again.

    oneDNN is off for the sake of recurrent layers, which it would run as one operator without a rule.
    """
    if not onednn or func is not torch.ops.aten.convolution.default:
        return func(*args, **kwargs)
    torch._C._set_mkldnn_enabled(True)
    try:
        return func(*args, **kwargs)
    finally:
        torch._C._set_mkldnn_enabled(False)


def tensor_names(root: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, each once, under their first clean names."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in [*root.named_parameters(), *root.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[clean_name(name)] = tensor
    return found


@final
class Tracer(TorchDispatchMode):
    """Follows ids through the operators of one run.

    Args:
        relations: where what is found goes; several runs may share them.
        known: tensors that are known from the start.
    """

    def __init__(self, relations: Relations, known: Mapping[Tensor, Traced]) -> None:
        super().__init__()
        self.relations = relations
        self._known = WeakTensorKeyDictionary()
        self._by_memory: dict[tuple[Any, ...], Traced] = {}
        for tensor, traced in known.items():
            self.set(tensor, traced)
            if traced.kind == "parameter":
                self._by_memory[_memory(tensor)] = traced
        self._storages = {storage_of(tensor) for tensor in known if isinstance(tensor, nn.Parameter)}
        self._free_to_write = relations.writes
        self.tainted = False
        self._onednn: bool = torch._C._get_mkldnn_enabled()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not wrapped for torch.compile: nothing is compiled here, and the wrapper imports the compiler (2 s)."""
        return False

    def of(self, tensor: Any) -> Traced | None:
        """What is known of a tensor; None where the trace never saw it made."""
        if not isinstance(tensor, Tensor):
            return None
        found = self._known.get(tensor)
        if found is None and self._by_memory:
            found = self._by_memory.get(_memory(tensor))  # ``parameter.data`` is a tensor of its own
            if found is not None and isinstance(tensor, nn.Parameter):
                self.relations.original = where()
                raise OriginalRunError("the forward of a copy runs layers of the model itself")
        return found

    def set(self, tensor: Tensor, traced: Traced) -> None:
        """Remember what is known of a tensor; tables among its ids are recorded."""
        self._known[tensor] = traced
        if traced.kind != "parameter":
            for plane in traced.planes:
                if len(plane.axes) > 1:
                    self.relations.table(plane, "a reshape")

    def freeze(self, traced: Traced | None, reason: str) -> None:
        """Everything known of a tensor must stay as it is."""
        for plane in () if traced is None else traced.planes:
            self.relations.freeze(plane.ids, reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from secateur.model.graph.rules import apply_rule  # the rules need this class's name for their types

        if any(storage_of(tensor) in self._storages for tensor in written(func, args, kwargs or {})):
            self.relations.writes = True
            if not self._free_to_write:
                raise ParameterWriteError("the forward writes into its parameters")
        out = run_fast(func, args, kwargs or {}, onednn=self._onednn)
        apply_rule(self, func, args, kwargs or {}, out)
        return out


def trace(root: nn.Module, example: Example, relations: Relations) -> Any:
    """Run the model once and collect relations.

    Args:
        root: an unwrapped module; it is left as it was.
        example: its inputs.
        relations: added to. If they say that the forward writes into its parameters, it may.

    Returns:
        What the model returned.

    Raises:
        ParameterWriteError: before the forward writes into a parameter; ``relations.writes`` says so too.
        OriginalRunError: if ``root`` is a copy, and runs its original; ``relations.original`` says where.
    """
    known: dict[Tensor, Traced] = {}
    for name, tensor in tensor_names(root).items():
        planes = [
            Plane.along(dim, tensor.shape, relations.slot(name, dim, size))
            for dim, size in enumerate(tensor.shape)
            if size > 1
        ]
        known[tensor] = Traced("parameter", tuple(planes))
    for tensor in tensors_in((example.args, example.kwargs)):
        known.setdefault(tensor, Traced("frozen", (), data=tensor.is_floating_point()))
    tracer, lay = Tracer(relations, known), {name: storage_of(tensor) for name, tensor in tensor_names(root).items()}
    with quietly(root), slow_paths(), torch.no_grad(), tracer:
        out = call(root, example)
    parameters = {name: tensor for name, tensor in tensor_names(root).items() if isinstance(tensor, nn.Parameter)}
    # One that was given other data, ``weight.data = ...``, was written as well.
    relations.writes |= any(storage_of(tensor) != lay.get(name) for name, tensor in parameters.items())
    for tensor in tensors_in(out):
        tracer.freeze(tracer.of(tensor), "it is an output of the model")
    if tracer.tainted:
        relations.unknown.append("a tensor that the trace did not see made is multiplied with weights")
    return out


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    try:
        return tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype
    except RuntimeError:  # no memory of its own (fake or functional tensors)
        return (id(tensor),)


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that an operator writes into."""
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for place, given in enumerate(func._schema.arguments):
        if given.alias_info is not None and given.alias_info.is_write:
            found.extend(tensors_in(args[place] if place < len(args) else kwargs.get(given.name)))
    return found


def storage_of(tensor: Tensor) -> int:
    """Where the memory lies that a tensor looks into."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # no memory of its own
        return id(tensor)


def where() -> str:
    """The line of the user's code that runs now, for messages."""
    return line_of(frame for frame, _ in traceback.walk_stack(sys._getframe(1)))


def line_of(frames: Iterable[FrameType]) -> str:
    """The first frame that runs the user's own code, as text; frames from the innermost to the outermost."""
    for frame in frames:
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("torch.", "secateur.", "contextlib")) and module != "torch":
            line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            name = frame.f_code.co_filename.rsplit("/", 1)[-1]
            return f"`{line[:70]}` ({name}:{frame.f_lineno})" if line else f"{name}:{frame.f_lineno}"
    return "the model's code"
