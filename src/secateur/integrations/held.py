"""What the callbacks of all trainers share: a pruner, or masks alone, through one training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core import evidence_needed
from secateur.core.unit_channel import evidence_layout
from secateur.integrations.choices import Choices
from secateur.integrations.mask_files import StoredMasks, layout_record, parse_layout
from secateur.model.batches import to_device
from secateur.model.masks import Masks
from secateur.model.names import find_parameter, unwrap
from secateur.model.packed import unpack_units
from secateur.model.ranks import OfRanks, Ranks
from secateur.model.registry import find_masks
from secateur.model.sharding import is_sharded
from secateur.model.streaming import STREAMED_KINDS
from secateur.train.pruner import Pruner

__all__ = ["Held", "stored_masks"]


@final
class Held:
    """The masks of one model while a trainer owns the loop.

    Args:
        choices: the plan, or nothing: masks that are there are held.
        options: further arguments of ``Pruner``.
    """

    def __init__(self, choices: Choices, options: Mapping[str, Any]) -> None:
        self._choices = choices
        self._options = dict(options)
        self._root: Callable[[], nn.Module | None] = lambda: None
        self._shared: OfRanks | None = None
        self._clock: Optimizer | None = None
        self._handles: list[Any] = []
        self._counted: tuple[Mapping[str, Tensor], float] | None = None
        self.pruner: Pruner | None = None
        self.masks: Masks | None = None

    @property
    def holds_only(self) -> bool:
        """Whether there is no plan."""
        return self._choices.holds_only

    @property
    def sparsity(self) -> float | None:
        """The share of the target weights that is removed now; None before training."""
        if self.masks is None:
            return None
        if self._counted is None or self._counted[0] is not self.masks.unit_masks:  # every update makes a new mapping
            self._counted = self.masks.unit_masks, self.masks.shares().target_weights
        return self._counted[1]

    def knows(self, model: nn.Module) -> bool:
        """Whether the masks held so far are those of this model."""
        root = unwrap(model)
        return self.masks is not None and self._root() is root and find_masks(root) is self.masks

    def start(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        steps: int | None,
        state: Mapping[str, Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        """Take over at the beginning of training, or in its middle.

        Args:
            model: what is trained.
            optimizers: all of them; the first that owns masked parameters is the clock.
            steps: optimizer steps of the whole training; None: unknown.
            state: of a checkpoint whose weights and optimizers are loaded already.
            ranks: that train it together, which decide by what all of them saw; None: this process alone.

        Raises:
            ValueError: for a plan that does not fit the model or the checkpoint; without a plan for a model
                without masks.
        """
        _refuse_shards(model)
        made = find_masks(model) is None
        try:
            if not self.knows(model):
                self._make(model, steps, state, ranks or Ranks())
            elif self._shared is not None:
                self._shared.ranks = ranks or Ranks()  # of this fit
            if state is not None:
                self.load_state_dict(state)
            self._attach(optimizers)
        except BaseException:
            if made and self.masks is not None and self.knows(model):
                self.masks.undo()  # the model is as it was given
                self.masks = self.pruner = self._shared = None
            raise

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values for a checkpoint."""
        assert self.masks is not None, "there is no state before training"
        pruner = None if self.pruner is None else self.pruner.state_dict()
        masks = self.masks.state_dict() if pruner is None else pruner["masks"]
        return {"pruner": pruner, "masks": masks, "layout": layout_record(self.masks.layout)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; load the model's weights first.

        Raises:
            ValueError: if the checkpoint is of another plan.
        """
        assert self.masks is not None, "masks are made first"
        if self.pruner is None and state["pruner"] is not None:
            raise ValueError("this checkpoint is of a run with a plan; give SecateurCallback the same one to go on")
        if self.pruner is not None and state["pruner"] is None:
            raise ValueError(
                "this checkpoint is of a run that only held masks; go on with SecateurCallback() and no plan, or begin "
                "a new run from its weights"
            )
        if self.pruner is None or state["pruner"] is None:
            self.masks.load_state_dict(state["masks"])
            return
        try:
            self.pruner.load_state_dict(self._on_devices(state["pruner"]))
        except ValueError as error:
            if not self._choices.shared:
                raise
            raise ValueError(
                f"{error}. begin and end are shares of training: it has to be as long as before"
            ) from error

    def _on_devices(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A pruner's state, read to the CPU, with what it sums beside the gradients where those will be."""
        root = self._root()
        assert root is not None

        def beside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(find_parameter(root, name).device) for name, tensor in tensors.items()}

        sums = {kind: beside(tensors) for kind, tensors in state["stream"]["sums"].items()}
        init = None if state["init"] is None else beside(state["init"])
        return {**state, "stream": {**state["stream"], "sums": sums}, "init": init}

    def _make(self, model: nn.Module, steps: int | None, state: Mapping[str, Any] | None, ranks: Ranks) -> None:
        root = unwrap(model)
        plan = self._choices.plan_for(steps)
        if plan is not None:
            device = next((parameter.device for parameter in root.parameters()), torch.device("cpu"))
            options = {**self._options, "example_inputs": to_device(self._options.get("example_inputs"), device)}
            self._shared = OfRanks(root, ranks)
            self.pruner = Pruner(self._shared, plan, **options)
            self.masks, self._root = self.pruner.masks, ref(root)
            if steps is not None and plan.last > steps:
                warnings.warn(
                    f"the plan's last update is at step {plan.last}, and training ends at step {steps}: it will reach "
                    f"sparsity {plan.sparsity_at(steps):.3g}, not {plan.final:.3g}",
                    stacklevel=4,
                )
        else:
            masks = find_masks(root)
            if masks is None and state is not None:
                masks = stored_masks(state).put_on(root, apply=True)
            if masks is None:
                raise ValueError(
                    "SecateurCallback() without a plan holds the masks that a model has, and this one has none: prune "
                    "it first (sc.prune), put its masks back (load_masks(model, folder)), or give a plan, "
                    "e.g. SecateurCallback(sparsity=0.8, begin=0.1, end=0.7)"
                )
            self.masks, self.pruner, self._root, self._shared = masks, None, ref(root), None

    def _attach(self, optimizers: Sequence[Optimizer]) -> None:
        root = self._root()
        assert root is not None
        assert self.masks is not None, "made before"
        plain: list[Optimizer] = [getattr(one, "optimizer", one) for one in optimizers]  # accelerate wraps them
        masked = {name: find_parameter(root, name) for name in self.masks.parameters}
        owners = [one for one in plain if _owns(one, masked)]
        frozen = not any(parameter.requires_grad for parameter in masked.values())
        for handle in self._handles:
            handle.remove()
        self._handles, self._clock = [], None
        if self.pruner is None:
            for optimizer in owners if owners or frozen else plain[:1]:  # one that owns none says so itself
                self.masks.attach(optimizer)
            return
        self._check_gradients(masked)
        self.pruner.detach()
        if owners or not frozen:
            self.pruner.attach((owners or plain)[0])
            for optimizer in owners[1:]:
                self.masks.attach(optimizer)
            return
        # Nothing trains what is masked (adapters beside frozen weights): no step can undo the masks, but steps count.
        self._clock = clock = torch.optim.SGD(masked.values(), lr=0.0)
        self.pruner.attach(clock)
        self._handles = [plain[0].register_step_post_hook(lambda *_: clock.step())]

    def _check_gradients(self, masked: Mapping[str, Tensor]) -> None:
        assert self.pruner is not None
        assert self.masks is not None
        needed = [kind for kind in evidence_needed(self.pruner.plan.criterion) if kind in STREAMED_KINDS]
        if not needed or (self._options.get("data") is not None and "movement" not in needed):
            return
        scored = evidence_layout(self.masks.unit, self.masks.layout)
        without = [name for name in scored if not masked[name].requires_grad]
        if without:
            raise ValueError(
                f"criterion {self.pruner.plan.criterion!r} reads the gradients of training, and {len(without)} of the "
                f"targets are frozen ({', '.join(without[:3])}): exclude= them, or take a criterion of weights"
            )


def stored_masks(state: Mapping[str, Any]) -> StoredMasks:
    """The masks in what ``Held.state_dict`` gave."""
    masks = state["masks"]
    return StoredMasks(str(masks["unit"]), unpack_units(masks["units"]), parse_layout(state["layout"]))


def _owns(optimizer: Optimizer, masked: Mapping[str, Tensor]) -> bool:
    ids = {id(parameter) for parameter in masked.values()}
    return any(id(parameter) in ids for group in optimizer.param_groups for parameter in group["params"])


def _refuse_shards(model: nn.Module) -> None:
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()) or any(
        is_sharded(parameter) for parameter in model.parameters()
    ):
        raise ValueError(
            "this model is sharded (FSDP, tensor parallel), and SecateurCallback writes no sharded checkpoints yet; "
            "use secateur.Pruner on a model of fully_shard, in a loop of your own"
        )
