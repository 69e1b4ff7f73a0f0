"""``measure``: one record with every figure, honest notes, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.core.units import parse_unit
from secateur.deploy import save
from secateur.measure import CONVENTION, SHRINKBENCH_CONVENTION, evaluate, measure
from secateur.measure.notes import sentences
from secateur.model.masks import Masks, register_masks
from secateur.records import Accuracy, Agreement, Latency, Record, SchedulePoint, TrainingCost
from secateur.types import KeyLayout
from tests.measure.networks import mask_of
from tests.measure.test_energy import Rapl


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))


def data(samples: int = 60) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return torch.randn(samples, 20, generator=rng), torch.randint(0, 3, (samples,), generator=rng)


def masked(net: nn.Module, share: int = 10) -> Masks:
    weights = {name: p for name, p in net.named_parameters() if p.ndim == 2}
    unit_masks = {name: mask_of(p, p.numel() // share) for name, p in weights.items()}
    layout = {name: KeyLayout(tuple(p.shape)) for name, p in weights.items()}
    masks = Masks(net, unit_masks, parse_unit("weight")[0], layout)
    register_masks(net, masks)
    masks.apply()
    return masks


@pytest.fixture(scope="module")
def record() -> Record:
    dense = network()
    sparse = copy.deepcopy(dense)
    masked(sparse)
    loader = DataLoader(TensorDataset(*data()), batch_size=16)
    return measure(
        dense,
        sparse,
        loader,
        train=data(200),
        batches=(1, 8),
        rounds=6,
        plan={"sparsity": 0.9},
        training=TrainingCost(2.0, 1.9),
        schedule=[SchedulePoint(0, 0.9, 411)],
    )


def test_counts_and_ratios(record: Record) -> None:
    weights, biases = 20 * 64 + 64 * 32 + 32 * 3, 64 + 32 + 3
    kept = 128 + 204 + 9
    assert (record.dense.parameters, record.dense.kept) == (weights + biases, weights + biases)
    assert (record.sparse.parameters, record.sparse.kept) == (weights + biases, kept + biases)
    assert record.compression == pytest.approx((weights + biases) / (kept + biases))
    assert (record.dense.macs, record.sparse.macs, record.sparse.macs_kept) == (weights, weights, kept)
    assert record.theoretical_speedup == pytest.approx(weights / kept)
    assert record.shares.target_weights == pytest.approx(1 - kept / weights)
    assert record.shares.all_parameters == pytest.approx((weights - kept) / (weights + biases))
    assert record.sparse.effective_kept is not None
    assert record.effective_compression == pytest.approx((weights + biases) / record.sparse.effective_kept)
    assert record.effective_compression > record.compression  # the first rows alone are kept: most lead nowhere
    assert record.dense.effective_kept == record.dense.parameters
    assert record.convention == CONVENTION
    assert [row.kept for row in record.sparse.layers] == [128 + 64, 204 + 32, 9 + 3]


def test_fit_bytes_latency_and_the_rest(record: Record) -> None:
    assert [a.split for a in record.sparse.accuracy] == ["train", "test"]
    assert record.dense.accuracy[1] == evaluate(network(), DataLoader(TensorDataset(*data()), batch_size=16))
    assert record.agreement is not None
    assert record.agreement.samples == 60
    assert record.sparse.sizes.file_bytes < record.sparse.sizes.plain_bytes / 2
    assert record.dense.sizes.plain_bytes == record.sparse.sizes.plain_bytes
    assert [(row.batch, row.threads, row.rounds) for row in record.sparse.latency] == [(1, 1, 6), (8, 1, 6)]
    for i in (0, 1):
        ratio = record.dense.latency[i].median_ms / record.sparse.latency[i].median_ms
        assert record.measured_speedup[i] == pytest.approx(ratio)
        assert record.dense_spread[i][0] <= 1 <= record.dense_spread[i][1]
    assert (record.plan, record.training) == ({"sparsity": 0.9}, TrainingCost(2.0, 1.9))
    assert record.schedule == (SchedulePoint(0, 0.9, 411),)
    assert record.environment.threads == 1


def test_it_is_plain_json_and_comes_back(record: Record) -> None:
    assert Record.from_record(json.loads(json.dumps(record.to_record()))) == record


def said(record: Record, **changes: Any) -> str:
    return "\n".join(sentences(replace(record, **changes)))


def timed(record: Record, ratio: float, spread: tuple[float, float]) -> dict[str, Any]:
    rows = (Latency(1, 1, 2.0, 1.9, 2.1, 30),)
    return {
        "sparse": replace(record.sparse, latency=rows),
        "dense": replace(record.dense, latency=rows),
        "measured_speedup": (ratio,),
        "dense_spread": (spread,),
    }


def test_a_time_is_a_gain_only_beyond_the_spread(record: Record) -> None:
    none = said(record, **timed(record, 1.01, (0.97, 1.03)))
    assert "no gain here in time, because a masked dense tensor runs the same dense kernels: 1.01 x at batch 1" in none
    assert "batch 1 on 1 thread (dense against itself 0.97 to 1.03)" in none
    assert "faster: 2.00 x at batch 1" in said(record, **timed(record, 2.0, (0.97, 1.03)))
    assert "slower, for speed stay dense: 0.80 x at batch 1" in said(record, **timed(record, 0.8, (0.97, 1.03)))
    smaller = timed(record, 1.01, (0.97, 1.03))
    smaller["sparse"] = replace(smaller["sparse"], macs=10, parameters=20)
    assert "fewer multiply-adds are left" in said(record, **smaller)


def test_the_file_is_held_against_plain_gzip_and_half_precision(record: Record) -> None:
    def sized(plain: int, file: int, gzipped: int) -> str:
        dense = replace(record.dense, parameters=plain // 4, sizes=replace(record.dense.sizes, plain_bytes=plain))
        sizes = replace(record.sparse.sizes, file_bytes=file, gzip_bytes=gzipped)
        return said(record, dense=dense, sparse=replace(record.sparse, sizes=sizes))

    small = sized(4_200_000, 800_000, 900_000)
    assert "the file is 5.2 x smaller (4.20 MB as a plain checkpoint, 800 kB as saved here)" in small
    assert "gzip" not in small
    assert "bfloat16" not in small
    assert "gzip of a plain checkpoint of the sparse model is no larger" in sized(4_200_000, 800_000, 700_000)
    assert "bfloat16 (about 2 x) or int8" in sized(4_200_000, 2_500_000, 3_000_000)
    assert "no gain here in bytes" in sized(4_000, 4_100, 4_200)


def test_the_loss_of_accuracy_stands_beside_its_error(record: Record) -> None:
    dense, sparse = record.dense.accuracy[1], record.sparse.accuracy[1]
    assert record.agreement is not None

    def lost(points: float, flips: float) -> str:
        return said(
            record,
            dense=replace(record.dense, accuracy=(replace(dense, samples=100, top1=0.9),)),
            sparse=replace(record.sparse, accuracy=(replace(sparse, samples=100, top1=0.9 - points),)),
            agreement=replace(record.agreement, samples=100, negative_flips=flips),
        )

    # 6 samples lost and 4 won: the error of the difference is sqrt(.10 - .02^2) / 10 = .032
    assert "no measurable change of accuracy on test: 2.0 points lower (standard error of the difference 3.2," in lost(
        0.02, 0.06
    )
    assert "accuracy on test is 20.0 points lower (standard error of the difference 4.0" in lost(0.20, 0.20)


def test_notes_say_what_was_left_out(record: Record) -> None:
    text = "\n".join(record.notes)
    assert "lie on no path" in text
    assert "effective compression is not counted" not in text
    dense = nn.Sequential(nn.Embedding(4, 8), nn.Flatten(0), nn.LayerNorm(64))
    sparse = copy.deepcopy(dense)
    notes = measure(dense, sparse, example_inputs=torch.zeros(1, 8, dtype=torch.long), batches=()).notes
    assert any("effective compression is not counted, because '0' is a Embedding" in note for note in notes)


def test_joules_where_the_machine_tells_and_the_reason_where_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, x = network(), torch.zeros(1, 20)
    sparse = copy.deepcopy(dense)
    monkeypatch.setenv("SECATEUR_POWERCAP", str(tmp_path / "none"))
    found = measure(dense, sparse, example_inputs=x, batches=(2,), rounds=1)
    assert found.sparse.energy == ()
    assert any("joules are not measured: no energy counter" in note for note in found.notes)
    Rapl(tmp_path / "some")
    monkeypatch.setenv("SECATEUR_POWERCAP", str(tmp_path / "some"))
    found = measure(dense, sparse, example_inputs=x, batches=(2,), rounds=1)
    assert [energy.batch for energy in found.dense.energy + found.sparse.energy] == [2, 2]
    assert not any("joules" in note for note in found.notes)


def test_without_data_there_is_no_accuracy_and_without_masks_no_sparsity() -> None:
    found = measure(network(), network(), example_inputs=torch.zeros(1, 20), batches=())
    assert (found.sparse.accuracy, found.agreement, found.sparse.latency) == ((), None, ())
    assert (found.shares.units, found.compression) == (0.0, 1.0)


def test_shrinkbench_figures_count_zeros() -> None:
    dense = network()
    sparse = copy.deepcopy(dense)
    nn.init.zeros_(sparse[0].bias)  # type: ignore[arg-type]
    x = torch.zeros(1, 20)
    ours = measure(dense, sparse, example_inputs=x, batches=())
    theirs = measure(dense, sparse, example_inputs=x, batches=(), compat="shrinkbench")
    assert ours.compression == 1
    assert theirs.compression == pytest.approx(3523 / (3523 - 64))
    assert theirs.convention == SHRINKBENCH_CONVENTION


def test_models_are_left_as_they_were() -> None:
    dense = network().train()
    sparse = copy.deepcopy(dense)
    masks = masked(sparse)
    before = copy.deepcopy((dense.state_dict(), sparse.state_dict()))
    measure(dense, sparse, data(), batches=(1,), rounds=1)
    for state, model in zip(before, (dense, sparse), strict=True):
        assert model.training
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    masks.check()


def test_the_same_or_shared_models_are_refused() -> None:
    net, x = network(), torch.zeros(1, 20)
    with pytest.raises(ValueError, match=r"same object.*deepcopy"):
        measure(net, net, example_inputs=x)
    with pytest.raises(ValueError, match="same object"):
        measure(net, nn.DataParallel(net), example_inputs=x)
    half = copy.deepcopy(net)
    half[2].weight = net[2].weight
    with pytest.raises(ValueError, match=r"share the memory of '2.weight': "):
        measure(net, half, example_inputs=x)
    with pytest.raises(ValueError, match=r"and 5 more"):
        measure(net, nn.Sequential(*net), example_inputs=x)


def test_regrown_zeros_and_masked_dense_models_are_refused() -> None:
    net = network()
    other = copy.deepcopy(net)
    masked(net)
    with pytest.raises(ValueError, match="dense has masks"):
        measure(net, other, example_inputs=torch.zeros(1, 20))
    with torch.no_grad():
        net[0].weight.add_(1.0)
    with pytest.raises(ValueError, match=r"'0.weight' are no longer zero"):
        measure(other, net, example_inputs=torch.zeros(1, 20))


def test_missing_or_spent_data_are_refused() -> None:
    with pytest.raises(ValueError, match="data=, or example_inputs="):
        measure(network(), network())
    with pytest.raises(ValueError, match="iterator"):
        measure(network(), network(), iter([data()]))
    with pytest.raises(ValueError, match="a batch is a dict"):
        measure(network(), network(), [{"x": torch.zeros(1, 20)}])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="plan is a int"):
        measure(network(), network(), example_inputs=torch.zeros(1, 20), batches=(), plan=3)


@pytest.mark.parametrize("batches", [1, (0,), (8, -1), (True,)])
def test_batch_sizes_are_whole_numbers_from_one(batches: Any) -> None:
    with pytest.raises(ValueError, match="batches="):
        measure(network(), network(), example_inputs=torch.zeros(1, 20), batches=batches)


def test_the_bytes_are_those_of_the_file_that_keeps_the_plan(tmp_path: Path) -> None:
    dense = network()
    sparse = copy.deepcopy(dense)
    masked(sparse)
    plan = {"sparsity": 0.9, "words": "x" * 300}
    record = measure(dense, sparse, example_inputs=torch.zeros(1, 20), batches=(), plan=plan)
    assert record.sparse.sizes.file_bytes == save(sparse, tmp_path / "sparse", plan=plan)
    assert record.dense.sizes.file_bytes == save(dense, tmp_path / "dense")


def test_a_plan_that_was_not_finished_is_said(record: Record) -> None:
    schedule = (SchedulePoint(10, 0.0, 100), SchedulePoint(20, 0.62, 38))
    assert "the plan was not finished" in said(record, plan={"sparsity": 0.9}, schedule=schedule)
    assert "not finished" not in said(record, plan={"sparsity": 0.62}, schedule=schedule)
    assert "not finished" not in said(record, plan={"sparsity": 0.9}, schedule=())


def test_the_error_of_a_drop_is_paired_where_the_samples_are_the_same(record: Record) -> None:
    """1,000 samples, 90 % against 88 %: 20 flips, all to the worse, tell more than two independent accuracies."""
    sides = [Accuracy("test", 1000, top1, math.sqrt(top1 * (1 - top1) / 1000), 0.3, 0.02) for top1 in (0.90, 0.88)]
    paired = replace(
        record,
        dense=replace(record.dense, accuracy=(sides[0],)),
        sparse=replace(record.sparse, accuracy=(sides[1],)),
        agreement=Agreement(1000, 0.98, 0.02, 0.01),
    )
    drop = paired.drop()
    assert drop == pytest.approx((0.02, math.sqrt((0.02 - 0.02**2) / 1000)))
    assert replace(paired, agreement=None).drop() == pytest.approx((0.02, math.sqrt(0.09 / 1000 + 0.1056 / 1000)))
    assert paired.drop("train") is None
