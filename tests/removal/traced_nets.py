"""Networks of two or three layers, one for each rule of the tracer, and a judge that knows nothing of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from tests.oracles.removal import run, shapes, zeroed

__all__ = ["Case", "Made", "dead_slices", "distance", "judge", "seeded", "some_units"]


class Made(nn.Module):
    """Modules, parameters and buffers by name, and a forward that is given.

    Args:
        forward: called with the module and the inputs.
        parts: a plain tensor becomes a buffer.
    """

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self._run = forward
        for name, part in parts.items():
            if type(part) is Tensor:
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *inputs: Any) -> Any:
        return self._run(self, *inputs)


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """The same network in float64 at every call, no weight or statistic at its initial constant."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith("running_mean"):
                    buffer.normal_(0.0, 0.3)
                elif name.endswith("running_var"):
                    buffer.uniform_(0.5, 1.5)
    return model.eval()


@dataclass(frozen=True)
class Case:
    """One rule of the tracer.

    Attributes:
        name: of the test.
        make: the network.
        inputs: shapes of the inputs without the batch axis; ``("ids", high, *shape)`` asks for whole numbers.
        sizes: units of the groups that can be removed, in the order of the modules.
        stays: axis -> what its reason has to say.
        unknown: operators that have to be named.
        claimed: units of the groups that the trace alone would take, where the probes then refuse some.
        exact: as ``sc.groups`` takes it.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[tuple[Any, ...], ...] = ((6,),)
    sizes: tuple[int, ...] = ()
    stays: Mapping[str, str] = field(default_factory=dict[str, str])
    unknown: tuple[str, ...] = ()
    claimed: tuple[int, ...] | None = None
    exact: bool = True

    def model(self) -> nn.Module:
        return seeded(self.make)

    def example(self, batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(batch)
        return tuple(
            torch.randint(0, shape[1], (batch, *shape[2:]), generator=generator)
            if shape[:1] == ("ids",)
            else torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
            for shape in self.inputs
        )


def some_units(groups: Mapping[str, Any], seed: int = 0) -> dict[str, list[int]]:
    """A third of the units of every group, one at least."""
    draw = random.Random(seed)
    return {name: sorted(draw.sample(range(g.units), max(1, g.units // 3))) for name, g in groups.items()}


def dead_slices(groups: Mapping[str, Any], units: Mapping[str, list[int]]) -> list[tuple[str, int, list[int]]]:
    return [
        (member.name, member.dim, [place for place, unit in enumerate(member.owner) if unit in numbers])
        for name, numbers in units.items()
        for member in groups[name].members
    ]


def distance(one: list[Tensor], other: list[Tensor]) -> float:
    assert [tensor.shape for tensor in one] == [tensor.shape for tensor in other]
    return max(float((a.double() - b.double()).abs().max()) for a, b in zip(one, other, strict=True))


def judge(model: nn.Module, groups: Mapping[str, Any], examples: Any, inputs: Any, *, exact: bool = True) -> nn.Module:
    """Remove a third of every group: shapes shrink by the slices that are named, values are the masked model's."""
    units = some_units(groups)
    dead = dead_slices(groups, units)
    small = sc.shrink(model, units=units, example_inputs=examples, exact=exact)
    lost: dict[tuple[str, int], int] = {}
    for name, dim, positions in dead:
        lost[name, dim] = lost.get((name, dim), 0) + len(positions)
    assert shapes(small) == {
        name: tuple(size - lost.get((name, dim), 0) for dim, size in enumerate(shape))
        for name, shape in shapes(model).items()
    }
    masked = zeroed(model, dead)
    assert max(distance(run(masked, one), run(model, one)) for one in inputs) > 1e-6, "these units did nothing"
    for one in inputs:
        gap = distance(run(masked, one), run(small, one))
        assert not exact or gap < 1e-9, f"the smaller model is not the masked one: {gap}"
    return small
