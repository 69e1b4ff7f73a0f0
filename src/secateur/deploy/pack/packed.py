"""`sc.pack`: a model whose zeros cost no time, where kernels were measured to make that true."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.tools_common import legalize_graph

from secateur.deploy.pack.capture import Example, capture, example_of
from secateur.deploy.pack.explain import Explanation, explained
from secateur.deploy.pack.lowering import lower
from secateur.deploy.pack.region import RegionModule
from secateur.deploy.pack.regions import Region, find_regions
from secateur.model.quietly import quietly
from secateur.native.loading import core
from secateur.native.threads import usable_threads
from secateur.runtime.choose import interleaved

__all__ = ["PackedModel", "pack"]


@dataclass(eq=False)
class _Parts:
    """What a packed model is made of; none of it is a submodule, so that there is nothing to train or to move."""

    dense: nn.Module
    graph: fx.GraphModule | None
    regions: list[RegionModule]
    run: nn.Module
    explanation: Explanation

    # Torch warns of the way in which it copies and pickles its own graphs.
    def __deepcopy__(self, memo: dict[int, Any]) -> _Parts:
        with _torch_may_warn():
            return _Parts(*(copy.deepcopy(value, memo) for value in self._values()))

    def __reduce__(self) -> tuple[Any, ...]:
        with _torch_may_warn():
            return _restored, (pickle.dumps(self._values()),)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


@contextmanager
def _torch_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _restored(values: bytes) -> _Parts:
    with _torch_may_warn():
        return _Parts(*pickle.loads(values))


@final
class PackedModel(nn.Module):
    """A model for inference on this machine's CPU; `pack` makes one.

    It is called as the model it came from. Where nothing was faster it calls that model.
    """

    _parts: _Parts

    def __init__(self, parts: _Parts) -> None:
        super().__init__()
        self.__dict__["_parts"] = parts
        self.training = False

    @property
    def dense(self) -> nn.Module:
        """The model that this one came from."""
        return self._parts.dense

    @property
    def is_dense(self) -> bool:
        """Whether nothing was faster, so that the dense model runs."""
        return self._parts.run is self._parts.dense

    @property
    def regions(self) -> list[RegionModule]:
        """The programs' modules, in the order in which they run."""
        return self._parts.regions

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        run = self._parts.run
        if type(run) is RegionModule:  # makes no gradients of its own
            return run.forward(*args, **kwargs)
        with torch.no_grad():
            return run(*args, **kwargs)

    def explain(self) -> Explanation:
        """Where the time goes, layer by layer, as measured when the model was packed.

        Returns:
            A record with one line per layer; ``print`` shows a table.
        """
        return self._parts.explanation

    def train(self, mode: bool = True) -> PackedModel:
        """Packed models do not train."""
        if mode:
            raise ValueError("a packed model is for inference: train the model that it came from, then pack again")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> PackedModel:
        raise ValueError(
            "a packed model stays float32 on the CPU: move or cast the model that it came from, then pack again"
        )

    def __repr__(self) -> str:
        kinds = "dense" if self.is_dense else f"{len(self.regions)} programs"
        return f"PackedModel({type(self.dense).__name__}, {kinds})"


def pack(
    model: nn.Module,
    example_inputs: Any,
    threads: int | None = None,
    dtype: torch.dtype | None = None,
) -> PackedModel:
    """Make a model fast by its zeros, on this machine.

    The model is exported; each maximal connected part of it that has zeros becomes one program of the core, in which
    every layer runs the kernel that was measured fastest, dense included. All else stays with torch. Where nothing
    wins, the result is the dense model and `explain` says so.

    Args:
        model: dense or pruned, on the CPU; it is not changed. It runs in eval mode. Weights of programs are copied.
        example_inputs: a tensor, a tuple of arguments or a mapping of keywords; measured at this size. Other numbers of
            samples are measured when they are first met.
        threads: that a program may use; None: as many as torch does, the processors allow and the container grants.
            Each program runs on one where that was faster.
        dtype: float32 or None: other types are not built yet.

    Returns:
        A module that is called as the model is.

    Raises:
        ValueError: the model cannot be exported, is not float32 on the CPU, or an option is not built.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
        >>> masks = sc.prune(net, "magnitude", sparsity=0.9)
        >>> fast = sc.pack(net, torch.randn(1, 64))
        >>> fast(torch.randn(5, 64)).shape
        torch.Size([5, 10])
    """
    _check(model, threads, dtype)
    example = example_of(example_inputs)
    if core is None:
        return _dense(model, "the C++ core is absent: reinstall with a C++17 compiler")
    module = capture(model, example)
    found = find_regions(module)
    if not found:
        return _dense(model, "no layer that the runtime knows has zeros in its weights")
    regions = [RegionModule(lower(region), _leads(region), threads or usable_threads()) for region in found]
    stands_for: dict[fx.Node, fx.Node] = {}
    for i, (region, runner) in enumerate(zip(found, regions, strict=True)):
        module.add_submodule(f"program_{i}", runner)
        _replace(module.graph, region, f"program_{i}", stands_for)
    legalize_graph(module)
    module.graph.eliminate_dead_code()
    plain = fx.GraphModule(module, module.graph)  # only what the graph still uses, and nothing that cannot be pickled
    return _measured(model, plain, regions, example)


def _check(model: nn.Module, threads: int | None, dtype: torch.dtype | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: expected 1 or more, or None for as many as torch uses")
    if dtype not in (None, torch.float32):
        raise ValueError(f"dtype={dtype}: only torch.float32 is built so far; leave it out")
    places = {(p.device.type, p.dtype) for p in model.parameters() if p.is_floating_point()}
    if places - {("cpu", torch.float32)}:
        listed = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        raise ValueError(f"pack expects float32 weights on the CPU, got {listed}; try model.float().cpu()")


def _leads(region: Region) -> tuple[int, ...]:
    """Axes before those of a sample, per input, as its first reader sees it."""
    found: list[int] = []
    for value in region.inputs:
        reader = next(node for node, meaning in region.meanings.items() if value in meaning.values)
        found.append(1 if region.meanings[reader].kind == "flatten" else region.leads[reader])
    return tuple(found)


def _replace(graph: fx.Graph, region: Region, name: str, stands_for: dict[fx.Node, fx.Node]) -> None:
    """Call a program where the region's nodes stood; ``stands_for`` remembers what took the place of its results."""
    with graph.inserting_after(list(region.meanings)[-1]):
        call = graph.call_module(name, tuple(stands_for.get(value, value) for value in region.inputs))
    for place, node in enumerate(region.outputs):
        with graph.inserting_after(call):
            result = call if len(region.outputs) == 1 else graph.call_function(_item, (call, place))
        node.replace_all_uses_with(result)
        stands_for[node] = result
    hidden = {passed for meaning in region.meanings.values() for passed in meaning.through}
    for node in reversed([node for node in graph.nodes if node in region.meanings or node in hidden]):
        graph.erase_node(node)


def _item(values: tuple[Tensor, ...], place: int) -> Tensor:
    return values[place]


def _direct(module: fx.GraphModule) -> RegionModule | None:
    """The only program, where it is all there is: one argument in, its one result out."""
    calls = [node for node in module.graph.nodes if node.op in {"call_module", "call_function"}]
    places = [node for node in module.graph.nodes if node.op == "placeholder"]
    (result,) = [node.args[0] for node in module.graph.nodes if node.op == "output"]
    bare = result[0] if isinstance(result, tuple | list) and len(result) == 1 else result
    if len(calls) != 1 or len(places) != 1 or bare is not calls[0] or tuple(calls[0].args) != (places[0],):
        return None
    return module.get_submodule(str(calls[0].target))  # type: ignore[return-value]


def _dense(model: nn.Module, reason: str) -> PackedModel:
    return PackedModel(_Parts(model, None, [], model, Explanation((), 0.0, 0.0, 0.0, reason)))


def _measured(model: nn.Module, graph: fx.GraphModule, regions: list[RegionModule], example: Example) -> PackedModel:
    """Decide every program at the example's size, then the model as a whole against the dense one."""
    arguments, keywords = example
    direct = _direct(graph) if not keywords and isinstance(arguments[0], Tensor) else None
    run: nn.Module = graph if direct is None else direct
    with quietly(model), torch.no_grad():
        run(*arguments, **keywords)  # meets every size, and so decides
        us, dense_us = interleaved([lambda: run(*arguments, **keywords), lambda: model(*arguments, **keywords)], 1.0)
    explanation = explained(regions, us, dense_us)
    return PackedModel(
        _Parts(model, graph if direct is None else None, regions, run if us < dense_us else model, explanation)
    )
