"""Pruning under the ``Trainer`` of Lightning, which makes new optimizers for every fit."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from secateur.integrations.choices import Choices, Moment
from secateur.integrations.held import Held, stored_masks
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.masks import Masks
from secateur.model.ranks import ranks_of
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner

if TYPE_CHECKING:
    from pytorch_lightning import Callback
else:
    try:  # one project under two names; take the one that the user has imported
        if "lightning.pytorch" in sys.modules and "pytorch_lightning" not in sys.modules:
            from lightning.pytorch import Callback
        else:
            from pytorch_lightning import Callback
    except ImportError as missing:
        try:
            from lightning.pytorch import Callback
        except ImportError:
            raise ImportError(
                "SecateurCallback is for the Trainer of Lightning: pip install secateur[lightning]"
            ) from missing

__all__ = ["SecateurCallback", "load_masks"]


@final
class SecateurCallback(Callback):
    """Prunes while Lightning trains, or holds the masks that a module has.

    ``Trainer(callbacks=[SecateurCallback(plan)])`` is all. Steps are optimizer steps: with accumulated batches several
    are one. Criteria that read gradients see those of training, unless ``data`` is given. ``sparsity`` is logged and
    stands in the progress bar. Checkpoints hold the state of pruning, ``fit(ckpt_path=)`` goes on with it.

    With several optimizers the first that owns masked parameters is the clock; all that do hold the masks.

    Args:
        plan: a ``Plan``. Or give its choices by name (``sparsity=0.8, criterion="taylor"``). Neither: hold the masks
            of a module that was pruned before.
        module: name of the part to prune, ``"net"`` for ``self.net``: targets and masks then go by its names, and
            ``secateur.save(lightning_module.net, path)`` knows them. None: the whole LightningModule.
        begin: step of the first update; a float is a share of training.
        end: of the last one, as ``begin``; the schedule is then ``"cubic"`` unless another is named. None: ``begin``.
        every: steps, or share of training, between updates; None: a hundred updates at most.
        data: batches for criteria that read gradients or activations; ``loss``, ``step``, ``batches``, ``init``,
            ``mode``, ``example_inputs`` (for unit ``channel``) and ``exact`` are those of ``Pruner``.
        loss: ``loss(output, labels)``.
        step: ``step(model, batch) -> loss``.
        batches: how many to read at each update.
        init: weights before training; None: as they are when training begins.
        mode: train or eval mode of the passes over data.
        example_inputs: for unit ``channel``.
        exact: for unit ``channel``.
        **choices: all others of ``Plan``.

    Raises:
        ValueError: for what a plan refuses; when training begins, for a plan that does not fit the module, or is
            another than that of the checkpoint.

    Example:
        >>> callback = SecateurCallback(sparsity=0.8, begin=0.1, end=0.7, module="net")
        >>> # Trainer(max_epochs=10, callbacks=[callback]).fit(lightning_module)
        >>> print(callback.masks)
        None
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        module: str | None = None,
        begin: Moment = 0,
        end: Moment | None = None,
        every: Moment | None = None,
        data: Any = None,
        loss: LossFunction | None = None,
        step: StepFunction | None = None,
        batches: int | None = None,
        init: Mapping[str, Tensor] | None = None,
        mode: Literal["eval", "train"] = "eval",
        example_inputs: Any = None,
        exact: bool = True,
        **choices: Any,
    ) -> None:
        options = {"data": data, "loss": loss, "step": step, "batches": batches, "init": init, "mode": mode}
        options |= {"example_inputs": example_inputs, "exact": exact}
        self._held = Held(Choices(plan, begin, end, every, choices), options)
        self._module = module
        self._loaded: Mapping[str, Any] | None = None
        self._part: nn.Module | None = None

    @property
    def masks(self) -> Masks | None:
        """The masks, from the beginning of training on."""
        return self._held.masks

    @property
    def pruner(self) -> Pruner | None:
        """The pruner, from the beginning of training on; None without a plan."""
        return self._held.pruner

    # -- what Lightning calls ---------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse strategies that masks cannot follow, and find the part that is pruned."""
        strategy = type(trainer.strategy).__name__
        if any(word in strategy for word in ("DeepSpeed", "FSDP", "ModelParallel", "XLA")):
            raise ValueError(f"{strategy} keeps the weights in parts, which SecateurCallback cannot follow; use DDP")
        if self._module is not None and self._module not in dict(pl_module.named_modules()):
            has = ", ".join(name for name, _ in pl_module.named_children())
            raise ValueError(f"module={self._module!r}: {type(pl_module).__name__} has no such part; it has {has}")
        self._part = pl_module if self._module is None else pl_module.get_submodule(self._module)
        self._loaded = None  # of a checkpoint that was only tested, say; what is resumed is loaded after this

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Make the pruner, or find the masks, and attach the optimizers."""
        assert self._part is not None, "setup comes first"
        steps = trainer.estimated_stepping_batches
        known = None if math.isinf(steps) or steps < 0 else int(steps)
        state, self._loaded = self._loaded, None
        if state is None and trainer.global_step > 0 and not self._held.holds_only and not self._held.knows(self._part):
            raise ValueError(
                "this checkpoint was saved without SecateurCallback, so its plan has no clock to go on with. Begin a "
                "new fit from its weights (load_from_checkpoint), or resume as it was"
            )
        wrapped = trainer.strategy.model  # the LightningModule, in DDP where there are several processes
        self._held.start(self._part, trainer.optimizers, known, state, ranks_of(wrapped))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the sparsity."""
        sparsity = self._held.sparsity
        if sparsity is not None:
            pl_module.log("sparsity", sparsity, on_step=True, on_epoch=False, prog_bar=True, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        """What goes into a checkpoint: clock, masks, removed values, what criteria have gathered."""
        if self.masks is None:
            return {} if self._loaded is None else dict(self._loaded)
        return {**self._held.state_dict(), "module": self._module}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a checkpoint's masks over: now if they are known, else when training begins."""
        if state_dict["module"] != self._module:
            raise ValueError(f"this checkpoint pruned module={state_dict['module']!r}, not module={self._module!r}")
        if self._part is not None and self._held.knows(self._part):
            self._held.load_state_dict(state_dict)
        else:
            self._loaded = state_dict


def load_masks(
    module: nn.Module, checkpoint: str | os.PathLike[str] | Mapping[str, Any], *, weights_only: bool = True
) -> Masks:
    """Put the masks of a Lightning checkpoint on a module whose weights were loaded from it.

    Args:
        module: what was pruned: ``LitModel.load_from_checkpoint(path)``, or its part where the callback was given
            ``module=``.
        checkpoint: the file, or its contents.
        weights_only: of ``torch.load``. Hyper-parameters of classes of your own need False, which can run code that is
            in the file.

    Returns:
        The masks, registered for the module.

    Raises:
        ValueError: if the checkpoint was made without the callback, or the weights are not its own.
    """
    contents = checkpoint
    if not isinstance(contents, Mapping):
        contents = torch.load(contents, map_location="cpu", weights_only=weights_only)
    state = contents.get("callbacks", {}).get(SecateurCallback.__qualname__)
    if state is None:
        raise ValueError("this checkpoint holds no masks: it was saved without SecateurCallback, or as weights only")
    return stored_masks(state).put_on(module)
