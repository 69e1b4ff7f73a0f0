"""`sc.pack`: a model whose zeros cost no time, where kernels were measured to make that true."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.passes.tools_common import legalize_graph

from secateur.deploy.pack.capture import Example, capture, example_of
from secateur.deploy.pack.lowering import lower
from secateur.deploy.pack.parts import Parts, chained
from secateur.deploy.pack.region import RegionModule
from secateur.deploy.pack.regions import Region, find_regions, leads_of
from secateur.model.names import unwrap
from secateur.model.quietly import quietly
from secateur.model.registry import find_masks
from secateur.native.loading import core, never_traced
from secateur.native.threads import usable_threads
from secateur.records import Explanation
from secateur.runtime.cache import Cache
from secateur.runtime.choose import interleaved
from secateur.runtime.remember import structure
from secateur.runtime.roofs import measure_roofs

__all__ = ["PackedModel", "pack"]

_is_compiling = torch.compiler.is_compiling
is_exporting: Callable[[], bool] = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.7 and later


@final
class PackedModel(nn.Module):
    """A model for inference on this machine's CPU; `pack` makes one.

    It is called as the model it came from. Where nothing was faster it calls that model.
    """

    _parts: Parts

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.__dict__["_parts"] = parts
        self.training = False

    @property
    def dense(self) -> nn.Module:
        """The model that this one came from.

        Raises:
            ValueError: it came from a file, which holds programs alone.
        """
        if self._parts.dense is None:
            raise ValueError("a packed model from a file has no dense model beside it: make that from its own file")
        return self._parts.dense

    @property
    def is_dense(self) -> bool:
        """Whether nothing was faster, so that the dense model runs."""
        parts = self._parts
        found = [chosen for region in parts.regions for chosen in region.chosen.values()]
        return parts.run is parts.dense or (parts.dense is None and bool(found) and not any(c.wins for c in found))

    @property
    def chain(self) -> list[RegionModule] | None:
        """The programs, if each reads what the one before it made, and nothing else runs; else None."""
        parts = self._parts
        return parts.regions if parts.graph is None else chained(parts.graph)

    @property
    def between(self) -> list[str]:
        """Names of the operators that torch runs."""
        nodes = [] if self._parts.graph is None else self._parts.graph.graph.nodes
        return [str(node.target) for node in nodes if node.op == "call_function" and node.target is not _item]

    @property
    def regions(self) -> list[RegionModule]:
        """The programs' modules, in the order in which they run."""
        return self._parts.regions

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the model's own."""
        run = self._parts.run
        if _is_compiling():
            return _untraced(run, args, kwargs)
        if type(run) is RegionModule:  # makes no gradients of its own
            return run.forward(*args, **kwargs)
        if not torch.is_grad_enabled():
            return run(*args, **kwargs)
        with torch.no_grad():
            return run(*args, **kwargs)

    def explain(self, roofs: bool = False) -> Explanation:
        """Where the time goes, layer by layer, as measured when the model was packed.

        Args:
            roofs: measure what this machine reaches at most, too (half a second, once in a process): the report draws
                its roofline with them.

        Returns:
            A record with one line per layer; ``print`` shows a table.
        """
        found = self._parts.explain()
        dense = self._parts.dense
        found = found if dense is None else replace(found, title=type(dense).__name__)
        if not roofs or not found.layers:
            return found
        if core is None:
            return replace(found, no_roofs="the C++ core is absent, which measures them")
        return replace(found, roofs=measure_roofs())

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
        dense = self._parts.dense
        return f"PackedModel({'from a file' if dense is None else type(dense).__name__}, {kinds})"


@never_traced
def _untraced(run: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A break in the graph of whoever compiles around a packed model."""
    if is_exporting():
        raise ValueError(
            "torch.export cannot take a packed model: its programs are of this process. Export the model that it came "
            "from, or sc.save the packed model itself"
        )
    with torch.no_grad():
        return run(*args, **kwargs)


def pack(
    model: nn.Module | ExportedProgram,
    example_inputs: Any,
    threads: int | None = None,
    dtype: torch.dtype | None = None,
    cache: bool = True,
) -> PackedModel:
    """Make a model fast by its zeros, on this machine.

    The model is exported; each maximal connected part of it that the runtime knows becomes one program of the core, in
    which every layer runs the kernel that was measured fastest, dense included. All else stays with torch. Where
    nothing wins, the result is the dense model and `explain` says so.

    Args:
        model: dense or pruned, on the CPU; it is not changed. It runs in eval mode. Weights of programs are copied.
            Under data-parallel and compile wrappers the module inside is packed. Or an exported program.
        example_inputs: a tensor, a tuple of arguments or a mapping of keywords; measured at this size. Other numbers of
            samples are measured when they are first met.
        threads: that a program may use; None: as many as torch does, the processors allow and the container grants.
            Each program runs on one where that was faster.
        dtype: bfloat16 lets linear layers run in bf16 where that is faster, on processors that multiply it: weights and
            inputs of such layers are rounded, their sums and all values stay float32. Masks that keep or remove pairs
            of neighbouring inputs gain most; in a pair that keeps one weight the other one is a 0 that meets its input,
            NaN and infinity too. int8 does so in int8, its weights on a grid per output, its inputs on one
            per sample, found at every call; masks in ``unit="block(1, 4)"`` gain most. A sample whose input of such a
            layer holds NaN or infinity comes out of it as NaN. What either costs in accuracy is yours to measure.
            None is float32.
        cache: keep what was measured for the next start on this machine, and use what was kept: in the platform's
            folder for caches, or where the environment variable ``SECATEUR_CACHE`` says (``off``: nowhere).

    Returns:
        A module that is called as the model is.

    Raises:
        ValueError: the model cannot be exported, is not float32 on the CPU, an option is not built, or removed weights
            have grown back.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)).eval()
        >>> masks = sc.prune(net, sparsity=0.9)
        >>> fast = sc.pack(net, torch.randn(1, 64))
        >>> fast(torch.randn(5, 64)).shape
        torch.Size([5, 10])
    """
    model = unwrap(model.module() if isinstance(model, ExportedProgram) else model)
    _check(model, threads, dtype)
    example = example_of(example_inputs)
    if core is None:
        return _dense(model, "the C++ core is absent: reinstall with a C++17 compiler")
    module = capture(model, example)
    found = find_regions(module)
    if not found:
        return _dense(model, "it has no layer that the runtime knows")
    threads = threads or usable_threads()
    regions = [
        RegionModule(lower(region), leads_of(region), threads, cache, dtype or torch.float32) for region in found
    ]
    stands_for: dict[fx.Node, fx.Node] = {}
    for i, (region, runner) in enumerate(zip(found, regions, strict=True)):
        module.add_submodule(f"program_{i}", runner)
        _replace(module.graph, region, f"program_{i}", stands_for)
    legalize_graph(module)
    module.graph.eliminate_dead_code()
    plain = fx.GraphModule(module, module.graph)  # only what the graph still uses, and nothing that cannot be pickled
    return _measured(model, plain, regions, example, Cache(regions[0].threads) if cache else None)


def _check(model: nn.Module, threads: int | None, dtype: torch.dtype | None) -> None:
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads}: expected 1 or more, or None for as many as torch uses")
    if dtype not in (None, torch.float32, torch.bfloat16, torch.int8):
        raise ValueError(f"dtype={dtype}: allowed are torch.float32, torch.bfloat16, torch.int8 and None")
    masks = find_masks(model)
    if masks is not None:
        masks.check()  # removed weights that grew back are not zeros
    places = {(p.device.type, p.dtype) for p in model.parameters() if p.is_floating_point()}
    if places - {("cpu", torch.float32)}:
        listed = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in places))
        raise ValueError(f"pack expects float32 weights on the CPU, got {listed}; try model.float().cpu()")


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
    found = chained(module) or []
    return found[0] if len(found) == 1 else None


def _dense(model: nn.Module, reason: str) -> PackedModel:
    return PackedModel(Parts(model, None, [], model, (0.0, 0.0), Explanation((), 0.0, 0.0, 0.0, reason)))


def _measured(
    model: nn.Module, graph: fx.GraphModule, regions: list[RegionModule], example: Example, cache: Cache | None
) -> PackedModel:
    """Decide every program at the example's size, then the model as a whole against the dense one."""
    arguments, keywords = example
    direct = _direct(graph) if not keywords and isinstance(arguments[0], Tensor) else None
    run: nn.Module = graph if direct is None else direct
    with quietly(model), torch.no_grad():
        run(*arguments, **keywords)  # meets every size, and so decides
        key = _key(model, graph, regions, example)
        known = None if cache is None else cache.get(key)
        if known is None or not all(type(known.get(name)) is float for name in ("us", "dense_us")):
            calls = [lambda: run(*arguments, **keywords), lambda: model(*arguments, **keywords)]
            packed_us, torch_us = interleaved(calls, 1.0)
            known = {"us": packed_us, "dense_us": torch_us}
            if cache is not None:
                cache.put(key, known)
        us, dense_us = known["us"], known["dense_us"]
    chosen = run if us < dense_us else model
    parts = Parts(model, graph if direct is None else None, regions, chosen, (us, dense_us), samples=_samples(example))
    return PackedModel(parts)


def _samples(example: Example) -> int:
    values = [*example[0], *example[1].values()]
    return next((len(value) for value in values if isinstance(value, Tensor) and value.ndim), 0)


def _key(model: nn.Module, graph: fx.GraphModule, regions: list[RegionModule], example: Example) -> str:
    """All that the time of the whole model depends on: its operators, what programs compute, the example's sizes."""
    values = [*example[0], *example[1].values()]
    shapes = [(tuple(value.shape), str(value.dtype)) if isinstance(value, Tensor) else repr(value) for value in values]
    inside = [structure(region.graph, size, region.dtype) for region in regions for size in region.chosen]
    text = repr((type(model).__qualname__, graph.code, shapes, inside))
    return hashlib.sha256(text.encode()).hexdigest()
