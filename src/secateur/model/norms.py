"""Units behind batch norms: in eval mode a norm is a line per channel, and rows count as it passes them on.

    row = s w,    bias = s (b - mean) + beta,    s = gamma / sqrt(var + eps)

That is of a norm that reads what layers make and nothing else, where nothing else reads it. Any other (behind the
activation, on a residual stream) and any factor per channel stays beside the rows: two units are multiples if it
treats both alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeGuard, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from secateur.core.unit_rows import side_by_side
from secateur.model.evidence.companions import bias_names, bias_of
from secateur.model.evidence.gate_places import Seen, seen_between
from secateur.model.graph.examples import as_examples, call, tensors_in
from secateur.model.graph.trace import tensor_names
from secateur.model.names import clean_name
from secateur.model.quietly import quietly
from secateur.model.sharding import full
from secateur.types import Evidence, KeyLayout, Layout, Member, Tensors

__all__ = ["Planted", "norms_behind", "other_rows", "planted", "with_norms"]


def norms_behind(root: nn.Module, layout: Layout, example_inputs: Any) -> dict[str, str]:
    """Which batch norm with running statistics, and nothing besides, reads exactly what a layer makes.

    Args:
        root: an unwrapped module, run once for each example.
        layout: groups.
        example_inputs: as the user gave them.

    Returns:
        Weight of the layer -> path of the norm.

    Example:
        >>> import secateur as sc
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        >>> groups = sc.groups(net, torch.ones(2, 2))
        >>> norms_behind(net, {name: group.layout() for name, group in groups.items()}, torch.ones(2, 2))
        {'0.weight': '1'}
    """
    owners = {clean_name(path): module for path, module in root.named_modules()}
    makers: dict[str, tuple[nn.Module, Member]] = {}
    for key in layout.values():
        for member in key.members:
            module = owners.get(member.name.rpartition(".")[0])
            plain = isinstance(module, (nn.Linear, _ConvNd)) and member.name.endswith("weight")
            if module is not None and plain and member.part == "out":
                makers[member.name] = module, member
    if not any(_is_line(module) for module in owners.values()):
        return {}
    runs: list[Seen] = []
    layers = dict.fromkeys(module for module, _ in makers.values())
    with quietly(root), _Past(root, layers) as past:
        for example in as_examples(example_inputs):
            runs.append(seen_between(root, layers, lambda e=example: call(root, e)))
    paths = {module: path for path, module in root.named_modules()}
    found: dict[str, str] = {}
    for name, (module, member) in makers.items():
        made = [(run, output) for run in runs for output in run.made[module]]
        norms = {None if past.reads(output) else run.norm_of(output) for run, output in made}
        norm = norms.pop() if len(norms) == 1 else None
        rows = all(output.dim() == 2 for _, output in made) or isinstance(module, _ConvNd)
        alone = all(as_made for run in runs for _, as_made, reader in run.read if reader is norm)
        if norm is not None and _is_line(norm) and rows and alone and norm.num_features == member.shape[member.dim]:
            found[name] = paths[norm]
    return found


@final
class _Past(TorchFunctionMode):
    """Sees what layers make go anywhere but into a batch norm: back onto a residual stream, say."""

    def __init__(self, root: nn.Module, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self._made: dict[int, Tensor] = {}
        self._past: set[int] = set()
        self._inside = 0
        self._handles = [layer.register_forward_hook(self._remember) for layer in layers]
        for norm in filter(_is_line, root.modules()):
            self._handles += [norm.register_forward_pre_hook(self._enter), norm.register_forward_hook(self._leave)]

    def reads(self, output: Tensor) -> bool:
        """Whether something else than a norm made a tensor of an output."""
        return id(output) in self._past

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = (
            [id(one) for one in tensors_in((args, kwargs or {})) if id(one) in self._made] if not self._inside else []
        )
        result = func(*args, **(kwargs or {}))
        if read and next(tensors_in(result), None) is not None:
            self._past.update(read)
        return result

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def _remember(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            self._made[id(output)] = output

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._inside -= 1


def with_norms(root: nn.Module, layout: Layout, evidence: Evidence, behind: Mapping[str, str]) -> dict[str, Tensors]:
    """Evidence ``weight`` and ``bias`` as the norms directly behind the layers pass it on, in float64.

    Args:
        root: an unwrapped module.
        layout: groups.
        evidence: as collected for them; other kinds stay as they are.
        behind: as ``norms_behind`` gives it.

    Returns:
        The same kinds. A bias that a norm is folded into stands under the name of the layer's weight.
    """
    found = {kind: dict(tensors) for kind, tensors in evidence.items()}
    modules = dict(root.named_modules())
    makers = {m.name: m for key in layout.values() for m in key.members if m.part == "out" and m.name in behind}
    for name, member in makers.items():
        scale, shift = _line(modules[behind[name]])
        shape = [-1 if axis == member.dim else 1 for axis in range(len(member.shape))]
        if name in found.get("weight", ()):
            found["weight"][name] = found["weight"][name].double() * scale.reshape(shape)
        if "bias" in found:
            own = found["bias"].pop(bias_of(name)[0], None)
            found["bias"][name] = (shift if own is None else own.double() * scale + shift).reshape(shape)
    return dict(found)


def other_rows(root: nn.Module, key: KeyLayout, behind: Mapping[str, str], size: Tensor) -> Tensor:
    """What else tells units apart: numbers per channel that are neither in their rows nor their biases.

    Factors count times the size of the unit, so that they stand beside multiples like the rest of their rows, and
    offsets of norms as they are.

    Args:
        root: an unwrapped module.
        key: a group.
        behind: as ``norms_behind`` gives it.
        size: of each unit ``[units]``.

    Returns:
        ``[1, units, n]``.
    """
    tensors, lines = tensor_names(root), _lines_of(root)
    columns = [torch.zeros(key.shape[0], 0, dtype=torch.float64)]
    for member in _others(root, key, behind):
        norm, leaf = lines.get(member.name, (None, ""))
        if norm is None:
            values = full(tensors[member.name]).detach().double()
        else:
            values = _line(norm)[0 if leaf == "weight" else 1]
        own = side_by_side(values.cpu(), member, key.shape[0])
        columns.append(own if leaf == "bias" else own * size[:, None].cpu())
    return torch.cat(columns, 1)[None]


@dataclass(frozen=True, slots=True)
class Planted:
    """``scale * partner + shift`` in place of a removed unit's part of a tensor."""

    member: Member
    scale: float
    shift: float = 0.0


def planted(root: nn.Module, key: KeyLayout, behind: Mapping[str, str], factor: float) -> Iterator[Planted]:
    """What makes units ``factor`` times their partners, as their rows count.

    Behind a norm of its own a layer gets another multiple and the norm what makes up for it, of the other sign where
    it has scales: whatever hears the layer itself shows.

    Args:
        root: an unwrapped module.
        key: a group.
        behind: as ``norms_behind`` gives it.
        factor: of the removed units.

    Yields:
        For each tensor, parameter or buffer, what is planted.
    """
    norms, biases = dict(root.named_modules()), dict[str, float]()
    for member in (member for member in key.members if member.part == "out"):
        scale, path = factor, behind.get(member.name)
        if path is not None:
            norm = norms[path]
            assert _is_line(norm)  # norms_behind
            names = [leaf for leaf, _ in norm.named_parameters()]
            scale *= -2.0 if "weight" in names else 2.0
            row = replace(member, shape=(norm.num_features,), dim=0)
            at = clean_name(path)
            yield Planted(replace(row, name=f"{at}.running_mean"), scale)
            yield Planted(replace(row, name=f"{at}.running_var"), 4.0, 3.0 * norm.eps)
            for leaf in names:
                yield Planted(replace(row, name=f"{at}.{leaf}"), -1.0 if leaf == "weight" else factor)
        yield Planted(member, scale)
        biases[bias_of(member.name)[0]] = scale
    for member in (member for member in key.members if member.part == "follows" and member.name in biases):
        yield Planted(member, biases[member.name])
    lines = _lines_of(root)
    for member in _others(root, key, behind):
        norm, leaf = lines.get(member.name, (None, ""))
        yield Planted(member, factor if leaf == "bias" else 1.0)
        if norm is not None and leaf == "bias":
            at = member.name.removesuffix("bias")
            yield Planted(replace(member, name=f"{at}running_mean"), factor)
            yield Planted(replace(member, name=f"{at}running_var"), 1.0)


def _others(root: nn.Module, key: KeyLayout, behind: Mapping[str, str]) -> Iterator[Member]:
    """Members with one number per channel, but for biases of layers and norms directly behind these."""
    known = set(bias_names({"": key}, tensor_names(root)))
    direct = {clean_name(behind[m.name]) for m in key.members if m.part == "out" and m.name in behind}
    known |= {f"{path}.{leaf}" for path in direct for leaf in ("weight", "bias")}
    for member in key.members:
        if member.part == "follows" and member.name not in known and len(member.shape) == 1:
            yield member


def _lines_of(root: nn.Module) -> dict[str, tuple[_BatchNorm, str]]:
    """Scale or offset of a norm with running statistics -> the norm, and which of the two."""
    norms = {clean_name(path): module for path, module in root.named_modules() if _is_line(module)}
    return {f"{path}.{leaf}": (norm, leaf) for path, norm in norms.items() for leaf in ("weight", "bias")}


def _is_line(module: nn.Module) -> TypeGuard[_BatchNorm]:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


def _line(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """``s`` and ``t`` of ``s x + t``, in float64."""
    assert _is_line(norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (full(norm.running_var).double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * full(norm.weight).detach().double()  # pyright: ignore[reportUnnecessaryComparison]
    shift = -scale * full(norm.running_mean).double()
    return scale, shift if norm.bias is None else shift + full(norm.bias).detach().double()  # pyright: ignore[reportUnnecessaryComparison]
