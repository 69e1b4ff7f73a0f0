"""Laws of the criteria that read activations, through ``sc.score`` on small networks drawn at random.

What does not hold is left out on purpose: scaling one unit changes which of a correlated pair goes (the one with the
smaller variance), its bins in the range of the layer, and the ridge that discriminants share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc

F64 = torch.float64
few = settings(deadline=None, max_examples=5)

MEAN, ZEROS, RANK = "mean_activation", "apoz", "hrank"
CRITERIA = [MEAN, ZEROS, RANK, "activation_entropy(bins=5)", "activation_correlation", "lda", "lda(pool='mean')"]
SCALE_FREE = [ZEROS, RANK, "activation_entropy(bins=5, range='unit')", "lda(ridge=0.0)", "lda(ratio='icc', ridge=0.0)"]
"""Of each unit by itself."""


@dataclass(frozen=True)
class Case:
    """One layer with a ReLU behind it, and labelled images."""

    weight: Tensor
    bias: Tensor
    batches: tuple[tuple[Tensor, Tensor], ...]

    def scores(self, criterion: str) -> Tensor:
        outputs, inputs, *kernel = self.weight.shape
        conv = nn.Conv2d(inputs, outputs, kernel[0], padding=kernel[0] // 2)
        net = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(outputs, 2, 1)).double()
        with torch.no_grad():
            conv.weight.copy_(self.weight)
            conv.bias.copy_(self.bias)
        data = list(self.batches)
        return sc.score(net, criterion, unit="filter", targets="0", data=data, batches=len(data))["0.weight"]

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        images, labels = zip(*self.batches, strict=True)
        return torch.cat(images), torch.cat(labels)


@st.composite
def cases(draw: st.DrawFn, kernel: int = 3) -> Case:
    """At least six images, of two or three classes; one unit may be dead."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    channels, classes = draw(st.integers(2, 5)), draw(st.integers(2, 3))
    weight = torch.randn(channels, 2, kernel, kernel, generator=generator, dtype=F64)
    bias = 0.3 * torch.randn(channels, generator=generator, dtype=F64)
    if draw(st.booleans()):
        bias[draw(st.integers(0, channels - 1))] = -100.0
    sizes = [6, *draw(st.lists(st.integers(1, 4), max_size=2))]
    images = torch.randn(sum(sizes), 2, 4, 5, generator=generator, dtype=F64)
    labels = torch.arange(sum(sizes)) % classes
    return Case(weight, bias, tuple(zip(images.split(sizes), labels.split(sizes), strict=True)))


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(data=st.data(), case=cases())
def test_permuting_units_permutes_scores(criterion: str, data: st.DataObject, case: Case) -> None:
    order = data.draw(st.permutations(range(len(case.bias))))
    turned = replace(case, weight=case.weight[order], bias=case.bias[order])
    same(turned.scores(criterion), case.scores(criterion)[order])


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(data=st.data(), case=cases())
def test_neither_order_nor_split_of_the_batches_matters(criterion: str, data: st.DataObject, case: Case) -> None:
    images, labels = case.data
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(labels) - 1), max_size=3)))
    sizes = [end - start for start, end in zip([0, *cuts], [*cuts, len(labels)], strict=True)]
    other = tuple(zip(images[order].split(sizes), labels[order].split(sizes), strict=True))
    same(replace(case, batches=other).scores(criterion), case.scores(criterion))


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(case=cases(), inside=st.booleans())
def test_seeing_the_data_twice_changes_nothing(criterion: str, case: Case, inside: bool) -> None:
    doubled = tuple((torch.cat([x, x]), torch.cat([y, y])) for x, y in case.batches)
    twice = replace(case, batches=doubled if inside else case.batches * 2)
    same(twice.scores(criterion), case.scores(criterion))


@pytest.mark.parametrize("criterion", [MEAN, *SCALE_FREE])
@few
@given(data=st.data(), case=cases(), power=st.integers(-8, 8))
def test_scaling_a_unit_scales_its_mean_and_nothing_else(
    criterion: str, data: st.DataObject, case: Case, power: int
) -> None:
    factor = torch.ones(len(case.bias), dtype=F64)
    factor[data.draw(st.integers(0, len(factor) - 1))] = 2.0**power
    scaled = replace(case, weight=case.weight * factor[:, None, None, None], bias=case.bias * factor)
    before = case.scores(criterion)
    same(scaled.scores(criterion), before * factor if criterion == MEAN else before)


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(case=cases(), power=st.integers(-8, 8))
def test_scaling_the_whole_layer_scales_means_and_nothing_else(criterion: str, case: Case, power: int) -> None:
    scaled = replace(case, weight=case.weight * 2.0**power, bias=case.bias * 2.0**power)
    before = case.scores(criterion)
    same(scaled.scores(criterion), before * 2.0**power if criterion == MEAN else before)


@pytest.mark.parametrize("criterion", CRITERIA)
@few
@given(data=st.data(), case=cases(kernel=1))
def test_rows_of_the_images_may_be_exchanged_where_windows_are_single_pixels(
    criterion: str, data: st.DataObject, case: Case
) -> None:
    rows = data.draw(st.permutations(range(4)))
    moved = tuple((x[:, :, rows], y) for x, y in case.batches)
    same(replace(case, batches=moved).scores(criterion), case.scores(criterion))


@pytest.mark.parametrize("criterion", ["lda", "lda(pool='mean')", "lda(full=True)"])
@few
@given(data=st.data(), case=cases())
def test_classes_have_no_order_and_no_size(criterion: str, data: st.DataObject, case: Case) -> None:
    names = torch.tensor(data.draw(st.lists(st.integers(-5, 100), min_size=3, max_size=3, unique=True)))
    named = tuple((x, names[y]) for x, y in case.batches)
    same(replace(case, batches=named).scores(criterion), case.scores(criterion))


@few
@given(case=cases())
def test_scores_lie_in_their_ranges_and_what_never_fires_goes_first(case: Case) -> None:
    most = {ZEROS: 1.0, RANK: 4.0, "activation_entropy(bins=5)": math.log(5), "activation_correlation": 2.0}
    most |= {"lda(ratio='icc')": 1.0, MEAN: math.inf}
    dead = case.bias < -50
    for criterion, limit in most.items():
        found = case.scores(criterion)
        assert bool(((found >= 0) & (found <= limit + 1e-12)).all()), criterion
        assert bool((found[dead] == 0).all()), criterion
        assert bool((found[~dead] > 0).any()), criterion


# -- padding --------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """Every token by itself."""

    def __init__(self, generator: torch.Generator, act: nn.Module) -> None:
        super().__init__()
        self.table, self.up, self.act, self.down = nn.Embedding(9, 3), nn.Linear(3, 4), act, nn.Linear(4, 2)
        self.double()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=F64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        return self.down(self.act(self.up(self.table(input_ids))))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
@few
@given(data=st.data(), seed=st.integers(0, 2**20), more=st.integers(0, 3))
def test_padding_tokens_do_not_count(act: nn.Module, criterion: str, data: st.DataObject, seed: int, more: int) -> None:
    """Whatever stands there, and however long the batch is padded."""
    generator = torch.Generator().manual_seed(seed)
    net = Tokens(generator, act)
    lengths = torch.tensor(data.draw(st.lists(st.integers(1, 5), min_size=8, max_size=8)))
    ids = torch.randint(0, 9, (8, 5), generator=generator)
    masks = [(torch.arange(width) < lengths[:, None]).long() for width in (5, 5 + more)]
    noise = torch.randint(0, 9, (8, 5 + more), generator=generator)
    noise[:, :5] = torch.where(masks[0].bool(), ids, noise[:, :5])
    found = []
    for tokens, mask in zip((ids, noise), masks, strict=True):
        batch: dict[str, Any] = {"input_ids": tokens, "attention_mask": mask, "labels": torch.arange(8) % 2}
        found.append(sc.score(net, criterion, unit="filter", targets="up", data=batch)["up.weight"])
    same(*found)
