"""Replacing a file as one step: readers see the old file or the new one, never a part.

The bytes go to a temporary file in the same folder, are flushed to the disk, and take the
name by ``os.replace``. A writer that is killed leaves the old file and its temporary file
behind; the next writer *of the same path on the same host* deletes temporary files whose
process is gone. A writer that fails by an exception deletes its own.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends without an exception.

    The mode follows the umask, or the file that is replaced. A symbolic link stays and its
    target is replaced. On return file and folder have reached the disk.

    Args:
        path: the file to make or replace; its folder must exist.

    Yields:
        The temporary file, open for binary writing.

    Raises:
        ValueError: if ``path`` is a folder, a device or a pipe.
        FileNotFoundError: if the folder does not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "numbers.bin"
        ...     with replacing(path) as file:
        ...         _ = file.write(bytes([1, 2, 3]))
        ...     list(path.read_bytes()), len(list(path.parent.iterdir()))
        ([1, 2, 3], 1)
    """
    target = Path(os.path.realpath(os.fspath(path)))
    mode = _mode_of(target)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{os.fspath(path)}: the folder {target.parent} does not exist; create it first")
    prefix = _prefix(target)
    _delete_orphans(target.parent, prefix)
    temporary = target.parent / f"{prefix}{os.getpid()}-{secrets.token_hex(4)}.tmp"
    # A replaced file may be private: its successor is never more open than it, not even for a moment.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                temporary.chmod(mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush_folder(target.parent)


def _mode_of(target: Path) -> int | None:
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"{target} is a folder; give the name of a file in it, such as {target / 'model.safetensors'}")
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{target} is a device or a pipe; give the name of a file to write")
    return stat.S_IMODE(found.st_mode)


def _prefix(target: Path) -> str:
    """Start of the temporary names of this file on this host; short, so that a long file name still fits."""
    host = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
    return f".secateur-{zlib.crc32(os.fsencode(target.name)):08x}-{host}-"


def _delete_orphans(folder: Path, prefix: str) -> None:
    if os.name != "posix":  # elsewhere signal 0 does not mean "only look"
        return
    for leftover in folder.glob(f"{prefix}*.tmp"):
        process = leftover.name[len(prefix) :].partition("-")[0]
        if process.isdecimal() and not _is_running(int(process)):
            leftover.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it runs, and is someone else's
        return True
    return True


def _flush_folder(folder: Path) -> None:
    """The new name survives a power cut only once the folder itself is on the disk."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
