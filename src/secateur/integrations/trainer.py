"""Pruning under the ``Trainer`` of transformers, which makes its own optimizer."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor

from secateur.integrations.choices import Choices, Moment
from secateur.integrations.held import Held
from secateur.integrations.mask_files import load_masks, save_masks
from secateur.io.atomic import replacing
from secateur.model.batches import LossFunction, StepFunction
from secateur.model.masks import Masks
from secateur.model.ranks import ranks_of_world
from secateur.train.plan import Plan
from secateur.train.pruner import Pruner

try:
    from transformers import TrainerCallback
    from transformers.training_args import ParallelMode
except ImportError as error:
    raise ImportError("SecateurCallback is for the Trainer of transformers: pip install secateur[hf]") from error

__all__ = ["STATE_FILE", "SecateurCallback", "load_masks", "save_masks"]

STATE_FILE = "secateur_state.pt"
"""Beside the weights of every checkpoint: clock, masks, removed values, what criteria have gathered."""

_KEY = "secateur"


@final
class SecateurCallback(TrainerCallback):
    """Prunes while a ``Trainer`` trains, or holds the masks that a model has.

    ``Trainer(model, args, ..., callbacks=[SecateurCallback(plan)])`` is all. Steps are optimizer steps: with gradient
    accumulation several batches are one. Criteria that read gradients see those of training, unless ``data`` is given.
    The sparsity stands in the logs. Checkpoints hold the state of pruning, so that ``resume_from_checkpoint`` goes on
    with the same masks; they and ``output_dir`` hold the masks alone in ``secateur_masks.safetensors``.

    Under ``load_best_model_at_end`` the evaluations before the plan's last update do not count: a model that is not yet
    as sparse as it shall be would win. Early stopping counts from there as well.

    Args:
        plan: a ``Plan``. Or give its choices by name (``sparsity=0.8, criterion="taylor"``). Neither: hold the masks
            of a model that was pruned before.
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
        checkpoint: the folder that ``train(resume_from_checkpoint=)`` is given, if it was moved since it was written.
        **choices: all others of ``Plan``.

    Raises:
        ValueError: for what a plan refuses; when training begins, for a plan that does not fit the model, or is
            another than that of the checkpoint.

    Example:
        >>> callback = SecateurCallback(sparsity=0.8, begin=0.1, end=0.7)
        >>> # Trainer(model, arguments, train_dataset=data, callbacks=[callback]).train()
        >>> # callback.save_pretrained("sparse")
        >>> print(callback.masks)
        None
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
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
        checkpoint: str | os.PathLike[str] | None = None,
        **choices: Any,
    ) -> None:
        options = {"data": data, "loss": loss, "step": step, "batches": batches, "init": init, "mode": mode}
        options |= {"example_inputs": example_inputs, "exact": exact}
        self._held = Held(Choices(plan, begin, end, every, choices), options)
        self._checkpoint = checkpoint
        self._token = ""

    @property
    def masks(self) -> Masks | None:
        """The masks, from the beginning of training on."""
        return self._held.masks

    @property
    def pruner(self) -> Pruner | None:
        """The pruner, from the beginning of training on; None without a plan."""
        return self._held.pruner

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """Write the model by its own ``save_pretrained``, and the masks beside it.

        ``AutoModel....from_pretrained(folder)`` gives the sparse weights in plain transformers, and
        ``load_masks(model, folder)`` the masks. For a small file: ``secateur.save(model, path)``.

        Args:
            folder: to make, or to write into.
            **options: of the model's ``save_pretrained``.

        Raises:
            ValueError: before training, or if removed weights have grown back.
        """
        if self.masks is None:
            raise ValueError("there are no masks yet: they are made when training begins")
        self.masks.check()
        model: Any = self.masks.model
        model.save_pretrained(folder, **options)
        save_masks(self.masks, Path(folder))

    # -- what the Trainer calls -------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Make the pruner, or find the masks, and attach the optimizer."""
        if getattr(args, "deepspeed", None):
            raise ValueError("DeepSpeed keeps the weights in parts of its own, which masks cannot reach; train without")
        found = self._saved_state(args, state) if state.global_step > 0 else None
        model = given["model"]  # the one inside of DDP; what else trains in several processes is refused
        ranks = ranks_of_world(model) if args.parallel_mode is ParallelMode.DISTRIBUTED else None
        self._held.start(model, [given["optimizer"]], state.max_steps, found, ranks)
        self._token = secrets.token_hex(8)  # of this run: tells its checkpoints from older ones in the same folder
        folder = str(Path(args.output_dir).resolve())
        state.stateful_callbacks[_KEY] = {"args": {}, "attributes": {"token": self._token, "folder": folder}}

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **given: Any) -> None:
        """Put the sparsity into the logs and their history."""
        sparsity = self._held.sparsity
        if logs is None or sparsity is None:
            return
        logs["sparsity"] = sparsity
        if state.log_history and state.log_history[-1].get("step") == state.global_step:
            state.log_history[-1]["sparsity"] = sparsity

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Before the next evaluation, forget a best model that is not as sparse as the plan says."""
        pruner = self.pruner
        if pruner is not None and state.best_global_step is not None and state.best_global_step < pruner.plan.last:
            state.best_metric = state.best_global_step = state.best_model_checkpoint = None

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write masks and state into the checkpoint."""
        if self.masks is None or not args.should_save:
            return
        name = f"checkpoint-{state.global_step}"
        folder = next((place for place in _places(args, name) if _token_in(place) == self._token), None)
        if folder is None:
            raise ValueError(f"the Trainer saved {name}, but it is not in {args.output_dir}: masks cannot be saved")
        save_masks(self.masks, folder)
        if not args.save_only_model:
            with replacing(folder / STATE_FILE) as file:
                torch.save({"token": self._token, "step": state.global_step, **self._held.state_dict()}, file)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the masks into ``output_dir``."""
        if self.masks is not None and args.should_save:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            save_masks(self.masks, Path(args.output_dir))

    # -- inside -----------------------------------------------------------------------------------

    def _saved_state(self, args: Any, state: Any) -> Mapping[str, Any] | None:
        known = state.stateful_callbacks.get(_KEY)
        name = f"checkpoint-{state.global_step}"
        if known is None:
            if self._held.holds_only:
                return None
            raise ValueError(
                f"{name} was saved without SecateurCallback, so its plan has no clock to go on with. Begin a new run "
                "from its weights (from_pretrained), or resume as it was"
            )
        attributes = known["attributes"]
        given = [self._checkpoint, args.resume_from_checkpoint]
        places = [Path(place) for place in given if isinstance(place, (str, os.PathLike))]
        places += [*_places(args, name), Path(attributes["folder"]) / name]
        for place in places:
            if (place / STATE_FILE).is_file():
                found = torch.load(place / STATE_FILE, map_location="cpu", weights_only=True)
                if found["token"] == attributes["token"] and found["step"] == state.global_step:
                    return found
        looked = ", ".join(dict.fromkeys(str(place) for place in places))
        raise ValueError(
            f"the {STATE_FILE} that belongs to the resumed {name} was not found; looked in {looked}. If the checkpoint "
            "was moved, say where it is: SecateurCallback(..., checkpoint=folder). If the run was killed while it was "
            "written, or args.save_only_model is set, resume an earlier one"
        )


def _places(args: Any, name: str) -> Iterator[Path]:
    """Where the Trainer puts a checkpoint: in its folder, or in one per trial of a search."""
    root = Path(args.output_dir)
    yield root / name
    yield from sorted(root.glob(f"*/{name}"))


def _token_in(folder: Path) -> str | None:
    """The run that a checkpoint is of."""
    from transformers import TrainerState

    file = folder / "trainer_state.json"
    if not file.is_file():
        return None
    known: Any = TrainerState.load_from_json(str(file)).stateful_callbacks
    return known[_KEY]["attributes"]["token"] if _KEY in known else None
