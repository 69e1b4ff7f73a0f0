"""What a packed model is made of, how it is copied, and whether it is nothing but programs."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import fx, nn

from secateur.deploy.pack.explain import explained
from secateur.deploy.pack.region import RegionModule
from secateur.records import Explanation

__all__ = ["Parts", "chained"]


@dataclass(eq=False)
class Parts:
    """What a packed model is made of; none of it is a submodule, so that there is nothing to train or to move."""

    dense: nn.Module | None  # None: read from a file
    graph: fx.GraphModule | None
    regions: list[RegionModule]
    run: nn.Module
    times: tuple[float, float] | None  # of the whole model: packed and dense; None: not known yet
    explanation: Explanation | None = None  # made when it is asked for
    samples: int = 1  # of the example

    # Torch warns of the way in which it copies and pickles its own graphs.
    def __deepcopy__(self, memo: dict[int, Any]) -> Parts:
        with _torch_may_warn():
            return Parts(*(copy.deepcopy(value, memo) for value in self._values()))

    def __reduce__(self) -> tuple[Any, ...]:
        with _torch_may_warn():
            return _restored, (pickle.dumps(self._values()),)

    def explain(self) -> Explanation:
        """The explanation, made of what the programs know, and kept for copies, which know less."""
        if self.explanation is None:
            if self.times is None:
                self.times = self._decided()
            self.explanation = explained(self.regions, *self.times, self.samples)
        return self.explanation

    def _decided(self) -> tuple[float, float]:
        """Of programs from a file: the sums over them, for as many samples as the example had where it was packed."""
        first = self.regions[0]
        ones = [1] * (first.leads[0] - 1)
        shape = (self.samples, *ones, *first.graph.shapes[first.graph.inputs[0]])
        self.run(torch.zeros(shape, dtype=torch.float32))
        found = [next(iter(region.chosen.values())) for region in self.regions]
        return sum(min(each.us, each.dense_us) for each in found), sum(each.dense_us for each in found)

    def _values(self) -> tuple[Any, ...]:
        if self.times is not None:
            self.explain()
        return tuple(getattr(self, field.name) for field in fields(self))


@contextmanager
def _torch_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _restored(values: bytes) -> Parts:
    with _torch_may_warn():
        return Parts(*pickle.loads(values))


def chained(module: fx.GraphModule) -> list[RegionModule] | None:
    """All there is, where that is programs one after the other: one argument in, the last one's only result out."""
    spec = getattr(module.graph._codegen, "pytree_info", None)
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(places) != 1 or (spec is not None and spec.out_spec.type is not None):  # a tuple or a dictionary comes out
        return None
    value, found = places[0], list[RegionModule]()
    for node in module.graph.nodes:
        if node.op == "call_module" and tuple(node.args) == (value,) and len(value.users) == 1:
            called = module.get_submodule(str(node.target))
            assert isinstance(called, RegionModule)
            value = node
            found.append(called)
        elif node.op in {"call_module", "call_function", "call_method"}:
            return None
    (result,) = [node.args[0] for node in module.graph.nodes if node.op == "output"]
    bare = result[0] if isinstance(result, tuple | list) and len(result) == 1 else result
    return found if bare is value else None
