"""Channels in another order: the model computes what it did, patterns keep more, and everything follows or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.model.graph.group import Groups
from secateur.model.graph.learned import Learned
from secateur.model.removal import find_removal
from secateur.model.reorder import Reordering
from secateur.train.permute import Permutation


def _seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """In float64, columns of very different sizes next to each other, no statistic at its initial constant."""
    torch.manual_seed(seed)
    model = make().double()
    with torch.no_grad():
        for parameter in model.parameters():
            scale = torch.rand(parameter.shape[1] if parameter.dim() > 1 else 1).double().square() + 0.05
            parameter.mul_(scale.sort().values.view(1, -1, *[1] * (parameter.dim() - 2)) if parameter.dim() > 1 else 1)
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
            elif buffer.is_floating_point():
                buffer.normal_()
    return model.eval()


def _linear() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 10), nn.ReLU(), nn.Linear(10, 3))


class Residual(nn.Module):
    """A stem, two blocks on one stream of channels, a depthwise layer and a head over pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.one = nn.Sequential(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 1))
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
                                 nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))  # fmt: skip
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.one(x))
        return self.head(F.relu(x + self.two(x)).mean((2, 3)))


def _odd() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(2, 16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 9, 5),
    )  # fmt: skip


class Two(nn.Module):
    """Two makers side by side, in front of one reader."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = nn.Linear(5, 8), nn.Linear(5, 6), nn.Linear(14, 7)
        self.memory, self.out = nn.LSTM(7, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.memory(F.relu(self.last(torch.cat([self.left(x).relu(), self.right(x).relu()], -1))))[0])


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (_linear, lambda: torch.randn(4, 6).double()),
    "residual": (Residual, lambda: torch.randn(3, 3, 6, 5).double()),
    "odd": (_odd, lambda: torch.randn(2, 3, 6, 6).double()),
    "two": (Two, lambda: torch.randn(2, 3, 5).double()),
}


def _oracle(model: nn.Module, name: str, scores: Tensor, pattern: sc.NM) -> float:
    """What n:m keeps of a layer's scores: inputs of every output and place of the kernel, in groups of neighbours."""
    owner = model.get_submodule(name.rpartition(".")[0])
    groups = getattr(owner, "groups", 1)
    if isinstance(owner, nn.ConvTranspose2d):
        rows = [part.movedim(0, -1).reshape(-1, part.shape[0]) for part in scores.chunk(groups)]
    else:
        rows = [scores.movedim(1, -1).reshape(-1, scores.shape[1])]
    total = 0.0
    for row in torch.cat(rows).double().tolist():
        for start in range(0, len(row), pattern.of):
            group = sorted(row[start : start + pattern.of], reverse=True)
            total += sum(group if len(group) < pattern.of else group[: pattern.keep])
    return total


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(list(NETS)), st.sampled_from([sc.NM(2, 4), sc.NM(1, 2), sc.NM(1, 4)]), st.integers(0, 9),
    st.sampled_from(["magnitude", "ria"]),
)  # fmt: skip
def test_the_output_stays_and_no_less_is_kept(net: str, pattern: sc.NM, seed: int, criterion: str) -> None:
    make, inputs = NETS[net]
    model, x = _seeded(make, seed), inputs()
    data = None if criterion == "magnitude" else x
    before = {k: v.clone() for k, v in model.state_dict().items()}
    old, y = sc.score(model, criterion, data=data), model(x)
    done = sc.permute_channels(model, pattern, example_inputs=x, criterion=criterion, data=data)
    assert torch.allclose(model(x), y, rtol=1e-9, atol=1e-12)
    new = sc.score(model, criterion, data=data)
    kept = [sum(_oracle(model, name, some[name], pattern) for name in some) for some in (old, new)]
    assert kept[1] >= kept[0]
    assert (done.before, done.after) == (pytest.approx(kept[0]), pytest.approx(kept[1]))
    assert all(sorted(order) == list(range(len(order))) for order in done.orders.values())
    for name, tensor in model.state_dict().items():  # the same numbers, in other places
        assert torch.equal(tensor.flatten().sort().values, before[name].flatten().sort().values)
    done.undo()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(("net", "moved"), [
    ("linear", {"0.weight", "3.weight"}), ("residual", {"stem.0.weight", "one.0.weight"}),
    ("odd", {"0.weight", "3.weight"}), ("two", {"left.weight", "memory.weight_ih_l0"}),
])  # fmt: skip
def test_what_is_free_is_moved_and_gains(net: str, moved: set[str]) -> None:
    make, inputs = NETS[net]
    model, x = _seeded(make), inputs()
    done = sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    assert moved <= set(done.orders), done.left
    assert done.after > 1.005 * done.before
    masks = sc.prune(model, within=sc.NM(2, 4))
    kept = sum(float(model.get_parameter(name).detach().abs()[mask].sum()) for name, mask in masks.items())
    assert kept == pytest.approx(done.after)


def test_what_was_planted_is_found() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6)), torch.randn(5, 4)
    with torch.no_grad():
        net[2].weight.copy_(torch.rand(6, 16) + 5.0 * (torch.arange(16) < 8))
    best = float(net[2].weight.detach()[:, :8].sum())
    done = sc.permute_channels(net, "2 of 4", example_inputs=x, targets="2.weight")
    assert done.after == pytest.approx(best)
    assert done.before < 0.6 * best
    assert "2 of 4 keeps of the scores of\n  2.weight" in str(done)
    assert done.to_record()["orders"] == {"0.weight": list(done.orders["0.weight"])}
    assert "2.weight out" in done.left


def test_training_goes_on_as_if_nothing_had_been_moved() -> None:
    x = torch.randn(8, 3, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    models = [_seeded(Residual) for _ in range(2)]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.05) for model in models]

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model.train()
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        model(x).square().mean().backward()  # gradients are there when channels move
        model.eval()

    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    done = sc.permute_channels(models[1], sc.NM(2, 4), example_inputs=x, optimizer=optimizers[1])
    assert done.orders
    for model, optimizer in zip(models, optimizers, strict=True):
        optimizer.step()
        train(model, optimizer)
    assert torch.allclose(models[0](x), models[1](x), rtol=1e-7)
    done.undo(optimizer=optimizers[1])
    for name, tensor in models[1].state_dict().items():
        assert torch.allclose(tensor, models[0].state_dict()[name], rtol=1e-6, atol=1e-9)
    state = optimizers[0].state[models[0].stem[0].weight]["exp_avg"]
    assert torch.allclose(optimizers[1].state[models[1].stem[0].weight]["exp_avg"], state, rtol=1e-6, atol=1e-9)


def test_what_cannot_move_says_why() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.register_buffer("scale", torch.rand(8), persistent=False)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.a(x)) * self.scale
            x = self.attention(F.relu(self.b(x)), x, x, need_weights=False)[0]
            return self.d(F.relu(self.c(x)))

    model, x = _seeded(Odd), torch.randn(2, 3, 4).double()
    y = model(x)
    done = sc.permute_channels(model, sc.NM(2, 4), example_inputs=x, exclude="d.weight")
    assert "the buffer 'scale' is not in the state dict" in done.left["a.weight"]
    assert done.left["c.weight"] == "no layer that is scored reads it in groups of 4"
    assert done.left["attention.in_proj_weight"] == "no better order was found"  # heads of four places, one group each
    assert "output of the model" in done.left["d.weight out"]
    assert torch.allclose(model(x), y)


def test_wrong_groups_are_caught_on_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Learned.groups

    def wrong(self: Learned, *args: Any, **kwargs: Any) -> Groups:
        found = known(self, *args, **kwargs)
        if "stem.0.weight" not in found:
            return found
        group = found["stem.0.weight"]
        members = tuple(member for member in group.members if member.name != "stem.1.running_mean")
        return replace(found, found={**found, "stem.0.weight": replace(group, members=members)})

    monkeypatch.setattr(Learned, "groups", wrong)
    model, x = _seeded(Residual), torch.randn(3, 3, 6, 5).double()
    y = model(x)
    done = sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    assert "its units cannot change places: output 0 differs from the model's by" in done.left["stem.0.weight"]
    assert set(done.orders) == {"one.0.weight"}
    assert torch.allclose(model(x), y)


def test_nothing_is_changed_where_the_output_would(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = _seeded(Residual), torch.randn(3, 3, 6, 5).double()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(Reordering, "problem", lambda self, orders: "output 0 differs" if "0" not in orders else "")
    with pytest.raises(ValueError, match="nothing was changed: in the new order of its channels output 0 differs"):
        sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def _permuted() -> tuple[nn.Module, Tensor, Permutation]:
    model, x = _seeded(_linear), torch.randn(4, 6).double()
    return model, x, sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)


def test_refusals() -> None:
    model, x, done = _permuted()
    masks = sc.prune(model, within=sc.NM(2, 4))
    with pytest.raises(ValueError, match=r"has masks, .* permute channels before pruning, or call masks\.undo"):
        sc.permute_channels(model, sc.NM(2, 4), example_inputs=x)
    with pytest.raises(ValueError, match="put its channels back before pruning"):
        done.undo()
    masks.undo()
    done.undo()
    with pytest.raises(ValueError, match=r"give a pattern, NM\(keep=2, of=4\) or '2 of 4'"):
        sc.permute_channels(model, "row", example_inputs=x)
    with pytest.raises(ValueError, match="sweeps=-1"):
        sc.permute_channels(model, example_inputs=x, sweeps=-1)
    with pytest.raises(ValueError, match="give data="):
        sc.permute_channels(model, example_inputs=x, criterion="ria")
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="none of the optimizer's parameters belongs to this model"):
        sc.permute_channels(model, example_inputs=x, optimizer=other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    _, _, lost = _permuted()
    with pytest.raises(ValueError, match="has been deleted"):
        lost.undo()


def test_data_parallel_wrappers_are_refused() -> None:
    model = _seeded(_linear)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with pytest.raises(ValueError, match=r"inside DistributedDataParallel.*permute model\.module before"):
            sc.permute_channels(wrapped, example_inputs=torch.randn(4, 6).double())
    finally:
        torch.distributed.destroy_process_group()


def test_files_of_a_permuted_model_are_those_of_its_class(tmp_path: Any) -> None:
    model, x, done = _permuted()
    assert find_removal(model) is None
    sc.save(model, tmp_path / "net.safetensors")
    fresh = _linear().double().eval()
    sc.load(tmp_path / "net.safetensors", into=fresh)
    assert torch.equal(fresh(x), model(x))
    fresh.load_state_dict(model.state_dict())
    small = sc.shrink(model, example_inputs=x, units={"3.weight": [1, 4]})
    y = small(x)
    again = sc.permute_channels(small, sc.NM(2, 4), example_inputs=x)
    assert done.orders
    assert again.orders
    assert torch.allclose(small(x), y)
    sc.save(small, tmp_path / "small.safetensors")
    sc.load(tmp_path / "small.safetensors", into=fresh)
    assert torch.equal(fresh(x), small(x))
