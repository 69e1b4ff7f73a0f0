"""A process that answers questions in time, or is ended and says why."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, final

__all__ = ["Lost", "Process", "tail"]

_TAIL = 2000
_JOIN_S = 2.0


class Lost(Exception):
    """A process that died, or was ended because it did not answer.

    Attributes:
        why: one sentence.
        stderr: the end of what it wrote to standard error.
    """

    def __init__(self, why: str, stderr: str) -> None:
        super().__init__(why)
        self.why, self.stderr = why, stderr


@final
class Process:
    """A child process in a session of its own that takes JSON lines and answers each with one.

    Args:
        command: to run.
        environment: all of its environment variables.
        log: file for its standard error.

    Example:
        >>> import sys, tempfile
        >>> echo = "import sys; [print(line, end='', flush=True) for line in sys.stdin]"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     process = Process([sys.executable, "-c", echo], os.environ, Path(folder) / "log")
        ...     answer = process.ask({"turn": 1}, 30.0)
        ...     process.stop()
        >>> answer
        {'turn': 1}
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stderr:
            self._child = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the parent, which then ends the children
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin: IO[bytes] = self._child.stdin
        self._answers: queue.Queue[bytes | None] = queue.Queue()
        # A pipe cannot be read with a deadline everywhere; a thread that waits costs nothing.
        self._reader = threading.Thread(target=_read, args=(self._child.stdout, self._answers), daemon=True)
        self._reader.start()

    def ask(self, message: Mapping[str, Any] | None, deadline_s: float) -> dict[str, Any]:
        """Send a message and wait for the next answer.

        Args:
            message: JSON; None only waits.
            deadline_s: how long to wait.

        Returns:
            The answer.

        Raises:
            Lost: if the process ended, did not answer in time, or answered no JSON; it is gone then.
        """
        try:
            if message is not None:
                self._stdin.write(json.dumps(dict(message)).encode() + b"\n")
                self._stdin.flush()
            answer = self._answers.get(timeout=deadline_s)
        except queue.Empty:
            self.stop()
            raise Lost(f"did not answer within {deadline_s:g} s", tail(self._log)) from None
        except BrokenPipeError:
            answer = None
        if answer is None:
            code = self._child.wait()
            self.stop()
            raise Lost(_death(code, self._log), tail(self._log))
        try:
            return json.loads(answer)
        except json.JSONDecodeError:
            self.stop()
            raise Lost(f"wrote {answer[:40]!r} where an answer belongs", tail(self._log)) from None

    def stop(self) -> None:
        """End it and everything it started, whatever it is doing."""
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError):  # it and all of its own are gone already
                os.killpg(self._child.pid, signal.SIGKILL)
        else:
            self._child.kill()
        self._child.wait()
        self._reader.join(timeout=_JOIN_S)
        assert self._child.stdout is not None
        if not self._reader.is_alive():  # else something it started still holds the pipe, where there are no groups
            self._child.stdout.close()
        with suppress(BrokenPipeError):  # an unsent message may still be in the buffer
            self._stdin.close()


def tail(log: Path) -> str:
    """The last lines of a log."""
    return log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()


def _read(stdout: IO[bytes], answers: queue.Queue[bytes | None]) -> None:
    for line in stdout:
        answers.put(line)
    answers.put(None)


def _death(code: int, log: Path) -> str:
    """How it ended: by a signal, or by the exception in the last line of its log."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    lines = [line for line in tail(log).splitlines() if line.strip() and not line.startswith(" ")]
    return f"ended with code {code}" + (f": {lines[-1]}" if lines else "")
