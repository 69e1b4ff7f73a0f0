"""From times to rows: by hand, without a process."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from secateur.measure.rivals import RUNTIMES, Rivals, Runtime, Settings
from secateur.measure.rivals.builders import eager
from secateur.measure.rivals.check import off_by, verdict
from secateur.measure.rivals.rows import rivals_of
from secateur.measure.rivals.runtimes import chosen
from secateur.measure.rivals.turns import Lane

FLOAT, HALF, SPARSE = Runtime(eager), Runtime(eager, "bfloat16"), Runtime(eager, dense=False)


def timed(name: str, runtime: Runtime, ms: list[float], twin_of: str = "") -> Lane:
    return Lane(name, runtime, twin_of, "timed", off_by=0.0, ms=ms, least=[value / 2 for value in ms])


def race(*lanes: Lane, rounds: int = 5, load: float = 0.0) -> Rivals:
    return rivals_of(lanes, "net", 1, 1, settings=Settings(rounds), load=load)


def example() -> Rivals:
    wrong, absent = Lane("liar", FLOAT, off_by=1.0), Lane("absent", FLOAT)
    wrong.end("wrong", "differs from eager by 1")
    absent.end("not installed", 'nothing: pip install "secateur[rivals]"')
    return race(
        timed("slow", FLOAT, [10, 20, 10, 30, 10]),
        timed("slow again", FLOAT, [20, 20, 10, 15, 10], twin_of="slow"),
        timed("fast", FLOAT, [4, 4, 5, 6, 4]),
        timed("near", FLOAT, [5, 5, 4, 5, 5]),
        timed("half", HALF, [2, 2, 2, 2, 2]),
        timed("sparse", SPARSE, [1, 1, 1, 2, 1]),
        wrong,
        absent,
        load=1.5,
    )


def test_medians_and_quantiles_are_numpys() -> None:
    row = example()["slow"]
    assert (row.p10_ms, row.median_ms, row.p90_ms) == tuple(np.quantile([10, 20, 10, 30, 10], [0.1, 0.5, 0.9]))
    assert (row.least_ms, row.ms) == (5, (10, 20, 10, 30, 10))


def test_the_best_is_dense_and_float32_and_right() -> None:
    found = example()
    assert found.best == "fast"
    assert race(timed("half", HALF, [1.0] * 5), timed("sparse", SPARSE, [1.0] * 5)).best is None
    assert (found["liar"].median_ms, found["liar"].gain, found["liar"].off_by) == (None, None, 1.0)


def test_gains_are_taken_round_by_round() -> None:
    gains = np.array([4, 4, 5, 6, 4]) / np.array([1, 1, 1, 2, 1])
    row = example()["sparse"]
    assert row.gain == np.median(gains)
    assert row.gain_range == pytest.approx(tuple(np.quantile(gains, [0.1, 0.9])))
    assert example()["fast"].gain == 1


def test_the_spread_is_that_of_the_twin_and_symmetric() -> None:
    ratios = np.array([10, 20, 10, 30, 10]) / np.array([20, 20, 10, 15, 10])
    low, high = np.quantile(np.concatenate([ratios, 1 / ratios]), [0.1, 0.9])
    assert example().spread == pytest.approx((low, high))
    assert low * high == pytest.approx(1)
    assert race(timed("alone", FLOAT, [1.0] * 5)).spread is None


def test_a_twin_is_never_the_best_unless_it_is_alone() -> None:
    pair = timed("slow", FLOAT, [2.0] * 5), timed("slow again", FLOAT, [1.0] * 5, twin_of="slow")
    assert race(*pair).best == "slow"
    pair[0].end("lost", "died")
    assert race(*pair).best == "slow again"
    assert race(*pair).spread is None


def test_the_table_names_everybody() -> None:
    lines = str(example()).splitlines()
    assert lines[0] == "net: batch 1, 1 thread, 5 rounds"
    row = {line.split("  ")[0]: line for line in lines}
    assert row["fast"].endswith("best dense float32")
    assert sum("best dense float32" in line for line in lines) == 1
    assert "bfloat16" in row["half"]
    assert "float32, sparse" in row["sparse"]
    assert row["liar"].split() == ["liar", "float32", "wrong", "1.0e+00"]
    assert row["absent"].split() == ["absent", "float32", "not", "installed"]
    assert 'absent: not installed: nothing: pip install "secateur[rivals]"' in lines
    assert "liar: wrong: differs from eager by 1" in lines
    assert any(line.startswith("Not told apart from fast") and line.endswith(": near.") for line in lines)
    assert any("1.5 other programs" in line for line in lines)
    assert any("slow against itself" in line for line in lines)


def test_a_lost_one_shows_the_end_of_its_log() -> None:
    lane = Lane("gone", FLOAT)
    lane.end("lost", "was ended by SIGKILL, in round 3", "\n".join(f"line {n}" for n in range(20)))
    text = str(race(lane))
    assert "gone: was ended by SIGKILL, in round 3" in text
    assert "    | line 19" in text
    assert "line 5" not in text


def test_fewer_rounds_and_restless_workers_are_told() -> None:
    lane = timed("spinner", FLOAT, [1.0] * 5)
    lane.restless = 2
    text = str(race(lane, rounds=20))
    assert "5 rounds instead of 20" in text
    assert "slowed the others: spinner" in text


def test_the_record_comes_back_from_json(tmp_path) -> None:
    found = example()
    text = found.to_json(tmp_path / "found.json")
    assert Rivals.from_record(json.loads(text)) == found
    assert (tmp_path / "found.json").read_text() == text
    with pytest.raises(KeyError, match="nobody"):
        found["nobody"]


def test_off_by_is_the_largest_difference_of_all_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    a = [torch.randn(3, 4, generator=generator), 100 * torch.randn(5, generator=generator)]
    b = [tensor + 0.01 * torch.randn(tensor.shape, generator=generator) for tensor in a]
    pairs = [(x.numpy().astype(np.float64), y.numpy().astype(np.float64)) for x, y in zip(a, b, strict=True)]
    assert off_by(a, b)[0] == max(abs(x - y).max() for x, y in pairs)
    assert off_by(a, b)[1] == max(abs(x - y).max() / abs(x).max() for x, y in pairs)


@pytest.mark.parametrize(
    ("a", "b", "right"),
    [
        ([1.0, math.nan], [1.0, math.nan], True),
        ([1.0, math.nan], [1.0, 0.0], False),
        ([1.0, 2.0], [1.0, math.nan], False),
        ([1.0, math.inf], [1.0, math.inf], True),
        ([1.0, math.inf], [1.0, -math.inf], False),
        ([1.0, math.inf], [1.0, math.nan], False),
        ([0.0, 0.0], [0.0, 1e-6], True),
        ([0.0, 0.0], [0.0, 1.0], False),
        ([], [], True),
        ([1.0], [1.0, 1.0], False),
    ],
)
def test_what_is_right(a: list[float], b: list[float], right: bool) -> None:
    assert (verdict([torch.tensor(a)], [torch.tensor(b)], 1e-3) == "") is right


def test_another_number_of_outputs_is_wrong() -> None:
    assert verdict([torch.ones(1)], [torch.ones(1)] * 2, 1e-3) == "returns tensors of shape [(1,), (1,)], eager [(1,)]"


def test_bfloat16_and_whole_numbers_are_compared_too() -> None:
    assert off_by([torch.tensor([1.0])], [torch.tensor([1.0], dtype=torch.bfloat16)]) == (0, 0)
    assert verdict([torch.tensor([3])], [torch.tensor([4])], 1e-3)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("onnx",), "did you mean 'onnxruntime'"),
        (("eager", "eager"), "named twice"),
        ((), "no runtime to measure"),
    ],
)
def test_unknown_runtimes_are_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        chosen(names)


def test_the_table_tells_float32_from_bfloat16() -> None:
    assert {name for name, runtime in RUNTIMES.items() if runtime.precision == "bfloat16"} == {
        name for name in RUNTIMES if "bf16" in name
    }


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"turn_s": 0}, {"budget_s": -1}, {"deadline_s": 0}])
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="rounds has to be at least 1"):
        Settings(**wrong)  # type: ignore[arg-type]
