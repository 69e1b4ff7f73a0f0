"""The table of runtimes: a name, how it is built, what it computes in, and what has to be installed."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from secateur.measure.rivals import builders
from secateur.measure.rivals.builders import Call
from secateur.measure.rivals.case import Case

__all__ = ["DEFAULT", "RUNTIMES", "TOLERANCE", "Builder", "Precision", "Runtime", "chosen"]

Precision: TypeAlias = Literal["float32", "bfloat16"]
Builder: TypeAlias = Callable[[Case], Call]

TOLERANCE: dict[Precision, float] = {"float32": 1e-3, "bfloat16": 0.1}
"""Largest difference to eager float32, as a share of the largest output. A float32 runtime stays a hundred times
below; deep networks lose about 2 % in bfloat16."""


@dataclass(frozen=True)
class Runtime:
    """One entry.

    Attributes:
        build: a function at the top level of a module: it is looked up by name in the runtime's own process.
        precision: what it computes in; decides its tolerance and whether it stands for float32.
        dense: whether it multiplies the zeros too. Only dense ones can be the best dense float32.
        needs: modules that have to be installed; the version of the first is recorded.
        extra: of this package, that brings them.
        graph: whether it reads the ONNX file.
    """

    build: Builder
    precision: Precision = "float32"
    dense: bool = True
    needs: tuple[str, ...] = ("torch",)
    extra: str = "rivals"
    graph: bool = False

    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def version(self) -> str:
        """Of the first module it needs; empty where that is not installed."""
        try:
            return importlib.metadata.version(self.needs[0])
        except importlib.metadata.PackageNotFoundError:
            return ""


_EXPORT = ("onnx", "onnxscript")

RUNTIMES: dict[str, Runtime] = {
    "eager": Runtime(builders.eager),
    "compile": Runtime(builders.compiled),
    "compile-frozen": Runtime(builders.compiled_frozen),
    "onnxruntime": Runtime(builders.onnxruntime, needs=("onnxruntime", *_EXPORT), graph=True),
    "openvino": Runtime(builders.openvino, needs=("openvino", *_EXPORT), graph=True),
    "eager-bf16": Runtime(builders.eager_bfloat16, "bfloat16"),
    "eager-bf16-weights": Runtime(builders.eager_bfloat16_weights, "bfloat16"),
    "openvino-bf16": Runtime(builders.openvino_bfloat16, "bfloat16", needs=("openvino", *_EXPORT), graph=True),
    "packed": Runtime(builders.packed, dense=False),
}
"""Name -> how that runtime is measured. To add one, write a builder and a line here."""

DEFAULT: tuple[str, ...] = tuple(RUNTIMES)
"""What is compared when nothing is chosen: all of them."""


def chosen(runtimes: Sequence[str] | Mapping[str, Runtime]) -> dict[str, Runtime]:
    """The entries for names of the table, or a table of the caller's own.

    Args:
        runtimes: names, or name -> entry.

    Returns:
        Name -> entry, in that order.

    Raises:
        ValueError: for none, a name twice, or a name that is not in the table.

    Example:
        >>> list(chosen(["eager", "openvino"]))
        ['eager', 'openvino']
        >>> chosen(["onnx"])
        Traceback (most recent call last):
        ValueError: 'onnx' is no runtime; did you mean 'onnxruntime'? Known: eager, compile, ...
    """
    if isinstance(runtimes, Mapping):
        found = dict(runtimes)
    else:
        unknown = [name for name in runtimes if name not in RUNTIMES]
        if unknown:
            close = difflib.get_close_matches(unknown[0], list(RUNTIMES), n=1, cutoff=0.4)
            near = f"; did you mean {close[0]!r}?" if close else "."
            raise ValueError(f"{unknown[0]!r} is no runtime{near} Known: {', '.join(RUNTIMES)}")
        found = {name: RUNTIMES[name] for name in runtimes}
        if len(found) < len(runtimes):
            raise ValueError(f"a runtime is named twice: {', '.join(runtimes)}; the first stands in twice by itself")
    if not found:
        raise ValueError(f"no runtime to measure; known: {', '.join(RUNTIMES)}")
    return found
