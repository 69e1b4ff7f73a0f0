"""``prune(merge=True)`` by activations: kept channels stand in for removed ones by least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import secateur as sc
from secateur.core import CRITERIA
from secateur.model.merge_activations import merge_activations


def planted() -> tuple[Any, Tensor]:
    """conv, norm, ReLU, conv, ReLU, head; behind the ReLU 3 = 2 x 0, 4 = 1 + 0.7 on the data, and 5 is constant."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU())
    net = net.extend([nn.Flatten(), nn.Linear(4 * 9, 3)]).double()
    x = torch.randn(20, 2, 5, 5).double()
    with torch.no_grad():
        weight, bias = net[0].weight, net[0].bias
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
        mean, size = net[1].running_mean, (net[1].running_var + net[1].eps).sqrt()
        bias[1] = 9.0
        for copied, original, factor, more in ((3, 0, 2.0, 0.0), (4, 1, 1.0, 0.7)):
            times = factor * size[copied] / size[original]
            weight[copied], bias[copied] = times * weight[original], times * (bias[original] - mean[original])
            bias[copied] += mean[copied] + more * size[copied]
        weight[5], bias[5] = 0.0, mean[5] + 1.5
    return net, x


def call(x: Tensor) -> dict[str, Any]:
    options = {"unit": "channel", "targets": "0", "data": [x], "example_inputs": x[:2]}
    return {"criterion": "activation_correlation", **options}


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(net: nn.Module, old: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, old[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("training", [False, True])
def test_planted_copies_merge_exactly_and_come_back(training: bool) -> None:
    net, x = planted()
    whole, old = net.eval()(x), state(net)
    net.train(training)
    masks = sc.prune(net, 3 / 6, merge=True, **call(x))
    kept = masks.unit_masks["0.weight"]
    assert net.training == training
    assert int(kept[[0, 3]].sum()) == int(kept[[1, 4]].sum()) == int(kept[2]) == 1
    torch.testing.assert_close(net.eval()(x), whole)
    small = sc.shrink(net, example_inputs=x[:2])
    assert small[3].weight.shape[1] == 3
    torch.testing.assert_close(small(x), whole)
    masks.undo()
    assert same(net, old)
    plain = sc.prune(net, 3 / 6, **call(x))
    assert (net(x) - whole).abs().max() > 1e-3
    assert plain.unit_masks["0.weight"].equal(kept)


@pytest.mark.parametrize("count", [3, 4])
def test_it_is_what_the_separate_call_does(count: int) -> None:
    net, x = planted()
    apart, masks = sc.prune(net, count / 6, inplace=False, **call(x))
    merge_activations(masks, [x])
    old = state(net)
    merged, own = sc.prune(net, count / 6, merge=True, inplace=False, **call(x))
    assert same(net, old)
    assert sc.find_masks(net) is None
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, apart.state_dict()[name], rtol=0, atol=1e-12)
    own.undo()
    assert same(merged, old)


def third(weight: Tensor) -> Tensor:
    """Lowest for unit 2."""
    return (torch.arange(len(weight)) != 2).to(weight)[:, None, None, None].expand(weight.shape)


def test_what_was_gone_before_hands_nothing_on_and_stays_gone() -> None:
    net, x = planted()
    old = state(net)
    first = sc.prune(net, 1 / 6, **{**call(x), "criterion": third, "data": None})
    assert first.unit_masks["0.weight"].tolist() == [True, True, False, True, True, True]
    whole = net.eval()(x)
    masks = sc.prune(net, 4 / 6, merge=True, **call(x))
    assert masks is first
    assert not bool(masks.unit_masks["0.weight"][2])
    assert int(masks.unit_masks["0.weight"].sum()) == 2
    torch.testing.assert_close(net(x), whole)  # of the model as it was found
    masks.undo()
    assert same(net, old)


def test_merging_again_and_in_rounds() -> None:
    net, x = planted()
    whole, old = net.eval()(x), state(net)
    sc.prune(net, 1 / 6, merge=True, **call(x))
    sc.prune(net, 2 / 6, merge=True, **call(x))
    masks = sc.prune(net, 3 / 6, merge=True, rounds=2, **call(x))
    assert int(masks.unit_masks["0.weight"].sum()) == 3
    torch.testing.assert_close(net(x), whole)
    masks.undo()
    assert same(net, old)


def test_batches_of_a_generator_are_read_for_scores_and_fits() -> None:
    net, x = planted()
    whole, seen = net.eval()(x), list[int]()

    def batches() -> Any:
        for number, batch in enumerate(x.split(5)):
            seen.append(number)
            yield batch

    pruned, _ = sc.prune(net, 3 / 6, merge=True, inplace=False, **{**call(x), "data": batches(), "batches": 3})
    assert seen == [0, 1, 2]
    torch.testing.assert_close(pruned(x), whole)


def test_a_step_for_batches_of_another_shape() -> None:
    net, x = planted()
    whole = net.eval()(x)
    options = {**call(x), "data": [{"picture": x}], "step": lambda model, batch: model(batch["picture"])}
    sc.prune(net, 3 / 6, merge=True, **options)
    torch.testing.assert_close(net(x), whole)


def without_data(net: nn.Module, options: dict[str, Any]) -> str:
    del options["data"]
    return "data="


def without_its_own_data(net: nn.Module, options: dict[str, Any]) -> str:
    del options["data"]
    options["criterion"] = replace(CRITERIA["cosine"], merge=None, fit=CRITERIA["activation_correlation"].fit)
    return "merged by what layers read: give data="


def broken_later(net: nn.Module, options: dict[str, Any]) -> str:
    calls: list[int] = []

    def step(model: nn.Module, batch: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) > 1:
            raise ValueError("the second pass fails")
        return model(batch)

    options["step"] = step
    return "the second pass fails"


def not_finite(net: nn.Module, options: dict[str, Any]) -> str:
    fit: Any = CRITERIA["activation_correlation"].fit

    def endless(*given: Tensor) -> Any:
        fits = fit(*given)
        return replace(fits, beta=fits.beta / 0)

    options["criterion"] = replace(CRITERIA["activation_correlation"], fit=endless)
    return "not finite; nothing was changed"


def by_filter(net: nn.Module, options: dict[str, Any]) -> str:
    options |= {"unit": "filter"}
    return "take unit='channel'"


@pytest.mark.parametrize("spoil", [without_data, without_its_own_data, broken_later, not_finite, by_filter])
def test_a_failure_says_why_and_leaves_the_model_as_it_was(spoil: Callable[[nn.Module, dict[str, Any]], str]) -> None:
    net, x = planted()
    old, options = state(net), call(x)
    said = spoil(net, options)
    with pytest.raises(ValueError, match=said):
        sc.prune(net, 3 / 6, merge=True, **options)
    assert same(net, old)
    assert sc.find_masks(net) is None
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


class Added(nn.Module):
    def __init__(self, reader: nn.Module | None) -> None:
        super().__init__()
        self.a, self.b, self.reader = nn.Conv1d(2, 6, 1), nn.Conv1d(2, 3, 1), reader

    def forward(self, x: Tensor) -> Tensor:
        made = torch.relu(self.a(x))
        return self.b(x) + (made.sum(1, keepdim=True) if self.reader is None else self.reader(made))


@pytest.mark.parametrize(
    ("reader", "said"), [(None, "'a.weight' is read by no weight"), (nn.ConvTranspose1d(6, 3, 1), "ConvTranspose1d")]
)
def test_readers_that_cannot_be_watched_are_named(reader: nn.Module | None, said: str) -> None:
    net, x = Added(reader), torch.randn(5, 2, 4)
    old = state(net)
    with pytest.raises(ValueError, match=said):
        sc.prune(net, 0.5, merge=True, **{**call(x), "targets": "a"})
    assert same(net, old)
    assert sc.find_masks(net) is None


def test_sharded_readers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = planted()
    monkeypatch.setattr("secateur.model.merge_activations.is_sharded", lambda tensor: True)
    with pytest.raises(ValueError, match=r"'3\.weight' is sharded; merge before fully_shard"):
        sc.prune(net, 3 / 6, merge=True, **call(x))
    assert sc.find_masks(net) is None


def test_processes_that_would_fit_to_their_own_data() -> None:
    net, x = planted()

    class Parallel(DistributedDataParallel):
        def __init__(self, module: nn.Module) -> None:
            nn.Module.__init__(self)
            self.module = module

    with pytest.raises(ValueError, match="prune before wrapping the model"):
        sc.prune(Parallel(net), 3 / 6, merge=True, **call(x))


class Beside(nn.Module):
    """Two layers side by side in front of one reader, over tokens of which some are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.reader = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.reader(torch.relu(torch.cat([self.a(x), self.b(x)], -1)))


def test_groups_side_by_side_in_front_of_one_reader_are_merged_both() -> None:
    torch.manual_seed(0)
    net, x = Beside().double(), torch.randn(30, 3).double()
    with torch.no_grad():
        for layer in (net.a, net.b):
            layer.weight[3], layer.bias[3] = layer.weight[1], layer.bias[1]
            layer.weight[2], layer.bias[2] = 0.0, 1.0  # into the bias
    whole, old = net(x), state(net)
    options = {**call(x), "targets": None, "allocation": "uniform"}
    masks = sc.prune(net, 0.5, merge=True, **options)
    assert [int(mask.sum()) for mask in masks.unit_masks.values()] == [2, 2]
    torch.testing.assert_close(net(x), whole)
    masks.undo()
    assert same(net, old)


def test_padding_is_left_out_of_fits() -> None:
    torch.manual_seed(0)
    net, x, mask = Beside().double(), torch.randn(6, 5, 3).double(), torch.ones(6, 5, dtype=torch.int64)
    x[..., 2], mask[:, 3:] = 0.0, 0
    x[:, 3:, 2] = 9.0 * torch.randn(6, 2).double()  # what only padding tells apart
    with torch.no_grad():
        net.a.weight[3], net.a.bias[3] = net.a.weight[1], net.a.bias[1]
        net.a.weight[3, 2] += 1.0
    tokens = {"x": x, "attention_mask": mask}
    whole = net(**tokens)
    options = {**call(x), "targets": "a", "data": [tokens], "example_inputs": tokens}
    masks = sc.prune(net, 1 / 4, merge=True, **options)
    assert int(masks.unit_masks["a.weight"][[1, 3]].sum()) == 1
    torch.testing.assert_close(net(**tokens)[:, :3], whole[:, :3])
