"""Gates per example, of second order and before readers, against a loop over examples in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core import score
from secateur.core.combine import average_ranks
from secateur.core.unit_channel import Channel
from secateur.model.evidence import Source, collect, gate_second
from tests.removal.attention_net import Around, unsettled


def network() -> nn.Sequential:
    torch.manual_seed(0)
    convs = [nn.Conv2d(2, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3)]
    net = nn.Sequential(*convs, nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double().eval()
    with torch.no_grad():
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].weight.uniform_(0.5, 1.5)
    return net


def batches(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (n,), generator=g))
        for n in sizes
    ]


def by_example(net: nn.Sequential, data: list[tuple[Tensor, Tensor]], at: int) -> Tensor:
    """sum over positions of a dL_n/da, of the output of ``net[:at]``, one example at a time ``[N, C]``."""
    rows = []
    for x, y in data:
        for one in range(len(x)):
            a = net[:at](x[one : one + 1]).detach().requires_grad_()
            (slope,) = torch.autograd.grad(F.cross_entropy(net[at:](a), y[one : one + 1]), a)
            rows.append((a * slope).sum((0, 2, 3)).detach())
    return torch.stack(rows)


DATA = batches(5, 3, 1)
BEHIND = {"0.weight": 2, "3.weight": 4}
"""Layer -> how many modules lie before the gate; the first stands behind the batch norm."""


def scores(criterion: str, loss: object = F.cross_entropy, data: object = DATA) -> dict[str, Tensor]:
    return sc.score(network(), criterion, unit="filter", data=data, loss=loss, batches=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda o, y: F.cross_entropy(o, y, reduction="sum")])
def test_gates_of_examples_are_a_loop_over_examples(loss: object) -> None:
    fine, old = scores("gate_taylor_fg", loss), scores("taylor_2017", loss)
    assert list(fine) == list(old) == list(BEHIND)
    for name, at in BEHIND.items():
        slow = by_example(network(), DATA, at)
        torch.testing.assert_close(fine[name], slow.square().mean(0))
        size = slow.abs().mean(0)
        torch.testing.assert_close(old[name], size / size.norm())


def test_behind_a_relu_the_gate_measures_the_activation() -> None:
    for name, at in BEHIND.items():
        slow = by_example(network(), DATA, at + 1).abs().mean(0)
        torch.testing.assert_close(scores("taylor_2017")[name], slow / slow.norm())


def test_a_loss_that_is_no_mean_and_no_sum_over_examples_is_refused() -> None:
    with pytest.raises(ValueError, match=r"given twice is 4 times .* Take gate_taylor"):
        scores("taylor_2017", lambda o, y: F.cross_entropy(o, y, reduction="sum").square())


def test_examples_that_mix_and_labels_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="leave mode='eval'"):
        sc.score(
            network(), "taylor_2017", unit="filter", data=DATA, loss=F.cross_entropy, mode="train"
        )  # batch norms mix
    x, _ = DATA[0]
    with pytest.raises(ValueError, match=r"\(5, 2, 4, 4\) come with labels of shape \(3,\)"):
        scores("taylor_2017", lambda o, y: o.square().mean(), [(x, torch.zeros(3))])


class Rows(nn.Module):
    """A linear layer that sees ``[B * T, C]``, ``[T * B, C]`` or ``[T, B, C]``."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.up, self.down, self.way = nn.Linear(3, 6), nn.Linear(6, 2), way
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        size, length = x.shape[:2]
        x = x if self.way == "runs" else x.transpose(0, 1)
        rows = x if self.way == "times first" else x.flatten(0, 1)
        out = self.down(torch.tanh(self.up(rows)))
        return out.view(size, -1, 2).mean(1) if self.way == "runs" else out.view(length, size, 2).mean(0)


@pytest.mark.parametrize("way", ["runs", "interleaved", "times first"])
def test_rows_of_tokens_belong_to_their_examples(way: str) -> None:
    """8 tokens of 4 examples: the lengths alone do not tell which axis is which."""
    net, x, y = Rows(way), torch.randn(4, 8, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    found = sc.score(net, "gate_taylor_fg", unit="filter", targets="up", data=(x, y), loss=F.cross_entropy)
    slow = []
    for one in range(4):
        a = net.up(x[one]).detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net.down(torch.tanh(a)).mean(0)[None], y[one : one + 1]), a)
        slow.append((a * slope).sum(0))
    torch.testing.assert_close(found["up.weight"], torch.stack(slow).square().mean(0).detach())


def test_examples_that_cannot_be_told_apart_are_refused() -> None:
    class Mixing(Rows):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + x.mean(0))

    x, y = torch.randn(4, 8, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    with pytest.raises(ValueError, match=r"cannot be told apart at 'up\.weight', which sees \(16, 6\)"):
        sc.score(Mixing("runs"), "taylor_2017", unit="filter", targets="up", data=(x, y), loss=F.cross_entropy)


def test_the_second_order_is_what_finite_differences_say() -> None:
    net, data = network(), DATA[:2]
    found = sc.score(net, "gate_taylor_so", unit="filter", data=data, loss=F.cross_entropy, batches=2)
    for name, at in BEHIND.items():
        slow = torch.zeros(len(found[name]), dtype=torch.float64)
        for x, y in data:
            a = net[:at](x).detach()
            for unit in range(len(slow)):
                at_gate = []
                for gate in (1 - 1e-3, 1.0, 1 + 1e-3):
                    gates = torch.ones_like(slow)
                    gates[unit] = gate
                    at_gate.append(float(F.cross_entropy(net[at:](a * gates[:, None, None]), y).detach()))
                low, middle, high = at_gate
                first, second = (high - low) / 2e-3, (high - 2 * middle + low) / 1e-6
                slow[unit] += (-first + second / 2) ** 2 / 2
        torch.testing.assert_close(found[name], slow, rtol=1e-3, atol=1e-8)


def by_hessian(net: nn.Sequential, data: list[tuple[Tensor, Tensor]], at: int) -> Tensor:
    """``mean_b (-g + diag H / 2)^2`` from the whole Hessian of each batch's loss by gates behind ``net[:at]``."""
    found = []
    for x, y in data:
        a = net[:at](x).detach()

        def loss(gates: Tensor, a: Tensor = a, y: Tensor = y) -> Tensor:
            return F.cross_entropy(net[at:](a * gates[:, None, None]), y)

        ones = torch.ones(a.shape[1], dtype=a.dtype, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(ones), ones)
        hessian = torch.autograd.functional.hessian(loss, ones.detach())
        found.append((-slope + hessian.diagonal() / 2).square())
    return torch.stack(found).mean(0).detach()


def wide_network() -> nn.Sequential:
    """35 units: two whole pieces of 16 and a rest, smooth behind the gate so that H is large."""
    torch.manual_seed(4)
    layers = [nn.Conv2d(2, 35, 3, bias=False), nn.BatchNorm2d(35), nn.Tanh(), nn.Flatten(), nn.Linear(140, 3)]
    return nn.Sequential(*layers).double().eval()


@pytest.mark.parametrize("alone", [False, True])
def test_the_second_order_of_several_batches_is_the_diagonal_of_each_ones_hessian(
    alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches of 5, 3 and 1 examples count alike; so do rows of the Hessian one at a time, where vmap cannot."""
    if alone:
        monkeypatch.setattr(gate_second, "_rows", lambda *_: None)
    net = wide_network()
    call = {"unit": "filter", "loss": F.cross_entropy, "data": DATA}
    for count in (2, None):  # None: as many as there are, up to ten
        found = sc.score(net, "gate_taylor_so", batches=count, **call)["0.weight"]  # type: ignore[arg-type]
        torch.testing.assert_close(found, by_hessian(net, DATA[:count], 2))
    assert not torch.allclose(found, by_hessian(net, DATA[:1], 2), rtol=1e-2)
    mean = by_hessian(net, [(torch.cat([x for x, _ in DATA]), torch.cat([y for _, y in DATA]))], 2)
    assert not torch.allclose(found, mean, rtol=1e-2), "squares of the mean derivatives would be another thing"


def test_rows_of_the_hessian_go_together() -> None:
    """35 units in three passes, not in 35."""
    passes: list[int] = []
    net = wide_network()
    net[2].register_full_backward_hook(lambda *_: passes.append(1))
    call = {"unit": "filter", "loss": F.cross_entropy, "data": DATA[:1]}
    sc.score(net, "gate_taylor_so", **call)  # type: ignore[arg-type]
    assert len(passes) < 10


class Stream(nn.Module):
    """Two producers of one stream; inputs [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.a, self.b, self.head = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.a(x) + self.b(x)))


def test_one_tensor_is_one_batch_of_second_order_too():
    """Not as many batches as it has rows."""
    net, x = network(), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    sizes: list[int] = []

    def step(model: nn.Module, batch: Tensor) -> Tensor:
        sizes.append(len(batch))
        return model(batch).square().mean()

    alone, listed = (
        sc.score(net, "gate_taylor_so", unit="filter", targets=["0.weight"], data=data, step=step) for data in (x, [x])
    )
    assert set(sizes) == {3}
    assert torch.equal(alone["0.weight"], listed["0.weight"])


@pytest.mark.parametrize("criterion", ["gate_taylor_fg", "taylor_2017", "gate_taylor_so"])
def test_a_stream_that_several_layers_make_has_their_mean(criterion: str) -> None:
    net, x = Stream(), torch.randn(6, 5, dtype=torch.float64)
    call = {"data": (x, torch.randint(0, 3, (6,))), "loss": F.cross_entropy}
    layers = sc.score(net, criterion, unit="filter", **call)  # type: ignore[arg-type]
    coupled = sc.score(net, criterion, unit="channel", example_inputs=x, **call)  # type: ignore[arg-type]
    torch.testing.assert_close(list(coupled.values()), [(layers["a.weight"] + layers["b.weight"]) / 2])
    assert not torch.allclose(layers["a.weight"], layers["b.weight"])


def test_the_gates_together_with_others_and_none_left_behind() -> None:
    net = network()
    kinds = sc.combine(
        {"taylor_2017": 1.0, "gate_taylor_fg": 1.0, "gate_taylor": 0.5, "apoz": 1.0, "gate_taylor_so": 1}
    )
    together = sc.score(net, kinds, unit="filter", data=DATA, loss=F.cross_entropy, batches=3)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    parts = ["taylor_2017", "gate_taylor_fg", "gate_taylor", "apoz", "gate_taylor_so"]
    alone = {one: scores(one) for one in parts}
    flat = {one: average_ranks(torch.cat(list(found.values()))) for one, found in alone.items()}
    weights = [1.0, 1.0, 0.5, 1.0, 1.0]
    slow = sum(weight * flat[one] for weight, one in zip(weights, parts, strict=True))
    torch.testing.assert_close(torch.cat(list(together.values())), slow)


def heads_by_hand(net: Around, x: Tensor, y: Tensor) -> Tensor:
    """|sum a dL_n/da| of each of 4 heads of 2, one example at a time."""
    inside, rows = net.attention, []
    for one in range(len(x)):
        h = net.before(x[one : one + 1])
        parts = F.linear(h, inside.in_proj_weight, inside.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (4, 2)).transpose(1, 2) for part in parts)
        a = ((q @ k.transpose(-1, -2) / 2**0.5).softmax(-1) @ v).transpose(1, 2).flatten(2).detach().requires_grad_()
        output = net.after(h.detach() + inside.out_proj(a))
        (slope,) = torch.autograd.grad(token_loss(output, y[one : one + 1]), a)
        rows.append((a * slope).unflatten(-1, (4, 2)).sum((0, 1, 3)).abs())
    size = torch.stack(rows).mean(0).detach()
    return size / size.norm()


def token_loss(output: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), labels.flatten())


def test_heads_are_measured_before_the_projection_that_reads_them() -> None:
    net = unsettled(Around()).double()
    x, y = torch.randn(6, 4, 5, dtype=torch.float64), torch.randint(0, 3, (6, 4))
    opened = sc.open_attention(net)
    layout = {n: g.layout() for n, g in sc.groups(opened, example_inputs=x, unit="head").items()}
    assert [key.shape for key in layout.values()] == [(4,)]
    found = collect(opened, ["reader_gate_abs"], layout, Channel(), Source((x, y), token_loss))
    ((_, heads),) = score("head_importance", found, layout, Channel()).items()
    slow = heads_by_hand(net, x, y)
    torch.testing.assert_close(heads, slow)

    call = {"unit": "head", "sparsity": 0.5, "criterion": "head_importance", "data": (x, y), "loss": token_loss}
    small = sc.shrink(opened, example_inputs=x, **call)
    kept = slow.argsort()[2:].sort().values
    columns = torch.stack([2 * kept, 2 * kept + 1], 1).flatten()
    assert torch.equal(small.attention.out_proj.weight, net.attention.out_proj.weight[:, columns])


def test_readers_are_asked_for_coupled_units_alone() -> None:
    with pytest.raises(ValueError, match=r"coupled units .* unit='channel', or heads by sc\.shrink"):
        sc.score(network(), "head_importance", unit="filter", data=DATA, loss=F.cross_entropy)
