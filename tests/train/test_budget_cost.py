"""What a removal will cost, from shapes alone: the same figures as counting the smaller model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.benchmark.models import LeNet5, Residual, ResNet20
from secateur.measure.sizes import plain_bytes
from secateur.model.graph.group import Group
from secateur.train.cost import CostModel, file_bytes
from secateur.train.ranking import Ranking
from secateur.train.widths import allowed_widths, multiples_of
from secateur.types import Member
from tests.train.budget_nets import Attentive, Mixed, Tied, mlp, real

CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "mlp": (mlp, torch.zeros(2, 6)),
    "LeNet": (LeNet5, torch.zeros(2, 1, 28, 28)),
    "residual": (Residual, torch.zeros(2, 1, 8, 8)),
    "ResNet-20": (ResNet20, torch.zeros(2, 3, 32, 32)),
    "mixed": (Mixed, torch.zeros(2, 3, 6, 6)),
    "attention": (Attentive, torch.zeros(2, 7, 5)),
    "tied": (Tied, torch.zeros(2, 5, dtype=torch.long)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_predicted_cost_is_the_counted_one(name: str, share: float) -> None:
    make, x = CASES[name]
    model = make().eval()
    groups = sc.groups(model, x)
    costs = CostModel(model, groups, x)
    generator = torch.Generator().manual_seed(3)
    keep = {key: torch.rand(group.units, generator=generator) >= share for key, group in groups.items()}
    for mask in keep.values():
        mask[0] = True
    gone = {key: torch.nonzero(~mask).flatten().tolist() for key, mask in keep.items()}
    small = sc.shrink(model, units=gone, example_inputs=x)
    found, figures = costs(keep), real(small, x)
    assert {"params": found.params, "macs": found.macs, "bytes": found.bytes} == figures
    assert (share == 0) == (figures == real(model, x))
    assert {key: tuple(value.shape) for key, value in small.named_parameters()}.items() <= costs.shapes(keep).items()


def test_costs_by_tensor_add_up() -> None:
    model, x = LeNet5(), torch.zeros(1, 1, 28, 28)
    costs = CostModel(model, sc.groups(model, x), x)
    assert sum(costs.macs_by_tensor({}).values()) == costs({}).macs == 2_293_000
    assert sum(costs.parameters_by_tensor({}).values()) == costs({}).params == 431_080


def test_attention_costs_what_its_queries_keep() -> None:
    model, x = nn.MultiheadAttention(16, 4, batch_first=True), torch.zeros(1, 7, 16)
    owner = tuple(row % 16 // 4 for row in range(48))  # heads, in the rows of queries, keys and values
    members = (
        Member("in_proj_weight", (48, 16), 0, "out", owner),
        Member("in_proj_bias", (48,), 0, "follows", owner),
        Member("out_proj.weight", (16, 16), 1, "in", owner[:16]),
    )
    costs = CostModel(model, {"heads": Group("heads", 4, members, "head")}, (x, x, x))
    assert costs({}).macs == 7 * 16 * 64 + 2 * 7 * 7 * 16
    assert costs({"heads": torch.arange(4) < 3}).macs == 7 * 12 * 64 + 2 * 7 * 7 * 12
    assert costs({"heads": torch.arange(4) < 3}).params == 36 * 17 + 16 * 12 + 16


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_file_bytes_are_those_of_the_file(dtype: torch.dtype) -> None:
    net = nn.Linear(7, 5)
    net.register_buffer("more", torch.zeros(3, 2, dtype=dtype))
    net.register_buffer("scalar", torch.zeros((), dtype=dtype))
    entries = [(name, tuple(value.shape), value.dtype) for name, value in net.state_dict().items()]
    assert file_bytes(entries) == len(plain_bytes(net))


def _group(width: int, fixed: int = 0, per_unit: int = 1) -> Group:
    owner = (-1,) * fixed + tuple(unit for unit in range(width) for _ in range(per_unit))
    return Group("a.weight", width, (Member("a.weight", (len(owner), 3), 0, "out", owner),))


@pytest.mark.parametrize(
    ("group", "multiple", "expected"),
    [
        (_group(5), 1, [1, 1, 2, 3, 4, 5]),
        (_group(10), 4, [4, 4, 4, 4, 4, 4, 4, 4, 8, 8, 10]),
        (_group(3), 8, [3, 3, 3, 3]),
        (_group(6, fixed=2), 4, [2, 2, 2, 2, 2, 2, 6]),
        (_group(4, per_unit=2), 4, [2, 2, 2, 2, 4]),
    ],
)
def test_widths_are_multiples_of_the_layer_that_makes_the_units(
    group: Group, multiple: int, expected: list[int]
) -> None:
    assert allowed_widths(group, multiple) == expected


def test_the_first_glob_that_matches_counts() -> None:
    groups = {name: Group(name, 8, ()) for name in ("layer1.conv.weight", "layer2.conv.weight", "head.weight")}
    found = multiples_of({"layer2.conv": 4, "layer*": 16}, groups)
    assert found == {"layer1.conv.weight": 16, "layer2.conv.weight": 4, "head.weight": 1}
    with pytest.raises(ValueError, match=r"layer1\.convv.*Did you mean 'layer1\.conv\.weight'"):
        multiples_of({"layer1.convv": 8}, groups)
    with pytest.raises(ValueError, match="whole numbers from 1"):
        multiples_of({"*": 0}, groups)
    with pytest.raises(ValueError, match="'measured'"):
        multiples_of("nearest", groups)


def test_scores_of_other_scales_compare_by_the_mean_of_their_group() -> None:
    scores = {"a": torch.tensor([0.5, 1.5]), "b": torch.tensor([1000.0, 400.0, 1600.0])}
    widths = {"a": [1, 1, 2], "b": [1, 1, 2, 3]}
    ranking = Ranking(scores, {}, widths)
    first = [{name: mask.tolist() for name, mask in ranking.keep(step).items()} for step in (1, 2)]
    assert first[0] == {"a": [True, True], "b": [True, False, True]}
    assert first[1] == {"a": [False, True], "b": [True, False, True]}


def test_uniform_takes_equal_shares_and_equal_groups_together() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(size, generator=generator) for name, size in (("a", 8), ("b", 8), ("c", 16))}
    ranking = Ranking(scores, {}, {name: list(range(len(score) + 1)) for name, score in scores.items()}, "uniform")
    for step in range(ranking.steps):
        a, b, c = (int(mask.sum()) for mask in ranking.keep(step).values())
        assert a == b
        assert abs(c / 2 - a) <= 1


def test_scores_that_are_all_zero_or_negative_have_an_order() -> None:
    scores = {"zero": torch.zeros(3), "minus": torch.tensor([-1.0, -3.0, -2.0])}
    ranking = Ranking(scores, {}, {name: [1, 1, 2, 3] for name in scores})
    assert ranking.keep(1)["minus"].tolist() == [True, False, True]
    assert ranking.keep(2)["minus"].tolist() == [True, False, False]
    assert ranking.keep(4)["zero"].tolist() == [False, True, True]


def test_rounding_gives_back_what_it_took_too_much() -> None:
    scores = {"cheap": torch.arange(1.0, 9.0), "dear": torch.arange(1.0, 9.0) + 0.1}
    widths = {name: [4] * 8 + [8] for name in scores}
    ranking = Ranking(scores, {}, widths)

    def holds(keep: Mapping[str, Tensor]) -> bool:
        return int(keep["cheap"].sum()) + 10 * int(keep["dear"].sum()) <= 50

    step = ranking.first(holds)
    assert step is not None
    assert [int(mask.sum()) for mask in ranking.keep(step).values()] == [4, 4]
    assert [int(mask.sum()) for mask in ranking.refilled(step, holds).values()] == [8, 4]
