"""The pruner: the one object that remembers masks and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core import batches_needed, evidence_needed, resolve_criterion, settings_needed
from secateur.core.unit_channel import evidence_layout
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.evidence import FORWARD_KINDS, GRADIENT_KINDS, Source, TrainingPasses, streamers
from secateur.model.group_targets import find_layout
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.model.names import find_parameter, unwrap
from secateur.model.sharding import full
from secateur.model.streaming import STREAMED_KINDS, StreamingEvidence
from secateur.records import SchedulePoint
from secateur.train.deciding import choose_masks, to_trace
from secateur.train.plan import Plan

__all__ = ["Pruner"]


@final
class Pruner:
    """Prunes while you train: masks change at the plan's steps and hold in between.

    With ``attach(optimizer)`` the optimizer is the clock and the training loop is yours. Without it, call
    ``step()`` yourself, once per round, say, and let ``masks.attach(optimizer)`` hold the masks in between.

    Criteria that read gradients use ``data`` and ``loss`` where given; else averages of the gradients
    that the attached optimizer sees between two updates. Criteria that read activations, or inputs of layers, use
    ``data`` where given; else the forward passes of your training in the last ``batches`` steps before an update.

    Args:
        model: any module. DDP: the wrapped one, whose ranks decide by what all of them saw; of the module inside each
            rank prunes by what it saw itself. FSDP2: make the pruner after ``fully_shard``.
        plan: the choices.
        data: an iterable of batches, or one, for criteria that read gradients, activations or inputs of layers.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss`` for batches of another shape.
        batches: how many to read at each update, or how many steps before it to watch; None: as the criterion's table
            says.
        init: weights before training; None: as they are now.
        mode: train or eval mode of the passes over data.
        example_inputs: for unit ``channel``, which traces the model: a tensor, a tuple of arguments, or a mapping of
            keyword arguments.
        exact: for unit ``channel``: leave alone what cannot be removed without changing the output.

    Raises:
        ValueError: for targets that match nothing, a model that already has masks, or ``rounds`` in the plan where
            evidence comes from the training itself.

    Example:
        >>> net = nn.Linear(10, 2)
        >>> pruner = Pruner(net, Plan(sparsity=0.5, schedule="linear", begin=0, end=5))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> pruner.attach(optimizer)
        >>> for _ in range(5):
        ...     net(torch.randn(4, 10)).sum().backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        >>> [point.kept for point in pruner.history]
        [20, 18, 16, 14, 12, 10]
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        data: Any = None,
        loss: LossFunction | None = None,
        *,
        step: StepFunction | None = None,
        batches: int | None = None,
        init: Mapping[str, Tensor] | None = None,
        mode: Literal["eval", "train"] = "eval",
        example_inputs: Any = None,
        exact: bool = True,
    ) -> None:
        if not isinstance(plan, Plan):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"plan={plan!r}: give a Plan, e.g. Plan(sparsity=0.9, schedule='cubic', end=1000)")
        if find_masks(model) is not None:
            raise ValueError("this model already has masks; call their undo() first, or go on with their pruner")
        self.plan = plan
        self._model = model
        unit = plan.parsed_unit
        traced = to_trace(plan.criterion, unit, example_inputs)
        self._layout = find_layout(model, plan.targets, plan.exclude, unit, traced, exact)
        self._scored = tuple(evidence_layout(unit, self._layout))
        entry = resolve_criterion(plan.criterion)
        needed = evidence_needed(entry)
        if "init" in needed and init is None:
            root = unwrap(model)
            init = {name: full(find_parameter(root, name)).detach().clone() for name in self._scored}
        batches = batches_needed(entry) if batches is None else batches
        self._source = Source(data, loss, step, batches, init, plan.seed, mode, example=example_inputs)
        streamed = [k for k in needed if k in STREAMED_KINDS and (k not in GRADIENT_KINDS or data is None)]
        _check_rounds(plan, [*streamed, *(kind for kind in needed if kind in FORWARD_KINDS and data is None)])
        self._stream = StreamingEvidence(streamed)
        forward = [kind for kind in needed if kind in FORWARD_KINDS] if data is None else []
        make = partial(streamers, model, forward, self._layout, unit, settings_needed(entry))
        self._passes = TrainingPasses(model, make) if forward else None
        self._due = frozenset(plan.updates)
        self._clock = 0
        self._driver: Callable[[], Optimizer | None] = lambda: None
        self._history: list[SchedulePoint] = []
        grid = {name: torch.ones(unit.grid(key), dtype=torch.bool) for name, key in self._layout.items()}
        self.masks = Masks(model, grid, unit, self._layout)
        register_masks(model, self.masks)
        self._watch()

    @property
    def clock(self) -> int:
        """Optimizer steps (or calls of ``step()``) so far."""
        return self._clock

    @property
    def history(self) -> tuple[SchedulePoint, ...]:
        """The mask updates as they happened."""
        return tuple(self._history)

    def attach(self, optimizer: Optimizer) -> None:
        """Let this optimizer drive the clock and hold the masks.

        An update due at step 0 happens now. A second optimizer of the same model gets
        ``pruner.masks.attach(optimizer)``: it holds the masks but is no clock.

        Args:
            optimizer: any torch optimizer that owns masked parameters.

        Raises:
            ValueError: if the optimizer owns none of them, or another optimizer already drives the clock.
        """
        if self._driver() is not None:
            raise ValueError(
                "an optimizer already drives this pruner; give further ones to pruner.masks.attach(optimizer), "
                "or call pruner.detach() first if this one takes its place"
            )
        self.masks.attach(optimizer, before=self._observe, after=self._tick)
        self._driver = ref(getattr(optimizer, "optimizer", optimizer))  # accelerate wraps the user's optimizer
        if self._clock == 0:
            self._update_if_due()
        self._watch()

    def detach(self) -> None:
        """Take the hooks off all optimizers, so that a new one may drive (a second ``fit``, say). Masks stay."""
        self.masks.detach()
        self._driver = lambda: None
        if self._passes is not None:
            self._passes.watch(False)

    def step(self) -> None:
        """Advance the clock by one round and prune if the plan says so; for loops without ``attach``.

        The first call is round ``begin``: an update due at 0 happens before the clock moves to 1.

        Raises:
            ValueError: if an optimizer drives the clock.
        """
        if self._driver() is not None:
            raise ValueError("an attached optimizer drives this pruner; step() is for loops without attach(optimizer)")
        if self._clock == 0:
            self._update_if_due()
        self._clock += 1
        self._update_if_due()
        self._watch()

    def state_dict(self) -> dict[str, Any]:
        """Clock, masks, removed values, streamed evidence and history: tensors and plain values for a checkpoint."""
        return {
            "plan": self.plan.describe(),
            "clock": self._clock,
            "masks": self.masks.state_dict(),
            "stream": self._stream.state_dict(),
            "passes": None if self._passes is None else self._passes.state_dict(),
            "init": None if self._source.init is None else dict(self._source.init),
            "history": [point.to_record() for point in self._history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; load model and optimizer first.

        Raises:
            ValueError: if the checkpoint is of another plan.
        """
        if state["plan"] != self.plan.describe():
            own, other = self.plan.describe(), state["plan"]
            changed = [name for name in {**own, **other} if own.get(name) != other.get(name)]
            raise ValueError(f"this checkpoint is of another plan; it differs in {', '.join(changed)}")
        self.masks.load_state_dict(state["masks"])
        self._clock = int(state["clock"])
        self._stream.load_state_dict(state["stream"])
        if self._passes is not None and state["passes"] is not None:  # None: that pruner had data
            self._passes.load_state_dict(state["passes"])
        self._source = replace(self._source, init=state["init"])
        self._history = [SchedulePoint.from_record(point) for point in state["history"]]
        self._watch()

    # -- inside -----------------------------------------------------------------------------------

    def _observe(self) -> None:
        """Before the optimizer's step: see the gradients, then mask them."""
        if self._stream.kinds:
            root = unwrap(self._model)
            # Scores of movement go on with the value that is kept aside, not with the zero that the forward pass saw.
            aside = self.plan.policy == "soft" and "movement" in self._stream.kinds
            if aside:
                self.masks.restore_values()
            for name in self._scored:
                parameter = find_parameter(root, name)
                if parameter.grad is not None:
                    self._stream.observe(name, parameter, parameter.grad)
            if aside:
                self.masks.apply()
        self.masks.mask_gradients()

    def _tick(self) -> None:
        """After the optimizer's step."""
        self._clock += 1
        if not self._update_if_due():
            self.masks.apply()
        self._watch()

    def _watch(self) -> None:
        """Forward passes are evidence in the last steps before an update alone, as many as batches would be read."""
        if self._passes is not None:
            wait = min((at - self._clock for at in self._due if at > self._clock), default=None)
            self._passes.watch(wait is not None and wait <= self._source.batches)

    def _update_if_due(self) -> bool:
        if self._clock not in self._due:
            return False
        sparsity = self.plan.sparsity_at(self._clock)
        if sparsity > 0:
            self.masks.update(self._choose(sparsity))
            self._stream.restart()
            if self._passes is not None:
                self._passes.restart()
        shares = self.masks.shares()
        self._history.append(SchedulePoint(self._clock, shares.units, sum(map(self.masks.kept, self.masks))))
        return True

    def _choose(self, sparsity: float) -> Mapping[str, Tensor]:
        source = self._source
        streamed = self._stream.evidence() if self._stream.kinds else {}
        if self._passes is not None:
            streamed = {**streamed, **self._passes.evidence()}
        if streamed:
            source = replace(source, streamed=streamed)
        if self.plan.policy == "hard":
            return choose_masks(self._model, self.plan, sparsity, source, self._layout, self.masks)
        self.masks.restore_values()
        try:
            return choose_masks(self._model, self.plan, sparsity, source, self._layout)
        finally:
            self.masks.apply()


def _check_rounds(plan: Plan, watched: list[str]) -> None:
    """Rounds that the user asks for read new evidence each, and a training cannot be run again for it."""
    if plan.rounds not in (None, 1) and watched:
        raise ValueError(
            f"rounds={plan.rounds} in the plan decides each update in rounds with new evidence in each, but "
            f"{', '.join(watched)} comes from the training itself, which goes on: give the Pruner data=, or leave "
            "rounds out and spread the updates by schedule, begin, end and every"
        )
