"""Choices that were measured on this machine, kept in a JSON file for the next start.

One file per machine: processor, usable cores, instruction set, threads, versions. A file that is damaged is set
aside; a choice that no longer fits is measured again. Nothing in here can stop a model from being packed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeAlias, final

import torch

from secateur.native.loading import core, isa

__all__ = ["Cache", "Entry", "cache_folder", "machine", "machine_key"]

try:
    import fcntl
except ModuleNotFoundError:  # Windows: without the lock two writers may lose a choice, which is then measured again
    fcntl = None  # type: ignore[assignment]

Entry: TypeAlias = dict[str, Any]
"""What was chosen for one structure: plain JSON."""

_FORMAT = 1
_CUTS = 2  # raised when a name stands for another cut or packing than before
_MOST_ENTRIES = 400
_MOST_BYTES = 8 << 20
_PATIENCE = 300  # tries of 10 ms
_MOST_FILES = 16  # machines, or versions, that one folder remembers


def machine(threads: int) -> dict[str, str | int]:
    """All that the time of a kernel depends on beside its layer.

    Args:
        threads: that a program may use.

    Example:
        >>> machine(2)["threads"]
        2
    """
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "isa": isa(),
        "threads": threads,
        "secateur": _installed(),
        "kernels": f"{_CUTS}-{_built()}",
        "torch": str(torch.__version__),
    }


def machine_key(threads: int) -> str:
    """`machine` as 16 hexadecimal digits."""
    text = json.dumps(machine(threads), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _processor() -> str:
    """Virtual machines hide the name, so family, model and stepping belong to it."""
    wanted = {
        "vendor_id",
        "cpu family",
        "model",
        "model name",
        "stepping",
        "CPU implementer",
        "CPU part",
        "CPU variant",
    }
    found: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # other systems
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return (
        "; ".join(f"{name} {value}" for name, value in found.items()) or f"{platform.machine()} {platform.processor()}"
    )


@cache
def _installed() -> str:
    try:
        return version("secateur")
    except PackageNotFoundError:
        return "source"


@cache
def _built() -> str:
    """Which build of the core this is: other kernels have other times."""
    path = getattr(core, "__file__", None)
    return f"{zlib.crc32(Path(path).read_bytes()):08x}" if path else "none"


def cache_folder() -> Path | None:
    """Where choices are kept; None where that is off.

    ``SECATEUR_CACHE`` names a folder, or is ``off``; else the platform's folder for caches is taken.

    Returns:
        A folder that need not exist yet.

    Example:
        >>> import os
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, SECATEUR_CACHE="off"):
        ...     cache_folder() is None
        True
    """
    given = os.environ.get("SECATEUR_CACHE", "")
    if given == "off":
        return None
    if given:
        return Path(given).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA", "")
        return Path(base) / "secateur" / "cache" if base else None
    try:
        home = Path.home()
    except RuntimeError:  # a user without a home
        return None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "secateur"
    asked = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (asked if asked.is_absolute() else home / ".cache") / "secateur"


@final
class Cache:
    """The choices of one machine.

    Args:
        threads: that programs may use.
        folder: by default `cache_folder`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Cache(1, Path(folder)).put("a layer", {"lanes": 16})
        ...     Cache(1, Path(folder)).get("a layer"), Cache(2, Path(folder)).get("a layer")
        ({'lanes': 16}, None)
    """

    def __init__(self, threads: int, folder: Path | None = None) -> None:
        self.folder = cache_folder() if folder is None else folder
        self.machine = machine(threads)
        self.path = None if self.folder is None else self.folder / f"choices-{machine_key(threads)}.json"
        self._seen: tuple[tuple[int, int, int], dict[str, Entry]] | None = None

    def get(self, key: str) -> Entry | None:
        """The choice of a structure, if it is known."""
        return self._read().get(key, {}).get("choice")

    def put(self, key: str, choice: Entry) -> None:
        """Remember a choice, beside what other processes have written meanwhile."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                entries = self._read() | {key: {"at": int(time.time()), "choice": choice}}
                _replace(self.path, _bounded(self.machine, entries))
            _tidy(self.path.parent, self.path)
        except OSError as error:  # a folder that is full or read-only: the next start measures again
            warnings.warn(
                f"the choices of sc.pack cannot be kept in {self.path.parent}: {error.strerror or error}; name another "
                "folder in SECATEUR_CACHE, or set SECATEUR_CACHE=off",
                RuntimeWarning,
                stacklevel=2,
            )

    def _read(self) -> dict[str, Entry]:
        if self.path is None:
            return {}
        try:
            found = self.path.stat()
            sign = found.st_mtime_ns, found.st_size, found.st_ino
            if self._seen is None or self._seen[0] != sign:
                text = self.path.read_bytes() if found.st_size <= 2 * _MOST_BYTES else b""
                self._seen = sign, _parse(text, self.machine)
        except FileNotFoundError:
            return {}
        except OSError:  # it cannot be read: as if nothing was known, `put` says why
            return {}
        except ValueError as error:
            _set_aside(self.path, error)
            return {}
        return dict(self._seen[1])


def _parse(text: bytes, here: Mapping[str, Any]) -> dict[str, Entry]:
    try:
        table = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(table, dict) or table.get("format") != _FORMAT or table.get("machine") != dict(here):
        raise ValueError("it is not of this format, or of another machine")
    entries = table.get("choices")
    if not isinstance(entries, dict):
        raise ValueError("it has no table of choices")
    for key, entry in entries.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("choice"), dict) or type(entry.get("at")) is not int:
            raise ValueError(f"choice {key[:20]!r} is none")
    return entries


def _bounded(here: Mapping[str, Any], entries: Mapping[str, Entry]) -> bytes:
    """The newest entries that fit."""
    kept = sorted(entries, key=lambda key: entries[key]["at"])[-_MOST_ENTRIES:]
    while True:
        choices = {key: entries[key] for key in kept}
        text = json.dumps(
            {"format": _FORMAT, "machine": dict(here), "choices": choices}, separators=(",", ":")
        ).encode()
        if len(text) <= _MOST_BYTES or not kept:
            return text
        kept = kept[len(kept) // 2 + 1 :]


def _replace(path: Path, text: bytes) -> None:
    """Readers see the old file or the new one."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time."""
    if fcntl is None:
        yield
        return
    with path.open("a") as file:
        for _ in range(_PATIENCE):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
        yield  # also without the lock, if its holder hangs; closing the file opens it


def _set_aside(path: Path, error: ValueError) -> None:
    aside = path.with_suffix(".damaged")
    try:
        path.replace(aside)
    except OSError:  # another process was faster, or the folder is read-only
        return
    warnings.warn(
        f"the remembered choices of sc.pack are damaged ({error}) and were set aside as {aside}; they are measured "
        "again",
        RuntimeWarning,
        stacklevel=2,
    )


def _tidy(folder: Path, own: Path) -> None:
    """Forget machines and versions that were not seen for longest, and what killed writers left."""
    files = sorted((path for path in folder.glob("choices-*.json") if path != own), key=_age)
    old = [path for path in folder.glob("choices-*.tmp") if time.time() - _age(path) > 3600]
    for path in [*files[: max(0, len(files) + 1 - _MOST_FILES)], *old]:
        path.unlink(missing_ok=True)
        path.with_suffix(".lock").unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
