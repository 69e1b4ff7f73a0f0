"""The unit ``channel`` against slow definitions: pooling, expanding, scoring, allocating, selecting."""

from __future__ import annotations

import pytest
import torch

from secateur.core import ALLOCATIONS, allocate, decide, parse_unit, score, unit_name, unit_sizes
from secateur.core.unit_channel import Channel, evidence_layout, parameter_layout, producer_shape, touching
from secateur.types import NM, CriterionEntry, KeyLayout, Member, Unit
from tests.oracles.channel_nets import CHAIN, RESIDUAL, elements, expand_slowly, member, pool_slowly

ODD = {  # positions of no unit, a merged unit, units out of order, a tensor along two axes like an LSTM's w_hh
    "p": KeyLayout(
        (3,),
        "group",
        members=(
            Member("p", (4, 2), 0, "out", (2, -1, 0, 1)),
            Member("q", (3, 5, 2), 1, "out", (1, 1, 0, 2, -1)),
            Member("hh", (6, 3), 0, "out", (0, 1, 2, 0, 1, 2)),
            Member("hh", (6, 3), 1, "in", (0, 1, 2)),
            Member("norm", (3,), 0, "follows", (2, 1, 0)),
        ),
    ),
    "r": KeyLayout((2,), "group", members=(Member("q", (3, 5, 2), 0, "out", (1, 0, 1)),)),
    "side": KeyLayout(  # unit 0 is made by the first alone, unit 1 by the second
        (3,), "group", members=(Member("s", (2, 4), 0, "out", (0, 2)), Member("t", (3, 1), 0, "out", (2, 1, -1)))
    ),
}
LAYOUTS = {"chain": CHAIN, "residual": RESIDUAL, "odd": ODD}


def _scores(layout: dict[str, KeyLayout], seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(key.shape, dtype=torch.float64) for name, key in parameter_layout(layout).items()}


@pytest.mark.parametrize("reduce", ["mean", "sum", "l2", "rms", "max"])
@pytest.mark.parametrize("spec", ["channel", "channel(all)", "channel(out, weights)", "channel(all, weights)"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_pooling_is_the_mean_over_members_of_their_scores(name: str, spec: str, reduce: str) -> None:
    layout, unit = LAYOUTS[name], parse_unit(spec)[0]
    scores = _scores(layout)
    pooled = unit.pool(scores, layout, reduce)  # type: ignore[arg-type]
    assert list(pooled) == list(layout)
    for group, key in layout.items():
        assert pooled[group].dtype == torch.float64
        slow = pool_slowly(scores, key, reduce, everything="all" in spec, pooled="weights" in spec)
        assert pooled[group].tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("reduce", ["mean", "rms"])
@pytest.mark.parametrize("spec", ["channel", "channel(all)", "channel(all, weights)"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_averages_of_one_number_are_that_number(name: str, spec: str, reduce: str) -> None:
    layout = LAYOUTS[name]
    scores = {key: torch.full_like(one, 2.5) for key, one in _scores(layout).items()}
    pooled = parse_unit(spec)[0].pool(scores, layout, reduce)  # type: ignore[arg-type]
    assert all(one.tolist() == pytest.approx([2.5] * len(one)) for one in pooled.values())


def test_a_larger_layer_counts_for_more() -> None:
    layout = {
        "a": KeyLayout(
            (1,), "group", members=(Member("a", (1, 1), 0, "out", (0,)), Member("b", (1, 9), 0, "out", (0,)))
        )
    }
    scores = {"a": torch.tensor([[8.0]]), "b": torch.full((1, 9), 4.0)}
    found = {
        reduce: float(Channel().pool(scores, layout, reduce)["a"]) for reduce in ("l2", "rms", "mean", "sum", "max")
    }
    assert found == pytest.approx({"l2": 10.0, "rms": 5.0, "mean": 4.4, "sum": 22.0, "max": 6.0})  # 8 and 12; 1 and 3


@pytest.mark.parametrize("name", LAYOUTS)
def test_expanding_is_and_over_axes_and_groups(name: str) -> None:
    layout = LAYOUTS[name]
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        kept = {group: torch.rand(key.shape, generator=generator) < 0.5 for group, key in layout.items()}
        masks = Channel().expand(kept, layout)
        slow = expand_slowly(kept, layout)
        assert list(masks) == list(slow)
        assert all(torch.equal(masks[one], slow[one]) for one in slow)


def test_a_subset_of_groups_expands_by_itself() -> None:
    kept = {"conv2.weight": torch.tensor([True, False, True, True])}
    masks = Channel().expand(kept, CHAIN)
    assert set(masks) == {"conv2.weight", "fc1.weight"}
    assert (~masks["fc1.weight"]).nonzero()[:, 1].unique().tolist() == list(range(9, 18))


def test_a_group_without_producers_is_scored_by_all_its_weights() -> None:
    key = KeyLayout(
        (2,), "group", members=(Member("raw", (2, 3), 0, "follows", (0, 1)), member("n", (2,), 0, "follows"))
    )
    assert list(evidence_layout(Channel(), {"raw": key})) == ["raw"]
    assert Channel().pool({"raw": torch.tensor([[1.0] * 3, [2.0] * 3])}, {"raw": key})["raw"].tolist() == [1.0, 2.0]


def test_scoring_reads_producers_and_the_option_reads_consumers_too() -> None:
    assert list(evidence_layout(Channel(), CHAIN)) == ["conv1.weight", "conv2.weight", "fc1.weight"]
    assert list(evidence_layout(Channel("all"), CHAIN)) == ["conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"]
    scores = _scores(CHAIN)
    narrow = {name: scores[name] for name in evidence_layout(Channel(), CHAIN)}
    evidence = {"weight": narrow}
    found = score("l1", evidence, CHAIN, Channel())
    absolute = {name: value.abs() for name, value in scores.items()}
    for group, key in CHAIN.items():
        assert found[group].tolist() == pytest.approx(pool_slowly(absolute, key, "mean"), abs=1e-12)
    with pytest.raises(ValueError, match=r"nothing for the parameter 'fc2\.weight'"):
        score("l1", evidence, CHAIN, Channel("all"))


def test_half_precision_is_summed_wide_and_small_squares_survive() -> None:
    members = (Member("w", (2, 4096), 0, "out", (0, 1)),)
    layout = {"w": KeyLayout((2,), "group", members=members)}
    ones = torch.full((2, 4096), 1.0, dtype=torch.float16)
    pooled = Channel().pool({"w": ones * 33}, layout, "sum")["w"]
    assert pooled.dtype == torch.float32
    assert pooled.tolist() == [33.0 * 4096] * 2  # beyond float16
    tiny = Channel().pool({"w": torch.full((2, 4096), 1e-30)}, layout, "l2")["w"]
    assert tiny.tolist() == pytest.approx([64e-30] * 2)


def test_scores_of_outputs_add_up_over_positions_and_are_averaged_over_producers() -> None:
    outputs = {"a.weight": torch.tensor([1.0, 2.0, 3.0, 4.0]), "b.weight": torch.arange(8.0)}
    expected = [(1.0 + 0 + 1) / 2, (2.0 + 2 + 3) / 2, (3.0 + 4 + 5) / 2, (4.0 + 6 + 7) / 2]
    found = score("gate_taylor", {"gate_grad_sq": outputs}, RESIDUAL, Channel())
    assert found["a.weight"].tolist() == expected
    only_a = score("gate_taylor", {"gate_grad_sq": {"a.weight": outputs["a.weight"]}}, RESIDUAL, Channel())
    assert only_a["a.weight"].tolist() == [1.0, 2.0, 3.0, 4.0]
    together = score("gate_taylor", {"gate_grad_sq": outputs}, RESIDUAL, Channel(over="weights"))
    assert together["a.weight"].tolist() == [2 * one for one in expected]
    with pytest.raises(ValueError, match="unit 0 has no output that is scored"):
        score("gate_taylor", {"gate_grad_sq": {}}, RESIDUAL, Channel())
    with pytest.raises(ValueError, match="reads the evidence 'gate_grad_sq'"):
        score("gate_taylor", {}, RESIDUAL, Channel())


def test_rates_of_outputs_are_averaged_over_positions_and_producers() -> None:
    zeros = {"a.weight": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b.weight": torch.arange(8.0) / 10}
    found = score("apoz", {"activation_zeros": zeros}, RESIDUAL, Channel())
    means = [(0.1 + 0.05) / 2, (0.2 + 0.25) / 2, (0.3 + 0.45) / 2, (0.4 + 0.65) / 2]
    kept = [1 - mean for mean in means]
    assert found["a.weight"].tolist() == pytest.approx(kept)
    together = score("apoz", {"activation_zeros": zeros}, RESIDUAL, Channel(over="weights"))
    thirds = [0.1 + 0.0 + 0.1, 0.2 + 0.2 + 0.3, 0.3 + 0.4 + 0.5, 0.4 + 0.6 + 0.7]
    assert together["a.weight"].tolist() == pytest.approx([1 - one / 3 for one in thirds])


def test_each_output_is_scored_before_scores_add_up() -> None:
    def rooted(gate_grad_sq: torch.Tensor) -> torch.Tensor:
        return gate_grad_sq.sqrt()

    entry = CriterionEntry(rooted, "unit", "sum", "batches", "", "", units=frozenset({"channel", "filter"}))
    outputs = {"a.weight": torch.zeros(4), "b.weight": torch.full((8,), 9.0)}
    found = score(entry, {"gate_grad_sq": outputs}, RESIDUAL, Channel())
    assert found["a.weight"].tolist() == [3.0] * 4  # of a nothing, of b 3 + 3, not sqrt(18)


def test_grouped_transposed_convolutions_have_more_outputs_than_positions() -> None:
    layout = {"t": KeyLayout((2,), "group", members=(member("t", (6, 2, 3), 1, "out"),))}
    found = Channel().add_up({"t": torch.tensor([1.0, 10.0, 2.0, 20.0, 3.0, 30.0])}, layout)
    assert found["t"].tolist() == [6.0, 60.0]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_every_allocation_counts_units_of_groups_exactly(allocation: str) -> None:
    evidence = {"weight": _scores(CHAIN)}
    for sparsity in (0.0, 0.3, 0.5, 0.83):
        masks = decide(
            criterion="l1",
            unit="channel",
            allocation=allocation,
            within="tensor",
            sparsity=sparsity,
            evidence=evidence,
            layout=CHAIN,
        )
        kept = sum(int(mask.sum()) for mask in masks.values())
        wanted = 18 - int(sparsity * 18 + 0.5)
        assert abs(kept - wanted) <= (1 if allocation == "uniform" else 0)
        assert all(mask.any() for mask in masks.values())


def test_allocations_know_a_group_by_its_first_producer() -> None:
    assert producer_shape(CHAIN["conv1.weight"]) == (6, 2, 3, 3)
    scores = {group: torch.arange(1.0, 1 + key.shape[0]) for group, key in CHAIN.items()}
    kept = allocate("erk", sparsity=0.5, scores=scores, layout=CHAIN, unit=Channel())
    shapes = {"conv1.weight": (6, 2, 3, 3), "conv2.weight": (4, 6, 3, 3), "fc1.weight": (8, 36)}
    density = {
        name: sum(shape) / torch.tensor(shape).prod().item() * 1.0 for name, shape in shapes.items()
    }  # .130, .074, .153: the second convolution loses most
    assert kept["conv2.weight"] / 4 < kept["conv1.weight"] / 6 <= kept["fc1.weight"] / 8
    assert sorted(density, key=density.__getitem__) == ["conv2.weight", "conv1.weight", "fc1.weight"]
    first = {**CHAIN, "conv1.weight": KeyLayout((6,), "group", 1, "first", CHAIN["conv1.weight"].members)}
    kept = allocate("uniform_plus", sparsity=0.5, scores=scores, layout=first, unit=Channel())
    assert (kept["conv1.weight"], sum(kept.values())) == (6, 9)


def test_what_is_removed_stays_removed_and_one_unit_stays() -> None:
    evidence = {"weight": _scores(CHAIN)}
    call = {"criterion": "l1", "unit": "channel", "allocation": "global", "within": "tensor", "evidence": evidence}
    before = None
    for sparsity in (0.2, 0.5, 0.8):
        masks = decide(**call, layout=CHAIN, sparsity=sparsity, previous=before)
        assert before is None or not any(bool((masks[group] & ~before[group]).any()) for group in CHAIN)
        before = masks
    with pytest.raises(ValueError, match="layer-collapse protection keeps at least 3"):
        decide(**call, layout=CHAIN, sparsity=0.95)


def test_a_mask_of_weights_pools_to_the_units_of_which_anything_is_left() -> None:
    kept = {group: torch.ones(key.shape, dtype=torch.bool) for group, key in CHAIN.items()}
    kept["conv1.weight"][2] = kept["fc1.weight"][7] = False
    masks = Channel().expand(kept, CHAIN)
    masks["conv2.weight"][0, 0] = False  # some single weights besides
    back = Channel().pool(masks, CHAIN)
    assert all(torch.equal(back[group], kept[group]) for group in CHAIN)
    for name, index in elements(CHAIN["conv2.weight"], 3):
        masks[name][index] = False
    assert Channel().pool(masks, CHAIN)["conv2.weight"].tolist() == [True, True, True, False]


def test_names_and_specs() -> None:
    assert parse_unit("channel") == (Channel(), "tensor")
    for spec in ("channel", "channel(all)", "channel(out, weights)", "channel(all, weights)"):
        assert parse_unit(spec)[0].spec == spec
    for spec in (
        "channel(all)",
        "channel('all')",
        "channel( all )",
        "channel(scored=all)",
        "channel(all, over = members)",
    ):
        assert parse_unit(spec)[0].spec == "channel(all)"
    assert isinstance(Channel(), Unit)
    assert unit_name(Channel("all")) == "channel"
    assert unit_sizes(Channel(), CHAIN) == {"conv1.weight": 6, "conv2.weight": 4, "fc1.weight": 8}
    with pytest.raises(ValueError, match=r"channel\(some\): take 'channel'"):
        parse_unit("channel(some)")


def test_what_a_change_reaches() -> None:
    changed, sharing = touching(CHAIN, ["fc1.weight"])
    assert list(changed) == ["fc1.weight", "fc1.bias", "fc2.weight"]
    assert list(sharing) == ["conv2.weight", "fc1.weight"]


def test_refusals_say_what_is_wrong() -> None:
    plain = {"fc": KeyLayout((4, 3))}
    with pytest.raises(ValueError, match="goes over coupled groups"):
        Channel().grid(plain["fc"])
    with pytest.raises(ValueError, match="goes over coupled groups"):
        score("l1", {"weight": {"fc": torch.ones(4, 3)}}, plain, Channel())
    with pytest.raises(ValueError, match=r"weights of 'b\.weight', for which there are no scores"):
        Channel().pool({"a.weight": torch.ones(4, 5)}, RESIDUAL)
    with pytest.raises(ValueError, match="'z' is not in the layout"):
        Channel().pool({"z": torch.ones(4, 5)}, RESIDUAL)
    with pytest.raises(ValueError, match=r"'a\.weight' have shape \(3,\), but \(4,\)"):
        Channel().expand({"a.weight": torch.ones(3, dtype=torch.bool)}, RESIDUAL)
    hole = {"w": KeyLayout((2,), "group", members=(Member("w", (2, 2), 0, "out", (0, -1)),))}
    with pytest.raises(ValueError, match=r"none of the weights .* is of unit 1; with channel\(all\)"):
        Channel().pool({"w": torch.ones(2, 2)}, hole)
    with pytest.raises(ValueError, match=r"is of unit 1$"):
        Channel("all").pool({"w": torch.ones(2, 2)}, hole)
    with pytest.raises(ValueError, match="has shapes"):
        parameter_layout(
            {"w": KeyLayout((2,), "group", members=(member("w", (2, 2), 0, "out"), member("w", (2, 3), 0, "out")))}
        )
    for within, message in (("row", "each output row has one unit"), (NM(2, 4), "take unit='weight'")):
        with pytest.raises(ValueError, match=message):
            decide(
                criterion="l1",
                unit="channel",
                allocation="global",
                within=within,  # type: ignore[arg-type]
                sparsity=0.5,
                evidence={"weight": _scores(CHAIN)},
                layout=CHAIN,
            )
