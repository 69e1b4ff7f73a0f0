"""Rivals in processes of their own: what is timed is right, and nobody holds the others up."""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import secateur
from secateur.measure.rivals import RUNTIMES, Case, Rivals, Runtime, compare, compare_all, turns
from secateur.measure.rivals.builders import eager
from secateur.measure.rivals.case import leaves, write_case
from secateur.measure.rivals.child import turn
from tests.measure import rival_fakes as fakes
from tests.measure.rival_fakes import Net

SOURCE = Path(secateur.__file__).resolve().parents[1]
ABSENT = Runtime(eager, needs=("no_such_module_anywhere",), extra="rivals")
SCRIPT = """
import torch
from torch import nn
from secateur.measure.rivals import compare
class Mine(nn.Module):
    def forward(self, x):
        return 2 * x
assert __name__ in ("__main__", "__mp_main__")
if __name__ == "__main__":
    compare(Mine(), torch.ones(2, 3), runtimes=["eager"], rounds=2, turn_s=0.01).print()
"""


def example() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"x": torch.randn(4, 6, generator=generator), "scale": torch.rand(4, 16, generator=generator)}


def net() -> Net:
    torch.manual_seed(0)
    return Net().train()  # dropout must be off all the same


@pytest.fixture(scope="module")
def found() -> Rivals:
    runtimes = {
        "chatty": Runtime(fakes.chatty, dense=False),
        "dies/in a round": Runtime(fakes.dying_in_a_round),
        "hangs": Runtime(fakes.hanging_in_a_round),
        "unbuilt": Runtime(fakes.dying_while_built),
        "liar": Runtime(fakes.lying),
        "later": Runtime(fakes.lying_later),
        "absent": ABSENT,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "_TURN_GRACE_S", 2.0)
        return compare(net(), example(), runtimes=runtimes, rounds=3, turn_s=0.01, title="fakes")


@pytest.mark.slow
def test_the_rest_is_timed_whatever_happens_to_some(found: Rivals) -> None:
    assert [row.name for row in found.rows] == [
        "chatty",
        "chatty again",
        "dies/in a round",
        "hangs",
        "unbuilt",
        "liar",
        "later",
        "absent",
    ]
    assert (found.batch, found.threads, found.rounds) == (4, 1, 3)
    for name in ("chatty", "chatty again"):
        row = found[name]
        assert (row.status, len(row.ms)) == ("timed", 3)
        assert row.off_by == pytest.approx(0, abs=1e-5)
        assert min(row.ms) > 0
    assert found.best is None  # nobody dense and right is left
    assert found.spread is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "status", "why"),
    [
        ("dies/in a round", "lost", "was ended by SIGKILL, in round 1"),
        ("hangs", "lost", "did not answer within 2"),
        ("unbuilt", "lost", "ended with code 1: RuntimeError: no kernel for Net, while it was built"),
        ("liar", "wrong", "differs from eager by 1, "),
        ("later", "wrong", "differs from eager by "),
        ("absent", "not installed", 'no_such_module_anywhere: pip install "secateur[rivals]"'),
    ],
)
def test_who_is_not_timed_says_why(found: Rivals, name: str, status: str, why: str) -> None:
    row = found[name]
    assert row.status == status
    assert row.why.startswith(why)
    assert (row.ms, row.median_ms, row.gain) == ((), None, None)
    assert row.why in str(found)


@pytest.mark.slow
def test_last_words_are_kept(found: Rivals) -> None:
    assert "out of luck" in found["dies/in a round"].stderr
    assert "Traceback" in found["unbuilt"].stderr
    assert found["liar"].off_by == pytest.approx(1)


@pytest.mark.slow
def test_the_runtimes_agree_on_keyword_arguments_and_several_outputs(capfd: pytest.CaptureFixture[str]) -> None:
    names = [name for name in RUNTIMES if RUNTIMES[name].graph or name.startswith("eager")]
    model, given = net(), example()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = compare(model, given, runtimes=names, batch=3, rounds=2, turn_s=0.01)
    for name in names:
        missing = RUNTIMES[name].missing()
        if missing:
            assert (found[name].status, missing[0] in found[name].why) == ("not installed", True)
        elif name != "openvino-bf16" or found[name].status == "timed":  # an older processor may have no bfloat16
            assert found[name].status == "timed", found[name].why
    assert found.batch == 3
    assert found.best in names
    assert capfd.readouterr() == ("", "")  # nothing of the exporter's, nothing of the runtimes'
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.slow
def test_a_model_that_cannot_be_exported_loses_only_those_who_need_the_file() -> None:
    graph = replace(RUNTIMES["onnxruntime"], needs=("torch",))
    class_needs_nested = (torch.ones(2, 3), (torch.ones(2, 3),))
    found = compare(Nested(), class_needs_nested, runtimes={"eager": RUNTIMES["eager"], "graph": graph}, rounds=2)
    assert (found["eager"].status, found["graph"].status) == ("timed", "lost")
    assert "there is no ONNX file" in found["graph"].why
    assert "input_1 is a tuple that holds tensors" in found["graph"].why


@pytest.mark.slow
def test_classes_of_the_script_that_is_run_are_found(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "script.py"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Mine: batch 2, 1 thread, 2 rounds\n")


class Nested(nn.Module):
    def forward(self, x: torch.Tensor, pair: tuple[torch.Tensor]) -> torch.Tensor:
        return x + pair[0]


class Wordless(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return "no tensor"


def unsendable() -> nn.Module:
    class Local(nn.Linear):
        pass

    return Local(2, 2)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (unsendable(), "cannot be sent to another process"),
        (Wordless(), "returned no tensor"),
        (nn.Linear(2, 2, device="meta"), "the model is on meta"),
    ],
    ids=["local", "wordless", "meta"],
)
def test_models_that_cannot_race_are_refused(model: nn.Module, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compare(model, torch.zeros(1, 2), runtimes=["eager"])


@pytest.mark.parametrize(
    ("batches", "threads"), [((1,), (10_000,)), ((1,), ()), ((0,), (1,)), ((), (1,)), ((1,), (0,))]
)
def test_impossible_sizes_are_refused(batches: tuple[int, ...], threads: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="processors"):
        compare_all(nn.Linear(2, 2), torch.zeros(1, 2), batches, threads, runtimes=["eager"])


def test_a_case_is_what_was_written(tmp_path: Path) -> None:
    model, given = net(), example()
    reference = write_case(model, given, tmp_path)
    case = Case(tmp_path, 1)
    assert not case.model.training
    assert list(case.tensors) == ["input_0", "input_1"]
    args, kwargs = case.inputs
    found = leaves(case.model(*args, **kwargs))
    assert len(reference) == 2
    assert all(torch.equal(a, b) for a, b in zip(reference, found, strict=True))
    hidden = (given["x"].double() @ model.first.weight.double().T + model.first.bias.double()).clamp(min=0)
    hidden = hidden * given["scale"].double()
    logits = hidden @ model.second.weight.double().T + model.second.bias.double()
    assert torch.allclose(reference[0].double(), logits, atol=1e-5)
    assert model.training


def test_a_turn_counts_every_call_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that only calls move: each takes 3 ms, every tenth 30."""
    now, calls = 0.0, 0

    def call() -> None:
        nonlocal now, calls
        calls += 1
        now += 0.030 if calls % 10 == 0 else 0.003

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    median, least = turn(call, 0.05, 0.003)
    assert (round(median, 9), round(least, 9)) == (0.003, 0.003)
    assert calls == 12  # 4 to warm for 10 ms; then 5 x 3, 30 and 2 x 3 fill 50 ms
    short = functools.partial(turn, call, 1e-9, 1e-5)  # 200 calls a block, though the turn is over after the first
    calls = 0
    assert 0.0055 < short()[0] < 0.006  # (9 x 3 + 30) / 10
    assert calls == 204


@pytest.mark.slow
def test_print_goes_to_standard_output(found: Rivals) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        found.print()
    assert (out.getvalue(), err.getvalue()) == (f"{found}\n", "")
