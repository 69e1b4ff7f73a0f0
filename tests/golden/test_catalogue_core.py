"""The catalogue's worked numbers for criteria, units, allocations and schedules; each test is named by its id."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from secateur.core import (
    SCHEDULES,
    allocate,
    keep_top,
    parse_unit,
    removed_count,
    score,
    select,
    unit_sizes,
    update_steps,
)
from secateur.core.allocations import lamp_scores
from secateur.types import KeyLayout, Layout

T = torch.tensor
WEIGHT, _ = parse_unit("weight")
LENET_300_100: Layout = {
    "fc1": KeyLayout((300, 784), role="first"),
    "fc2": KeyLayout((100, 300)),
    "fc3": KeyLayout((10, 100), role="output"),
}
LENET_5: Layout = {
    "conv1": KeyLayout((20, 1, 5, 5), kind="conv", role="first"),
    "conv2": KeyLayout((50, 20, 5, 5), kind="conv"),
    "fc1": KeyLayout((500, 800)),
    "fc2": KeyLayout((10, 500), role="output"),
}
W1 = T(
    [
        [[[1.0, -2.0], [3.0, 0.0]], [[0.0, 0.0], [0.5, -0.5]]],
        [[[-1.0, 1.0], [-1.0, 1.0]], [[2.0, 2.0], [-2.0, 2.0]]],
    ]
)


def _removed(scores: Tensor, removed: int) -> list[int]:
    return (~keep_top(scores.flatten(), scores.numel() - removed)).nonzero().flatten().tolist()


def _kept(scores: Tensor, keep: int) -> list[int]:
    return keep_top(scores.flatten(), keep).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("criterion", "reduce", "unit", "expected"),
    [
        ("l1", "sum", "filter", [7, 12]),
        ("l1", "sum", "in_channel", [10, 9]),
        ("l1", "sum", "kernel", [[6, 1], [4, 8]]),
        ("l1", "sum", "row", [[[3, 3], [0, 1]], [[2, 2], [4, 4]]]),
        ("l1", "sum", "column", [[[4, 2], [0.5, 0.5]], [[2, 2], [4, 4]]]),
        ("l2", "l2", "filter", [3.807887, 4.472136]),
        ("l2", "l2", "in_channel", [4.242640, 4.062019]),
        ("l2", "l2", "kernel", [[3.741657, 0.707107], [2, 4]]),
        ("l0", "sum", "filter", [5, 8]),
        ("l0", "sum", "in_channel", [7, 6]),
        ("l0", "sum", "kernel", [[3, 2], [4, 4]]),
        ("linf", None, "filter", [3, 2]),
        ("linf", None, "kernel", [[3, 0.5], [1, 2]]),
        ("l1", None, "kernel", [[1.5, 0.25], [1, 2]]),
        ("magnitude", None, "filter", [0.875, 1.5]),
    ],
)
def test_w1_norms_of_units(criterion: str, reduce: str | None, unit: str, expected: list) -> None:
    layout = {"conv": KeyLayout((2, 2, 2, 2), kind="conv")}
    resolved, _ = parse_unit(unit)
    found = score(criterion, {"weight": {"conv": W1}}, layout, resolved, reduce)["conv"]  # type: ignore[arg-type]
    assert torch.allclose(found, T(expected, dtype=torch.float32), atol=2e-6)


def test_w2_exact_counts_not_thresholds() -> None:
    distinct, ties = T([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]), T([1.0] * 4 + [2.0] * 4)
    assert [removed_count(8, s) for s in (0.5, 0.3, 0.9)] == [4, 2, 7]
    assert _removed(distinct, 4) == [0, 1, 2, 3]
    assert _removed(ties, 2) == [0, 1]


def test_w3_the_article_s_numbers_and_real_snip() -> None:
    g = T([[1.2, -2.4, 0.8, 3.6, -1.8, 0.4, 2.8, 1.4]], dtype=torch.float64)
    w = T([[0.1, -0.2, 0.5, 0.05, 0.3, -0.6, 0.01, 0.2]], dtype=torch.float64)
    layout = {"p": KeyLayout((1, 8))}
    evidence = {"weight": {"p": w}, "grad_abs": {"p": g.abs()}, "grad": {"p": g}}
    plain = score("grad_magnitude", evidence, layout, WEIGHT)["p"]
    shares = [0.083333, 0.166667, 0.055556, 0.25, 0.125, 0.027778, 0.194444, 0.097222]
    assert plain.sum().item() == pytest.approx(14.4)
    assert (plain / plain.sum()).flatten().tolist() == pytest.approx(shares, abs=1e-6)
    assert _removed(plain, 4) == [0, 2, 5, 7]
    for name in ("snip", "snip_signed"):
        real = score(name, evidence, layout, WEIGHT)["p"]
        assert real.flatten().tolist() == pytest.approx([0.12, 0.48, 0.4, 0.18, 0.54, 0.24, 0.028, 0.28])
        assert real.sum().item() == pytest.approx(2.268)
        assert _removed(real, 4) == [0, 3, 5, 6]


@pytest.mark.parametrize(
    ("criterion", "kept", "scores"),
    [
        ("large_final", [0, 1, 3], None),
        ("small_final", [2, 4, 5], None),
        ("large_init", [0, 2, 3], None),
        ("small_init", [1, 4, 5], None),
        ("large_init_large_final", [0, 3, 4], [0.5, 0.1, 0.1, 0.75, 0.2, 0.05]),
        ("small_init_small_final", [2, 4, 5], [-0.6, -0.7, -0.3, -0.8, -0.4, -0.12]),
        ("magnitude_increase", [0, 1, 4], [0.1, 0.6, -0.2, -0.05, 0.2, 0.07]),
        ("movement", [1, 2, 4], [0.1, 0.6, 0.2, 0.05, 0.6, 0.17]),
    ],
)
def test_w4_mask_criteria(criterion: str, kept: list[int], scores: list[float] | None) -> None:
    init = {"p": T([[0.5, -0.1, 0.3, -0.8, 0.2, -0.05]])}
    weight = {"p": T([[0.6, -0.7, 0.1, -0.75, -0.4, 0.12]])}
    found = score(criterion, {"weight": weight, "init": init}, {"p": KeyLayout((1, 6))}, WEIGHT)["p"]
    assert _kept(found, 3) == kept
    if scores is not None:
        assert found.flatten().tolist() == pytest.approx(scores, abs=1e-6)


def test_w4_movement_of_sanh() -> None:
    gradients, weights = T([[0.2, -0.1, 0.0], [0.1, -0.3, 0.5]]), T([[1.0, -0.5, 0.2], [0.9, -0.4, 0.1]])
    collected = -(gradients * weights).sum(0, keepdim=True)
    found = score("movement_sanh", {"movement": {"p": collected}}, {"p": KeyLayout((1, 3))}, WEIGHT)["p"]
    assert found.flatten().tolist() == pytest.approx([-0.29, -0.17, -0.05])
    assert _removed(found, 1) == [0]


def test_w10_taylor_of_weights_of_a_gate_and_of_hubens() -> None:
    w = T([[1.0, -2.0, 0.5]])
    batches = T([[0.2, 0.1, -0.4], [-0.1, 0.3, 0.2]])
    unit, _ = parse_unit("filter")
    layout = {"p": KeyLayout((1, 3))}
    evidence = {
        "weight": {"p": w},
        "grad": {"p": batches.mean(0, keepdim=True)},
        "grad_sq": {"p": batches.square().mean(0, keepdim=True)},
        "gate_grad_sq": {"p": (batches * w).sum(1).square().mean().reshape(1)},
    }
    assert score("taylor", evidence, layout, unit)["p"].item() == pytest.approx(0.25)
    assert score("gate_taylor", evidence, layout, unit)["p"].item() == pytest.approx(0.20)
    assert score("snip_signed", evidence, layout, unit, "sum")["p"].item() == pytest.approx(0.5)


def test_w20_lamp() -> None:
    scores = {"a": T([[0.1, 0.2, 0.3, 0.4]]), "b": T([[1.0, 3.0, 2.0]])}
    layout = {"a": KeyLayout((1, 4)), "b": KeyLayout((1, 3))}
    assert lamp_scores(scores["a"]).flatten().tolist() == pytest.approx([0.033333, 0.137931, 0.36, 1.0], abs=1e-6)
    assert lamp_scores(scores["b"]).flatten().tolist() == pytest.approx([0.071429, 1.0, 0.307692], abs=1e-6)
    removed = {}
    for name in ("lamp", "global"):
        counts = allocate(name, sparsity=4 / 7, scores=scores, layout=layout, unit=WEIGHT, min_density=None)
        masks = select(scores, counts)
        removed[name] = (~torch.cat([mask.flatten() for mask in masks.values()])).nonzero().flatten().tolist()
    assert removed == {"lamp": [0, 1, 4, 6], "global": [0, 1, 2, 3]}


@pytest.mark.parametrize(
    ("allocation", "layout", "density", "expected"),
    [
        ("erk", LENET_300_100, 0.1, [0.079568, 0.230189, 1.0]),
        ("er", LENET_300_100, 0.1, [0.079568, 0.230189, 1.0]),
        ("erk", LENET_300_100, 0.05, [0.038484, 0.111334, 0.918507]),
        ("erk", LENET_300_100, 0.02, [0.015394, 0.044534, 0.367403]),
        ("erk", LENET_5, 0.1, [1.0, 0.087072, 0.088433, 1.0]),
        ("erk", LENET_5, 0.05, [0.726116, 0.037477, 0.038063, 1.0]),
        ("erk", LENET_5, 0.02, [0.277887, 0.014343, 0.014567, 0.457168]),
        ("er", LENET_5, 0.1, [1.0, 0.861803, 0.040012, 1.0]),
        ("er", LENET_5, 0.05, [1.0, 0.413413, 0.019194, 0.602402]),
        ("er", LENET_5, 0.02, [1.0, 0.159466, 0.007404, 0.232365]),
    ],
)
def test_a1_erdos_renyi_densities(allocation: str, layout: Layout, density: float, expected: list[float]) -> None:
    sizes = unit_sizes(WEIGHT, layout)
    scores = {key: torch.zeros(one.shape) for key, one in layout.items()}
    counts = allocate(allocation, sparsity=1.0 - density, scores=scores, layout=layout, unit=WEIGHT)
    assert sum(counts.values()) == round(density * sum(sizes.values()))
    for key, target in zip(layout, expected, strict=True):
        assert abs(counts[key] - target * sizes[key]) < 1.0 + 1e-6 * sizes[key]


def test_a1_counts_of_lenet_300_100() -> None:
    scores = {key: torch.zeros(one.shape) for key, one in LENET_300_100.items()}
    counts = allocate("erk", sparsity=0.9, scores=scores, layout=LENET_300_100, unit=WEIGHT)
    assert list(counts.values()) == [18714, 6906, 1000]  # 18714.3, 6905.7, 1000 of 26620


def test_a2_uniform_plus() -> None:
    scores = {key: torch.zeros(one.shape) for key, one in LENET_5.items()}
    counts = allocate("uniform_plus", sparsity=0.9, scores=scores, layout=LENET_5, unit=WEIGHT)
    assert (counts["conv1"], counts["fc2"]) == (500, 1000)
    assert 1 - counts["conv2"] / 25000 == pytest.approx(0.902235, abs=4e-5)
    assert 1 - counts["fc1"] / 400000 == pytest.approx(0.902235, abs=4e-6)
    assert sum(counts.values()) == 43050


def test_b1_cubic_in_eleven_updates() -> None:
    cubic = SCHEDULES["cubic"].function
    steps = update_steps(100, 1100, 100)
    found = [cubic((step - 100) / 1000, 0.0, 0.9) for step in steps]
    expected = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert found == pytest.approx(expected, abs=1e-9)
    halfway = [0.5, 0.73125, 0.85, 0.89375, 0.9]
    assert [cubic(k / 4, 0.5, 0.9) for k in range(5)] == pytest.approx(halfway, abs=1e-9)


def test_b2_one_cycle() -> None:
    curve = {0: 0.002473, 0.1: 0.009955, 0.25: 0.075884, 0.4286: 0.500268, 0.5: 0.731304, 0.75: 0.989345, 1: 1.0}
    for progress, expected in curve.items():
        assert SCHEDULES["one_cycle"].function(progress, 0.0, 1.0) == pytest.approx(expected, abs=1e-6)


def test_b3_linear_and_geometric_rounds() -> None:
    linear, geometric = SCHEDULES["linear"].function, SCHEDULES["geometric"].function
    assert [linear(k / 5, 0.0, 0.9) for k in range(1, 6)] == pytest.approx([0.18, 0.36, 0.54, 0.72, 0.9])
    expected = [0.36904, 0.60189, 0.74881, 0.84151, 0.9]
    assert [geometric(k / 5, 0.0, 0.9) for k in range(1, 6)] == pytest.approx(expected, abs=1e-5)
    remaining = [1, 0.8, 0.64, 0.512, 0.4096, 0.32768, 0.26214, 0.20972]
    rounds = [1 - geometric(k / 7, 0.0, 1 - 0.8**7) for k in range(8)]
    assert rounds == pytest.approx(remaining, abs=1e-5)


def test_b4_dense_sparse_dense_is_two_half_cosines() -> None:
    cosine = SCHEDULES["cosine"].function
    assert [cosine(p, 0.0, 0.5) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.0, 0.25, 0.5])
    assert [cosine(p, 0.5, 0.0) for p in (0.5, 1.0)] == pytest.approx([0.25, 0.0])


def test_b5_cosine() -> None:
    found = [SCHEDULES["cosine"].function(p, 0.0, 0.9) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx([0.0, 0.1318, 0.45, 0.7682, 0.9], abs=5e-5)


def test_w15_and_w16_exponential_densities() -> None:
    exponential = SCHEDULES["exponential"].function
    found = [1 - exponential(t / 10, 0.0, 0.99) for t in range(1, 11)]
    assert found == pytest.approx(
        [0.63096, 0.39811, 0.25119, 0.15849, 0.1, 0.0631, 0.03981, 0.02512, 0.01585, 0.01], abs=5e-6
    )
    synflow = [1 - exponential(k / 100, 0.0, 0.99) for k in (1, 10, 50, 100)]
    assert synflow == pytest.approx([0.95499, 0.63096, 0.1, 0.01], abs=5e-6)


def test_e4_layer_collapse_and_its_protection() -> None:
    scores = {"a": T([[0.01, 0.02, 0.015, 0.012]]), "b": T([[1.0, 2.0, 3.0, 4.0, 0.5, 0.6, 0.7, 0.8]])}
    layout = {"a": KeyLayout((1, 4)), "b": KeyLayout((1, 8))}
    removed = {}
    for min_density in (None, 0.0):
        counts = allocate("global", sparsity=4 / 12, scores=scores, layout=layout, unit=WEIGHT, min_density=min_density)
        masks = select(scores, counts)
        removed[min_density] = (~torch.cat([mask.flatten() for mask in masks.values()])).nonzero().flatten().tolist()
    assert removed == {None: [0, 1, 2, 3], 0.0: [0, 2, 3, 8]}


def test_e5_weights_of_lenet_300_100_that_snip_keeps() -> None:
    total = sum(math.prod(one.shape) for one in LENET_300_100.values())
    assert total - removed_count(total, 0.9) == 26620
