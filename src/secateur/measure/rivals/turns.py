"""A process for each runtime, all kept alive, one at work at a time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import final
from urllib.parse import quote

import torch
from torch import Tensor

from secateur.measure.rivals.case import main_needed, main_script
from secateur.measure.rivals.check import off_by, verdict
from secateur.measure.rivals.export import export
from secateur.measure.rivals.process import Lost, Process
from secateur.measure.rivals.runtimes import TOLERANCE, Builder, Runtime

__all__ = ["Lane", "Race", "Settings"]

_LEAST_ROUNDS = 5
_REST_S = 0.01
"""What a turn takes beside its calls; the process waits until its workers are idle before it answers."""
_TURN_GRACE_S = 30.0
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
_CHILD = "secateur.measure.rivals.child"


@dataclass(frozen=True)
class Settings:
    """How long to measure.

    Attributes:
        rounds: turns of each runtime; fewer (at least 5) where they would exceed ``budget_s``.
        turn_s: seconds of one turn; one call at least.
        budget_s: seconds that the rounds may take, per batch size and number of threads.
        deadline_s: seconds for a runtime to be built and called once, and most for any one turn.
        say: told what is going on, in a few words.
    """

    rounds: int = 20
    turn_s: float = 0.1
    budget_s: float = 120.0
    deadline_s: float = 600.0
    say: Callable[[str], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        """Refuse what cannot be measured with.

        Raises:
            ValueError: for a number out of range.
        """
        if self.rounds < 1 or min(self.turn_s, self.budget_s, self.deadline_s) <= 0:
            raise ValueError(
                f"rounds={self.rounds}, turn_s={self.turn_s}, budget_s={self.budget_s}, deadline_s={self.deadline_s}: "
                "rounds has to be at least 1, and the times positive"
            )

    def affordable(self, calls_s: Sequence[float]) -> int:
        """Rounds within the budget, at least 5 of those asked for.

        Args:
            calls_s: seconds of one call of each runtime; a turn is a call to warm and one to time at least.

        Returns:
            A number of rounds.

        Example:
            >>> Settings(rounds=20, turn_s=0.1, budget_s=10).affordable([0.395, 0.395])
            6
        """
        round_s = sum(max(self.turn_s, call_s) + call_s + _REST_S for call_s in calls_s)
        return max(min(self.rounds, int(self.budget_s / max(round_s, 1e-9))), min(self.rounds, _LEAST_ROUNDS))


@dataclass
class Lane:
    """One runtime on its way: first its process, in the end its times, or why it has none."""

    name: str
    runtime: Runtime
    twin_of: str = ""
    status: str = ""
    why: str = ""
    stderr: str = ""
    off_by: float | None = None
    call_s: float = 0.0
    ms: list[float] = field(default_factory=list)
    least: list[float] = field(default_factory=list)
    restless: int = 0
    process: Process | None = None

    def end(self, status: str, why: str, stderr: str = "") -> None:
        """No time for this one: say why, and let its process go."""
        self.status, self.why, self.stderr = status, why, stderr
        self.ms, self.least = [], []
        self.stop()

    def stop(self) -> None:
        """End its process, if there is one."""
        if self.process is not None:
            self.process.stop()
            self.process = None


@final
class Race:
    """One network on one input: exported once, raced at each number of threads.

    Args:
        table: name -> runtime; the first that is installed runs twice.
        folder: where ``write_case`` put the network.
        reference: what eager torch returns.
        settings: how long.
    """

    def __init__(
        self, table: Mapping[str, Runtime], folder: Path, reference: Sequence[Tensor], settings: Settings
    ) -> None:
        self._table, self._folder, self._reference, self._settings = table, folder, reference, settings
        self._main = main_needed(folder)
        self._exported = False
        self._no_graph: Lost | None = None

    def run(self, threads: int) -> list[Lane]:
        """All runtimes with so many threads, each with its times or the reason why it has none."""
        lanes = self._lanes()
        with ExitStack() as stack:
            for lane in lanes:
                stack.callback(lane.stop)
            # One after the other: a runtime that times its candidates while it is built must not be disturbed.
            for lane in lanes:
                if not lane.status:
                    self._start(lane, threads)
            self._take_turns(lanes)
            for lane in lanes:
                if lane.process is not None and self._checked(lane, {"outputs": True}):
                    lane.status = "timed"
        return lanes

    def _lanes(self) -> list[Lane]:
        lanes: list[Lane] = []
        twin = True
        for name, runtime in self._table.items():
            missing = runtime.missing()
            lanes.append(Lane(name, runtime))
            if missing:
                lanes[-1].end("not installed", f'{", ".join(missing)}: pip install "secateur[{runtime.extra}]"')
            elif twin:
                lanes.append(Lane(f"{name} again", runtime, twin_of=name))
                twin = False
        return lanes

    def _start(self, lane: Lane, threads: int) -> None:
        if lane.runtime.graph and not self._graph_is_there():
            assert self._no_graph is not None
            lane.end("lost", f"there is no ONNX file: the export {self._no_graph.why}", self._no_graph.stderr)
            return
        self._settings.say(f"starting {lane.name}")
        lane.process = self._process(lane.name, lane.runtime.build, threads)
        self._checked(lane, None)

    def _checked(self, lane: Lane, message: Mapping[str, bool] | None) -> bool:
        """Wait for outputs and compare them; whether they are right."""
        assert lane.process is not None
        try:
            answer = lane.process.ask(message, self._settings.deadline_s)
        except Lost as lost:
            lane.end("lost", lost.why if message else f"{lost.why}, while it was built", lost.stderr)
            return False
        lane.call_s = answer.get("ready", lane.call_s)
        found = torch.load(self._outputs(lane.name), weights_only=True)
        lane.off_by = off_by(self._reference, found)[0]
        wrong = verdict(self._reference, found, TOLERANCE[lane.runtime.precision])
        if wrong:
            lane.end("wrong", wrong)
        return not wrong

    def _take_turns(self, lanes: Sequence[Lane]) -> None:
        rounds = self._settings.affordable([lane.call_s for lane in lanes if lane.process is not None])
        for number in range(rounds):
            self._settings.say(f"round {number + 1} of {rounds}")
            for lane in lanes if number % 2 == 0 else lanes[::-1]:
                if lane.process is not None:
                    self._turn(lane, lane.process, number + 1)

    def _turn(self, lane: Lane, process: Process, number: int) -> None:
        deadline = min(self._settings.deadline_s, _TURN_GRACE_S + 10 * (self._settings.turn_s + 2 * lane.call_s))
        try:
            answer = process.ask({"turn": self._settings.turn_s}, deadline)
        except Lost as lost:
            lane.end("lost", f"{lost.why}, in round {number}", lost.stderr)
            return
        lane.ms.append(answer["ms"])
        lane.least.append(answer["least"])
        lane.restless += not answer["settled"]

    def _graph_is_there(self) -> bool:
        if not self._exported:
            self._exported = True
            self._settings.say("exporting to ONNX")
            process = self._process("export", export, 1)
            try:
                process.ask(None, self._settings.deadline_s)
            except Lost as lost:
                self._no_graph = lost
            finally:
                process.stop()
        return self._no_graph is None

    def _process(self, name: str, build: Builder, threads: int) -> Process:
        job = {
            "build": f"{build.__module__}:{build.__qualname__}",
            "folder": str(self._folder),
            "outputs": str(self._outputs(name)),
            "threads": threads,
            "main": main_script() if build.__module__ == "__main__" else self._main,
        }
        path = self._path(name, "json")
        path.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-X", "faulthandler", "-m", _CHILD, str(path)]
        return Process(command, _environment(threads), self._path(name, "log"))

    def _outputs(self, name: str) -> Path:
        return self._path(name, "outputs.pt")

    def _path(self, name: str, ending: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{ending}"


def _environment(threads: int) -> dict[str, str]:
    """Threads are set before anything is imported; what can be imported here can be imported there."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    environment["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # else a pool of compilers stays beside the measured process
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return environment
