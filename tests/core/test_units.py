from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from secateur.core import UNITS, parse_unit, unit_name, unit_sizes
from secateur.types import NM, KeyLayout, Unit
from tests.oracles.core_oracles import as_list, expand_mask, members, pool_scores

LAYOUTS = {
    "linear": KeyLayout((5, 7)),
    "embedding": KeyLayout((6, 3), kind="embedding", role="embedding"),
    "conv1d": KeyLayout((4, 3, 3), kind="conv"),
    "conv2d": KeyLayout((4, 3, 2, 3), kind="conv"),
    "conv3d": KeyLayout((2, 3, 2, 2, 3), kind="conv"),
    "grouped": KeyLayout((6, 2, 3, 2), kind="conv", groups=2),
    "depthwise": KeyLayout((4, 1, 3, 3), kind="conv", groups=4, role="depthwise"),
    "transposed": KeyLayout((3, 4, 2, 3), kind="conv_transpose"),
    "transposed_grouped": KeyLayout((6, 2, 2, 3), kind="conv_transpose", groups=3),
}
SPECS = ["weight", "row", "column", "kernel", "filter", "in_channel", "layer", "block(2, 3)", "block(4, 1)"]


def _oracle(spec: str, layout: KeyLayout) -> dict[tuple[int, ...], list[int]]:
    tile = {"block(2, 3)": (2, 3), "block(4, 1)": (4, 1)}.get(spec, (1, 1))
    return members(spec.split("(", maxsplit=1)[0], layout, tile)


def test_every_unit_is_tested_here() -> None:
    assert {spec.split("(")[0] for spec in SPECS} | {"channel"} == set(UNITS)  # channel: test_channel.py


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
def test_grid_pool_and_expand_against_the_definition(spec: str, name: str) -> None:
    layout = {"p": LAYOUTS[name]}
    unit, within = parse_unit(spec)
    groups = _oracle(spec, LAYOUTS[name])
    torch.manual_seed(0)
    scores = torch.randn(LAYOUTS[name].shape, dtype=torch.float64)
    grid = unit.grid(LAYOUTS[name])
    assert within == "tensor"
    assert grid == tuple(1 + max(index[axis] for index in groups) for axis in range(len(grid)))
    for reduce in ("mean", "sum", "l2", "rms", "max"):
        given = scores if reduce in ("mean", "sum", "max") else scores.abs()
        pooled = unit.pool({"p": given}, layout, reduce)["p"]
        assert pooled.shape == grid
        assert pooled.flatten().tolist() == pytest.approx(pool_scores(given, groups, reduce), abs=1e-12)
    kept = torch.rand(grid) < 0.5
    mask = unit.expand({"p": kept}, layout)["p"]
    assert mask.shape == LAYOUTS[name].shape
    assert mask.is_contiguous()
    assert as_list(mask) == expand_mask(as_list(kept), groups, scores.numel())


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("spec", SPECS)
def test_pooling_a_mask_says_which_units_are_whole(spec: str, name: str) -> None:
    layout = {"p": LAYOUTS[name]}
    unit, _ = parse_unit(spec)
    kept = torch.ones(unit.grid(LAYOUTS[name]), dtype=torch.bool)
    mask = unit.expand({"p": kept}, layout)["p"].clone()
    mask.view(-1)[0] = False  # one missing member is enough
    pooled = unit.pool({"p": mask}, layout)["p"]
    assert pooled.dtype == torch.bool
    assert int((~pooled).sum()) == 1


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_filters_and_in_channels_are_what_torch_convolves(groups: int, transposed: bool) -> None:
    torch.manual_seed(1)
    outputs, inputs = 4, 8
    x = torch.randn(2, inputs, 5, 5, dtype=torch.float64)
    if transposed:
        weight = torch.randn(inputs, outputs // groups, 3, 3, dtype=torch.float64)
        layout = KeyLayout(tuple(weight.shape), "conv_transpose", groups)
        run = F.conv_transpose2d
    else:
        weight = torch.randn(outputs, inputs // groups, 3, 3, dtype=torch.float64)
        layout = KeyLayout(tuple(weight.shape), "conv", groups)
        run = F.conv2d
    dense = run(x, weight, groups=groups)

    gone = torch.ones(outputs, dtype=torch.bool)
    gone[2] = False
    mask = parse_unit("filter")[0].expand({"p": gone}, {"p": layout})["p"]
    sparse = run(x, weight * mask, groups=groups)
    assert torch.count_nonzero(sparse[:, 2]) == 0
    assert torch.equal(sparse[:, [0, 1, 3]], dense[:, [0, 1, 3]])

    gone = torch.ones(inputs, dtype=torch.bool)
    gone[5] = False
    mask = parse_unit("in_channel")[0].expand({"p": gone}, {"p": layout})["p"]
    sparse = run(x, weight * mask, groups=groups)
    blind = x.clone()
    blind[:, 5] = 0.0
    assert torch.allclose(sparse, run(blind, weight, groups=groups))
    assert not torch.allclose(sparse, dense)


def test_specs_round_trip() -> None:
    for spec in SPECS:
        unit, _ = parse_unit(spec)
        assert unit.spec == spec
        assert parse_unit(unit) == (unit, "tensor")
        assert isinstance(unit, Unit)
        assert unit_name(unit) == spec.split("(")[0]


def test_n_of_m_and_the_ambiguous_colon() -> None:
    weight, within = parse_unit("2 of 4")
    assert (weight.spec, within) == ("weight", NM(2, 4))
    assert parse_unit(NM(1, 4))[1] == NM(1, 4)
    with pytest.raises(ValueError, match="write '2 of 4'"):
        parse_unit("2:4")
    with pytest.raises(ValueError, match="1 <= keep < of"):
        parse_unit("4 of 4")


@pytest.mark.parametrize("value", ["block", "block(2)", "block(0, 1)", "block(2, 2.0)", "filter(3)", "filtre", 7])
def test_wrong_units_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"block|filter|unit"):
        parse_unit(value)  # type: ignore[arg-type]


def test_wrong_shapes_names_and_reductions_are_refused() -> None:
    unit, _ = parse_unit("kernel")
    layout = {"conv": LAYOUTS["conv2d"]}
    with pytest.raises(ValueError, match=r"'conv' have shape \(4, 3\), but \(4, 3, 2, 3\)"):
        unit.pool({"conv": torch.zeros(4, 3)}, layout)
    with pytest.raises(ValueError, match="'cnov' is not in the layout"):
        unit.pool({"cnov": torch.zeros(4, 3, 2, 3)}, layout)
    with pytest.raises(ValueError, match=r"unit masks of 'conv' have shape"):
        unit.expand({"conv": torch.ones(4, dtype=torch.bool)}, layout)
    with pytest.raises(ValueError, match="reduce='median' is unknown"):
        unit.pool({"conv": torch.zeros(4, 3, 2, 3)}, layout, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups"):
        unit.grid(KeyLayout((4, 3, 2, 2), "conv", groups=3))
    with pytest.raises(ValueError, match="at least two axes"):
        unit.grid(KeyLayout((4,)))


def test_half_precision_is_pooled_in_float32() -> None:
    layout = {"p": KeyLayout((1, 4096))}
    ones = {"p": torch.ones(1, 4096, dtype=torch.bfloat16)}
    total = parse_unit("filter")[0].pool(ones, layout, "sum")["p"]
    assert total.dtype == torch.float32
    assert total.tolist() == [4096.0]
    tiny = {"p": torch.full((1, 4), 1e-30)}
    assert parse_unit("filter")[0].pool(tiny, {"p": KeyLayout((1, 4))}, "l2")["p"].item() == pytest.approx(2e-30)
    assert parse_unit("block(1, 4)")[0].pool(tiny, {"p": KeyLayout((1, 4))}, "rms")["p"].item() == pytest.approx(1e-30)


def test_sizes() -> None:
    layout = {"a": LAYOUTS["conv2d"], "b": LAYOUTS["transposed"]}
    assert unit_sizes(parse_unit("filter")[0], layout) == {"a": 4, "b": 4}
    assert unit_sizes(parse_unit("weight")[0], layout) == {"a": 72, "b": 72}
