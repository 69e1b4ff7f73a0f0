"""The folder of an iterative run: every finished round as a file, the one under way as a checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from secateur.deploy.files import load, load_bundle, save
from secateur.io.atomic import replacing
from secateur.model.masks import find_masks
from secateur.model.packed import pack_units, unpack_units
from secateur.train.loop.snapshot import read_file, write_file
from secateur.train.recovery.row import Round

__all__ = ["RoundsFolder", "digest_of"]

_LIST = "rounds.json"
_MASKS = "secateur masks of a round 1"


@final
class RoundsFolder:
    """Rounds on disk.

    ``rounds.json`` has the choices and a row per finished round, ``round-03.safetensors`` its model with the masks (for
    ``sc.load``), ``round-04.masks`` and ``round-04.checkpoint`` the round that is under way.

    Args:
        path: the folder; it is made where it is not there.
        settings: the choices; a folder that was begun with others is refused.

    Raises:
        ValueError: for a folder of another run, saying what differs.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     RoundsFolder(path, {"rate": 0.2}).rows
        ()
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self._path = Path(path)
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        if self._path.exists() and not self._path.is_dir():
            raise ValueError(
                f"folder={str(self._path)!r} is a file; give a folder, which is made where it is not there"
            )
        self._path.mkdir(parents=True, exist_ok=True)
        self._rows: tuple[Round, ...] = ()
        if (self._path / _LIST).exists():
            self._rows = self._read()

    @property
    def rows(self) -> tuple[Round, ...]:
        """The rounds that are finished."""
        return self._rows

    def file(self, index: int) -> Path:
        """Where the model of a round is kept."""
        return self._path / f"round-{index:02d}.safetensors"

    def checkpoint(self, index: int) -> Path:
        """Where the training of a round is kept while it runs."""
        return self._path / f"round-{index:02d}.checkpoint"

    def keep_masks(self, index: int, unit_masks: Mapping[str, Tensor]) -> None:
        """Write down what a round that is about to be trained removes: scores may not come out the same again."""
        write_file(self._masks(index), _MASKS, {"units": pack_units(unit_masks)})

    def masks(self, index: int) -> dict[str, Tensor] | None:
        """The unit masks of a round that was begun; None where it was not."""
        path = self._masks(index)
        return unpack_units(read_file(path, _MASKS)["units"]) if path.exists() else None

    def keep(self, model: nn.Module, row: Round) -> None:
        """Write the model of a round that has been trained."""
        save(model, self.file(row.index), record=replace(row, file=None))

    def finish(self, row: Round) -> None:
        """Say that a round is done; what was needed to go on with it goes."""
        rows = (*self._rows, row)
        records = [replace(each, file=None).to_record() for each in rows]  # the folder may be moved
        text = json.dumps({"settings": self._settings, "rounds": records}, indent=1)
        with replacing(self._path / _LIST) as file:
            file.write(text.encode())
        self._rows = rows
        for path in (self.checkpoint(row.index), self._masks(row.index)):
            path.unlink(missing_ok=True)

    def restore(self, model: nn.Module, index: int) -> None:
        """Bring the model to the end of a finished round, masks included."""
        path = self.file(index)
        if not path.exists():
            raise ValueError(
                f"{self._path / _LIST} lists round {index}, but {path.name} is gone; begin in a new folder"
            )
        masks = find_masks(model)
        if masks is not None:  # load takes values under equal masks only
            bundle = load_bundle(path)
            if bundle.unit != masks.unit.spec:
                raise ValueError(
                    f"the model has masks of unit {masks.unit.spec!r}, {path} is of {bundle.unit!r}; undo() them first"
                )
            masks.add({key: bundle.layout[key] for key in bundle.masks})
            masks.update(bundle.masks)
        load(path, into=model)

    def _masks(self, index: int) -> Path:
        return self._path / f"round-{index:02d}.masks"

    def _row(self, record: Mapping[str, Any]) -> Round:
        row = Round.from_record(record)
        return replace(row, file=str(self.file(row.index)))

    def _read(self) -> tuple[Round, ...]:
        path = self._path / _LIST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            theirs, rows = found["settings"], tuple(map(self._row, found["rounds"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no list of rounds ({error}); begin in a new folder") from error
        mine, done = dict(self._settings), len(rows)
        for settings in (mine, theirs):  # rounds may be added: only the finished ones have to be the same
            if settings.get("sparsities") is not None:
                settings["sparsities"] = settings["sparsities"][:done]
        began = theirs.get("model")
        if began is None or mine.get("model") is None:  # the dense model that one of the two began with is not known
            self._settings["model"] = mine["model"] = theirs["model"] = began or mine.get("model")
        changed = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        if changed:
            told = "; ".join(f"{key}: {theirs.get(key)} there, {mine.get(key)} now" for key in sorted(changed)[:4])
            raise ValueError(
                f"{self._path} holds rounds of another run ({told}); give the same choices or a new folder"
            )
        return rows


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that name tensors with their names; equal tensors have equal digests.

    Example:
        >>> digest_of({"a": torch.zeros(2)}) == digest_of({"a": torch.zeros(2)}) != digest_of({"a": torch.ones(2)})
        True
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return found.hexdigest()[:12]
