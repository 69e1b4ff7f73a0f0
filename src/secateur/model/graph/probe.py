"""Probes: no plan is taken before the smaller model was seen to compute what the masked one computes."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.graph.cutting import Keep, disturbed_copy, masked_copy
from secateur.model.graph.examples import Example, call, elements, resized, tensors_in
from secateur.model.graph.group import Group
from secateur.model.graph.trace import line_of
from secateur.model.graph.twins import copied, twin
from secateur.model.quietly import quietly
from secateur.model.removal import Removal, remove
from secateur.model.removal.registry import carry_mark

__all__ = ["Probes", "difference", "outputs_of"]


def outputs_of(model: nn.Module, example: Example) -> list[Tensor]:
    """The tensors that a model returns for an example, in eval mode."""
    with quietly(model), torch.no_grad():
        return [tensor.detach().clone() for tensor in tensors_in(call(model, example))]


class Probes:
    """The examples that plans are probed on: the user's, filled with noise, at several batch sizes.

    Args:
        root: the model before anything is removed.
        examples: as the user gave them.
        batches: batch sizes; one that the model refuses is left out.
        smaller: the examples with smaller images; all batch sizes but the first are probed on these.
        shared: copies may lie in the memory of the model, whose forward does not write into its parameters.
    """

    def __init__(
        self,
        root: nn.Module,
        examples: Sequence[Example],
        batches: Sequence[int] = (1, 3),
        *,
        smaller: Sequence[Example] | None = None,
        shared: bool = False,
    ) -> None:
        self.root = root
        self._shared = shared
        generator = torch.Generator().manual_seed(0)
        rest = examples if smaller is None else smaller
        self._cases = [
            _noisy(resized(example, batch), generator)
            for some, sizes in ((examples, batches[:1]), (rest, batches[1:]))
            for example in some
            for batch in sizes
        ]
        self._cases.sort(key=elements)  # the first is run once more
        self._own = [*examples, *(_noisy(example, generator) for example in examples)]

    def expected(self, masked: nn.Module) -> Iterator[tuple[Example, list[Tensor]]]:
        """The cases that the model takes, with its outputs; the user's own examples where it takes no other size."""
        taken = 0
        for case in tuple(self._cases):
            try:
                outputs = outputs_of(masked, case)
            except Exception:  # noqa: BLE001 - a model of one batch size; its own examples follow
                self._cases = [other for other in self._cases if other is not case]
                continue
            taken += 1
            yield case, outputs
        for example in () if taken else self._own:
            yield example, outputs_of(masked, example)

    def expect(self, groups: Mapping[str, Group], keep: Keep) -> tuple[list[tuple[Example, list[Tensor]]], str]:
        """The masked model's outputs on every case, and whether anything hears the removed units.

        In the masked model all slices of the units are zero. With what makes them disturbed and only what reads them
        still zero, the output must not move.

        Returns:
            The outputs, and what went wrong, or nothing. Groups that no weight reads, and inexact ones, are not asked.
        """
        masked = masked_copy(self.root, groups, keep, shared=self._shared)
        expected = list(self.expected(masked.model))
        if not self._shared:  # a forward that writes into its parameters has done so
            masked = masked_copy(self.root, groups, keep)
        asked = {name: mask for name, mask in keep.items() if groups[name].exact and groups[name].read_by_weights}
        noisy = disturbed_copy(self.root, masked, groups, asked, shared=self._shared)
        if noisy is None:  # what makes them is zero already: it is the masked model, and says the same
            return expected, ""
        example, quiet = expected[0]  # of a model that keeps something of each run, this was the first
        return expected, difference(quiet, outputs_of(noisy, example), exact=True)

    def made(self, removal: Removal) -> nn.Module:
        """A copy with a removal carried out on it. What it did not lose may be the model's memory.

        Raises:
            ValueError: if the removal does not fit the model.
        """
        small = twin(self.root) if self._shared else copied(self.root)
        carry_mark(self.root, small)
        remove(small, removal)
        return small

    def check(
        self, removal: Removal, expected: Sequence[tuple[Example, list[Tensor]]], *, exact: bool
    ) -> tuple[nn.Module | None, str]:
        """Carry a removal out on a copy and compare.

        Args:
            removal: what is to be done.
            expected: as ``expect`` gives it.
            exact: compare values, not shapes alone.

        Returns:
            ``(smaller model, "")``, or ``(None, what went wrong)``. The smaller model is as the runs left it.
        """
        try:
            small = self.made(removal)
        except ValueError as error:
            return None, str(error)
        for example, outputs in expected:
            try:
                got = outputs_of(small, example)
            except Exception as error:  # noqa: BLE001 - the user's forward may raise anything; it is reported
                return None, f"the forward of the smaller model fails: {type(error).__name__}: {_short(error)}"
            problem = difference(outputs, got, exact=exact)
            if problem:
                return None, problem
        return small, ""


def _noisy(example: Example, generator: torch.Generator) -> Example:
    def noise(value: Any) -> Any:
        if isinstance(value, Tensor) and value.is_floating_point():
            drawn = torch.randn(value.shape, generator=generator).to(value)
            spread = value.float().std(correction=0) if value.numel() > 1 else torch.tensor(0.0)
            scale = float(spread) if torch.isfinite(spread) and spread > 0 else 1.0
            middle = float(value.float().mean()) if value.numel() else 0.0
            return drawn * scale + middle
        if isinstance(value, Mapping):
            return {key: noise(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            return type(value)(noise(item) for item in value)
        return value

    return Example(noise(tuple(example.args)), noise(dict(example.kwargs)))


_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


def difference(expected: Sequence[Tensor], got: Sequence[Tensor], *, exact: bool) -> str:
    """What differs between two models' outputs, in words; nothing where they agree."""
    if len(expected) != len(got):
        return f"the smaller model returns {len(got)} tensors, not {len(expected)}"
    for place, (a, b) in enumerate(zip(expected, got, strict=True)):
        if a.shape != b.shape:
            return f"output {place} has shape {tuple(b.shape)}, the masked model's has {tuple(a.shape)}"
        if not exact or not a.numel():
            continue
        if not a.is_floating_point():
            if a.dtype == torch.bool or not bool((a == b).float().mean() < 0.9):
                continue
            return f"output {place} differs from the masked model's"
        gap = (a.double() - b.double()).abs().max()
        scale = a.double().abs().max().clamp(min=1e-3)
        if not bool(gap <= _TOLERANCE.get(a.dtype, 1e-4) * scale):
            return (
                f"output {place} differs from the masked model's by {float(gap):.2g} (largest value {float(scale):.2g})"
            )
    return ""


def _short(error: Exception) -> str:
    place = line_of(frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))
    return f"{type(error).__name__} in {place}: " + str(error).split("\n", 1)[0][:160]
