"""Multiply-adds against a brute-force count of products, and counting by masks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur.measure import count, fraction_to_keep, table
from secateur.measure.macs import count_uses


def linear_products(layer: nn.Module, shape: tuple[int, ...]) -> int:
    """How many products layer(x) sums up: with all weights and inputs 1 and no padding lost, its sum."""
    ones = copy.deepcopy(layer).double()
    with torch.no_grad():
        for parameter in ones.parameters():
            parameter.fill_(1.0)
        return int(ones(torch.ones(shape, dtype=torch.float64)).sum())


LAYERS = [
    (nn.Conv2d(4, 6, 3, bias=False), (1, 4, 7, 9)),
    (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), bias=False), (1, 4, 7, 9)),
    (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (1, 4, 9, 9)),
    (nn.Conv2d(4, 8, 3, groups=2, bias=False), (1, 4, 7, 7)),
    (nn.Conv2d(4, 8, 3, groups=4, bias=False), (1, 4, 7, 7)),
    (nn.Conv1d(3, 5, 4, stride=2, bias=False), (1, 3, 11)),
    (nn.Conv3d(2, 3, 2, bias=False), (1, 2, 4, 5, 3)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (1, 4, 5, 5)),
    (nn.ConvTranspose1d(2, 3, 2, bias=False), (1, 2, 5)),
    (nn.Linear(5, 3, bias=False), (1, 5)),
    (nn.Linear(5, 3, bias=False), (1, 4, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=[str(layer)[:60] for layer, _ in LAYERS])
def test_one_layer_counts_its_products_and_a_mask_removes_its_share(layer: nn.Module, shape: tuple[int, ...]) -> None:
    found = count(layer, torch.zeros(3, *shape[1:]))
    assert found.macs == linear_products(layer, shape)
    mask = torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    masked = count(layer, torch.zeros(shape), masks={"weight": mask})
    assert masked.macs == found.macs
    assert masked.macs_kept * mask.numel() == masked.macs * int(mask.sum())
    assert masked.kept == int(mask.sum())


def test_same_padding_counts_every_output_position() -> None:
    assert count(nn.Conv2d(1, 1, 3, padding=1), torch.zeros(1, 1, 5, 5)).macs == 25 * 9


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_counts_projections_and_both_products(batch_first: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    class SelfAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = layer

        def forward(self, x: Tensor) -> Tensor:
            x = x if batch_first else x.transpose(0, 1)
            return self.attention(x, x, value=x, need_weights=False)[0]

    length, width = 5, 8
    found = count(SelfAttention(), torch.zeros(2, length, width))
    assert found.macs == 4 * length * width**2 + 2 * length**2 * width
    mask = torch.ones(3 * width, width, dtype=torch.bool)
    mask[:width] = False  # the query projection
    masked = count(SelfAttention(), torch.zeros(2, length, width), masks={"attention.in_proj_weight": mask})
    assert found.macs - masked.macs_kept == length * width**2


def test_cross_attention_with_other_widths_and_an_extra_key() -> None:
    layer = nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True, batch_first=True)
    query, key, value = torch.zeros(1, 3, 8), torch.zeros(1, 5, 4), torch.zeros(1, 5, 6)
    projections = 3 * 8 * 8 + 5 * 4 * 8 + 5 * 6 * 8 + 3 * 8 * 8
    assert count(layer, (query, key, value)).macs == projections + 2 * 3 * (5 + 1) * 8
    assert count(layer, {"query": query, "key": key, "value": value}).macs == projections + 2 * 3 * 6 * 8


def test_an_encoder_layer_counts_its_linear_layers_too() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    attention = 4 * 5 * 64 + 2 * 25 * 8
    assert count(layer, torch.zeros(1, 5, 8)).macs == attention + 2 * 5 * 8 * 16


def test_padded_tokens_are_counted_although_the_encoder_would_leave_them_out() -> None:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)
    padding = torch.tensor([[False, False, False, True, True]])
    found = count(encoder, {"src": torch.zeros(1, 5, 8), "src_key_padding_mask": padding})
    assert found.macs == 4 * 5 * 64 + 2 * 25 * 8 + 2 * 5 * 8 * 16


class Shared(nn.Module):
    """One layer called three times, an embedding tied to the output, and a matrix no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.unknown = nn.GRUCell(4, 4)
        self.calls = 0

    def forward(self, index: Tensor) -> Tensor:
        self.calls += 1
        x = self.embed(index) + torch.arange(4)
        for _ in range(3):
            x = self.mix(x)
        return self.head(x)


def test_shared_modules_count_each_call_and_tied_weights_once() -> None:
    net = Shared()
    found = count(net, torch.zeros(2, 5, dtype=torch.long))
    rows = {row.name: row for row in found.layers}
    assert rows["mix"].macs == 3 * 5 * 16
    assert rows["head"].macs == 5 * 28
    assert (rows["embed"].parameters, rows["head"].parameters) == (28, 0)
    assert found.parameters == sum(p.numel() for p in net.parameters())
    assert found.uncounted == ("unknown",)
    assert net.calls == 0  # only a copy without values ran


def test_a_mask_on_either_name_of_a_tied_weight_is_the_same() -> None:
    net, x = Shared(), torch.zeros(1, 5, dtype=torch.long)
    mask = torch.arange(28).view(7, 4) < 10
    found = [count(net, x, masks={name: mask}) for name in ("embed.weight", "head.weight")]
    assert found[0] == found[1]
    assert found[0].parameters - found[0].kept == 18
    assert found[0].macs - found[0].macs_kept == 5 * 18


def test_a_forward_that_reads_values_is_run_for_real_and_counts_the_same() -> None:
    class Reads(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            assert float(x.sum()) == 0.0
            return super().forward(x)

    layers = (nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten(), nn.Linear(18, 2))
    net = Reads(*layers).train()
    before = torch.random.get_rng_state()
    assert count(net, torch.zeros(4, 1, 5, 5)).macs == count(nn.Sequential(*layers), torch.zeros(4, 1, 5, 5)).macs
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_forward_that_fixes_the_batch_size_is_told_so() -> None:
    class Fixed(nn.Module):
        def __init__(self, features: int) -> None:
            super().__init__()
            self.fc = nn.Linear(features, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.view(4, 6))

    net = Fixed(6)
    for inputs in (torch.ones(4, 2, 3), [torch.ones(4, 2, 3)], {"x": torch.ones(4, 2, 3)}):
        with pytest.raises(ValueError, match=r"Fixed runs on all of example_inputs but not on the first sample.*view"):
            count_uses(net, inputs)
    for other, inputs in ((Fixed(5), torch.ones(4, 2, 3)), (net, torch.ones(1, 2, 3))):
        with pytest.raises(RuntimeError, match="is invalid for input of size 6"):  # the batch fails too: torch's words
            count_uses(other, inputs)


def test_biases_and_norms_under_masks_are_counted_as_removed() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    half = torch.tensor([True, True, False, False])
    found = count(net, torch.zeros(1, 4), masks={"0.weight": half[:, None].expand(4, 4), "0.bias": half})
    assert (found.parameters, found.kept) == (28, 18)
    assert [(row.parameters, row.kept) for row in found.layers] == [(20, 10), (8, 8)]


def test_zeros_do_not_count_as_removed_except_for_shrinkbench() -> None:
    net = nn.Linear(4, 4)
    nn.init.zeros_(net.bias)
    assert count(net, torch.zeros(1, 4)).kept == 20
    assert count(net, torch.zeros(1, 4), compat="shrinkbench").kept == 16


def test_shrinkbench_ignores_groups_padding_and_tokens() -> None:
    conv = nn.Conv2d(4, 8, 3, stride=2, groups=2)
    assert count(conv, torch.zeros(1, 4, 7, 7), compat="shrinkbench").macs == 4 * 4 * 8 * 4 * 9
    linear = nn.Linear(5, 3)
    assert count(linear, torch.zeros(1, 4, 5), compat="shrinkbench").macs == 15
    attention = nn.MultiheadAttention(4, 1)
    assert count(attention, (torch.zeros(1, 2, 4),) * 3, compat="shrinkbench").macs == 0


@pytest.mark.parametrize(
    ("net", "x", "says"),
    [
        (nn.Conv2d(1, 1, 3, dilation=2), torch.zeros(1, 1, 7, 7), "dilation"),
        (Shared(), torch.zeros(1, 5, dtype=torch.long), "called twice"),
    ],
)
def test_shrinkbench_refuses_what_shrinkbench_asserts(net: nn.Module, x: Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        count(net, x, compat="shrinkbench")


def test_wrong_masks_and_words_are_refused() -> None:
    net, x = nn.Linear(4, 3), torch.zeros(1, 4)
    with pytest.raises(ValueError, match=r"'wieght'.*no such parameter"):
        count(net, x, masks={"wieght": torch.ones(3, 4)})
    with pytest.raises(ValueError, match=r"shape \(4, 3\), the parameter has \(3, 4\)"):
        count(net, x, masks={"weight": torch.ones(4, 3)})
    with pytest.raises(ValueError, match="'sb'"):
        count_uses(net, x, compat="sb")  # type: ignore[arg-type]


def test_wrappers_are_looked_through() -> None:
    net = nn.Sequential(nn.Linear(4, 3))
    assert count(nn.DataParallel(net), torch.zeros(1, 4)).layers == count(net, torch.zeros(1, 4)).layers


def test_shares_sum_to_one() -> None:
    rows = table(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)), torch.zeros(1, 4))
    assert sum(row.parameters for row in rows) == pytest.approx(1)
    assert [row.macs for row in rows] == pytest.approx([12 / 27, 15 / 27])


@pytest.mark.parametrize(("compression", "says"), [(0.5, "at least 1"), (300, r"below 264"), (0, "at least 1")])
def test_a_compression_out_of_reach_is_refused(compression: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fraction_to_keep(compression, total=266_610, prunable=265_600)
