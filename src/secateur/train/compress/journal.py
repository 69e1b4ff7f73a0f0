"""What a run knows so far: figures by kind and key, on the disk the moment they are known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast, final

from torch import nn

from secateur.deploy.files import load, save
from secateur.model.masks import find_masks
from secateur.train.compress.setting import copied

__all__ = ["Journal", "Shelf"]

_FILE = "trials.jsonl"
_POINTS = "points"


@final
class Journal:
    """Figures by kind and key; with a folder every one is a line of ``trials.jsonl``, written and flushed at once.

    Args:
        folder: made where it is not there; None: nothing is written.
        identity: what the run is about, by name; the first line.

    Raises:
        ValueError: if the folder belongs to another run (says what differs), is worked in by another process, or holds
            something else.

    Example:
        >>> journal = Journal(None, {})
        >>> journal.add("cheap", "a", {"bytes": 3})
        >>> journal.get("cheap", "a"), journal.get("cheap", "b")
        ({'bytes': 3}, None)
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self._lines: dict[tuple[str, str], dict[str, Any]] = {}
        self._file: BinaryIO | None = None
        if folder is None:
            return
        try:
            (folder / _POINTS).mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"folder={str(folder)!r}: it is, or lies in, a file; give a folder") from error
        path = folder / _FILE
        self._file = path.open("a+b")
        try:
            _lock(self._file, path)
            self._read(path, dict(identity))
        except BaseException:
            self._file.close()
            raise

    def get(self, kind: str, key: str) -> dict[str, Any] | None:
        """What is known; None where nothing is.

        Args:
            kind: of figures.
            key: of the model.
        """
        return self._lines.get((kind, key))

    def add(self, kind: str, key: str, figures: Mapping[str, Any]) -> None:
        """Remember, and write it down.

        Args:
            kind: of figures.
            key: of the model.
            figures: plain JSON.
        """
        self._lines[kind, key] = dict(figures)
        if self._file is not None:
            line = json.dumps({"kind": kind, "key": key, **figures}, separators=(",", ":"))
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let another process work in the folder."""
        if self._file is not None:
            self._file.close()

    def _read(self, path: Path, identity: dict[str, Any]) -> None:
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # the writer was killed in the middle of its last line
            self._file.truncate(len(whole))
        if not whole:
            self.add("run", "", identity)
            return
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = cast("dict[str, Any]", json.loads(line))
                kind, key = record.pop("kind"), record.pop("key")
            except (ValueError, KeyError, AttributeError) as error:
                raise ValueError(f"{path}: line {number} is not of a compress run; give another folder") from error
            if number == 1:
                _same(path, record, identity)
            self._lines[kind, key] = record


def _same(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Plain JSON on both sides: what was read was written by the same function."""
    now = cast("dict[str, Any]", json.loads(json.dumps(here)))
    wrong = [name for name in {**there, **now} if there.get(name) != now.get(name)]
    if wrong:
        told = "; ".join(f"{name}: there {_short(there.get(name))}, here {_short(now.get(name))}" for name in wrong)
        raise ValueError(f"{path.parent} belongs to another run, which differs in {told}. Give another folder")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _lock(file: BinaryIO, path: Path) -> None:
    if os.name != "posix":  # elsewhere two processes in one folder are not noticed
        return
    import fcntl

    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise ValueError(f"another process works in {path.parent}; wait for it, or give another folder") from error


@final
class Shelf:
    """The trained models: files in the folder; without a folder those in memory that may still be chosen.

    Args:
        folder: where they are kept; None: in memory.
        dense: what a file is loaded into a copy of.
    """

    def __init__(self, folder: Path | None, dense: nn.Module) -> None:
        self._folder, self._dense = folder, dense
        self._models: dict[str, nn.Module] = {}

    def path(self, key: str, ending: str = ".safetensors") -> Path | None:
        """Where a point is kept; None without a folder.

        Args:
            key: of the point.
            ending: of the file.
        """
        return None if self._folder is None else self._folder / _POINTS / f"{key}{ending}"

    def put(self, key: str, model: nn.Module) -> None:
        """Keep a model.

        Args:
            key: of the point.
            model: trained.
        """
        path = self.path(key)
        if path is None:
            self._models[key] = model
            return
        save(model, path)
        for leftover in path.parent.glob(f"{key}-*.checkpoint"):
            leftover.unlink()

    def get(self, key: str) -> nn.Module | None:
        """The model of a point; None where it was let go.

        Args:
            key: of the point.

        Returns:
            The model, with its masks.

        Raises:
            FileNotFoundError: if its file was taken away.
        """
        path = self.path(key)
        if path is None:
            return self._models.get(key)
        model = load(path, into=copied(self._dense))
        masks = find_masks(model)
        assert masks is None or masks.model is model
        return model.eval()

    def keep(self, keys: set[str]) -> None:
        """Let go of all models in memory but these; files stay.

        Args:
            keys: of points.
        """
        self._models = {key: model for key, model in self._models.items() if key in keys}
