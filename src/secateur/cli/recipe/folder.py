"""The folder of a run: who may write in it, what is in it, and whether it is finished."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, final

from secateur.io.atomic import replacing

__all__ = ["RunFolder"]

_RECORD = "record.json"


@final
class RunFolder:
    """``<output>/<twelve digits>``.

    Args:
        path: of the folder; it need not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = RunFolder(Path(place) / "run")
        ...     folder.state(), folder.path.exists()
        ('new', False)
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def state(self) -> str:
        """``"new"``, ``"begun"`` or ``"finished"``."""
        if (self.path / _RECORD).is_file():
            return "finished"
        return "begun" if (self.path / "plan.json").is_file() else "new"

    def points(self) -> int:
        """How many points were trained so far."""
        trials = self.path / "trials.jsonl"
        written = trials.read_text(encoding="utf-8").splitlines() if trials.is_file() else []
        return sum('"kind":"point"' in line for line in written)

    def record(self) -> dict[str, Any]:
        """What the finished run found.

        Raises:
            ValueError: if the file is damaged.
        """
        return self.read(_RECORD)

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the folder.

        Raises:
            ValueError: if it is not JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"not JSON ({error})") from error

    def write(self, name: str, content: str | dict[str, Any]) -> Path:
        """Write a file of the folder in one step.

        Args:
            name: in the folder.
            content: text, or JSON.

        Returns:
            Its path.
        """
        text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
        with replacing(self.path / name) as file:
            file.write(text.encode())
        return self.path / name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and keep other processes from writing in it until the block ends or the process dies.

        Yields:
            Nothing.

        Raises:
            ValueError: if another process writes in it: which one, and since when.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / ".lock"
        with path.open("a+", encoding="utf-8") as file:
            if not _lock(file):
                file.seek(0)
                owner = file.read().strip() or "it does not say which"
                raise ValueError(
                    f"{self.path}: another run writes in this folder ({owner}); wait for it, or stop it: what it did "
                    "is kept"
                )
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
            file.flush()
            yield  # closing the file gives the lock back


def _lock(file: IO[str]) -> bool:
    """Whether the lock is ours now; the system takes it back when the process ends, however it ends."""
    if sys.platform == "win32":
        import msvcrt

        try:
            file.seek(1 << 20)  # far behind the text, which others have to read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
