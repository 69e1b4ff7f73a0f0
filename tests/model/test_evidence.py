"""Evidence against an independent oracle: one batch at a time, in float64, by hand."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.streaming import StreamingEvidence
from secateur.model.targets import find_targets

WEIGHT = parse_unit("weight")[0]
FILTER = parse_unit("filter")[0]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    conv, head = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(3 * 16, 4)
    return nn.Sequential(conv, nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), head).double()


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 4, (5,), generator=g))
        for _ in range(count)
    ]


def by_hand(net: nn.Module, data: list[tuple[Tensor, Tensor]]) -> list[dict[str, Tensor]]:
    net.eval()
    found = []
    for x, y in data:
        net.zero_grad()
        F.cross_entropy(net(x), y).backward()
        found.append({n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None})
    net.zero_grad()
    return found


def test_signed_absolute_and_squared_gradients_are_means_over_batches():
    net, data = network(), batches()
    gradients = by_hand(network(), data)
    found = collect(
        net, ["grad", "grad_abs", "grad_sq"], find_targets(net), WEIGHT, Source(data, F.cross_entropy, batches=3)
    )
    for name in ("0.weight", "5.weight"):
        stack = torch.stack([g[name] for g in gradients])
        torch.testing.assert_close(found["grad"][name], stack.mean(0))
        torch.testing.assert_close(found["grad_abs"][name], stack.abs().mean(0))
        torch.testing.assert_close(found["grad_sq"][name], stack.square().mean(0))


def test_only_as_many_batches_as_asked_are_read():
    read = []

    def stream():
        for batch in batches(5):
            read.append(1)
            yield batch

    net = network()
    collect(net, ["grad"], find_targets(net), WEIGHT, Source(stream(), F.cross_entropy, batches=2))
    assert len(read) == 2


def test_gates_measure_whole_filters_behind_the_batch_norm():
    """dL/dz for z behind the batch norm is sum(a * dL/da) over the batch norm's output."""
    net, data = network(), batches(2)
    layout = find_targets(net, unit="filter")
    assert list(layout) == ["0.weight"], "the output layer keeps its classes"
    found = collect(net, ["gate_grad_sq"], layout, FILTER, Source(data, F.cross_entropy, batches=2))
    expected = torch.zeros(3, dtype=torch.float64)
    oracle = network().eval()
    for x, y in data:
        a = oracle[1](oracle[0](x)).detach().requires_grad_()
        loss = F.cross_entropy(oracle[2:](a), y)
        (slope,) = torch.autograd.grad(loss, a)
        expected += (a * slope).sum((0, 2, 3)).square() / 2
    torch.testing.assert_close(found["gate_grad_sq"]["0.weight"], expected)


def test_gates_without_batch_norm_stand_at_the_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randint(0, 2, (6,))
    layout = find_targets(net, unit="filter")
    found = collect(net, ["gate_grad_sq"], layout, FILTER, Source((x, y), F.cross_entropy))
    weight, bias = net[0].weight, net[0].bias
    gw, gb = torch.autograd.grad(F.cross_entropy(net(x), y), (weight, bias))
    expected = ((gw * weight).sum(1) + gb * bias).square()
    torch.testing.assert_close(found["gate_grad_sq"]["0.weight"], expected.detach())


def test_a_norm_in_front_of_a_convolution_is_not_its_gate():
    """Pre-activation networks: the gate of a convolution stands behind it, not at the norm before it."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3, padding=1)]
    for width in (4, 6, 4):
        layers += [
            nn.ReLU(),
            nn.BatchNorm2d(layers[-1].out_channels),
            nn.Conv2d(layers[-1].out_channels, width, 3, padding=1),
        ]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 3)).double()
    x, y = torch.randn(5, 2, 4, 4, dtype=torch.float64), torch.randint(0, 3, (5,))
    layout = find_targets(net, unit="filter")
    found = collect(net, ["gate_grad_sq"], layout, FILTER, Source((x, y), F.cross_entropy))["gate_grad_sq"]
    net.eval()
    for name in layout:
        at = int(name.split(".")[0]) + 1
        a = net[:at](x).detach().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(net[at:](a), y), a)
        torch.testing.assert_close(found[name], (a * slope).sum((0, 2, 3)).square().detach())


@pytest.mark.parametrize(("choice", "message"), [({"mode": "foo"}, "'eval' and 'train'"), ({"batches": 0}, "from 1")])
def test_a_source_refuses_what_it_cannot_do(choice: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Source(**choice)  # type: ignore[arg-type]


def test_the_model_is_left_as_it_was():
    net = network().train()
    net[4].eval()
    data = batches(2)
    F.cross_entropy(net(data[0][0]), data[0][1]).backward()
    gradients = {n: p.grad for n, p in net.named_parameters()}
    before = {n: t.clone() for n, t in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    torch.manual_seed(5)
    expected_next = torch.rand(3)
    torch.manual_seed(5)
    kinds = ["grad", "gate_grad_sq"]
    for mode in ("eval", "train"):
        source = Source(data, F.cross_entropy, batches=2, mode=mode)
        collect(net, kinds, find_targets(net, exclude="5"), FILTER, source)
    assert torch.equal(torch.rand(3), expected_next), "the global generator moved"
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
    assert all(p.grad is gradients[n] for n, p in net.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_once(reentrant: bool):
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            return self.second(checkpoint(lambda v: F.relu(self.first(v)), x, use_reentrant=reentrant))

    net = Checkpointed()
    x, y = torch.randn(5, 3), torch.randint(0, 2, (5,))
    kinds = ["grad", "gate_grad_sq"]
    found = collect(net, kinds, find_targets(net), FILTER, Source((x.clone(), y), F.cross_entropy))
    (expected,) = torch.autograd.grad(F.cross_entropy(net.second(F.relu(net.first(x))), y), [net.first.weight])
    torch.testing.assert_close(found["grad"]["first.weight"], expected)
    bias = torch.autograd.grad(F.cross_entropy(net.second(F.relu(net.first(x))), y), [net.first.bias])[0]
    gate = ((expected * net.first.weight).sum(1) + bias * net.first.bias).double().square()
    torch.testing.assert_close(found["gate_grad_sq"]["first.weight"], gate.detach(), rtol=1e-4, atol=1e-9)
    assert net.first.weight.grad is None


def test_batches_of_every_kind():
    class Output:
        def __init__(self, loss: Tensor) -> None:
            self.loss = loss

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, inputs: Tensor, labels: Tensor) -> Output:
            return Output(F.cross_entropy(self.fc(inputs), labels))

    net = Named()
    x, y = torch.randn(4, 3), torch.randint(0, 2, (4,))
    layout = find_targets(net)
    mapping = collect(net, ["grad"], layout, WEIGHT, Source({"inputs": x, "labels": y}))["grad"]["fc.weight"]
    stepped = collect(net, ["grad"], layout, WEIGHT, Source([[x, y, 1]], step=lambda m, b: m(b[0], b[1]).loss))
    torch.testing.assert_close(mapping, stepped["grad"]["fc.weight"])
    with pytest.raises(ValueError, match="a batch is a list of 3"):
        collect(net, ["grad"], layout, WEIGHT, Source([[x, y, 1]], F.cross_entropy))
    with pytest.raises(ValueError, match="loss= is needed"):
        collect(net.fc, ["grad"], find_targets(net.fc), WEIGHT, Source((x, y)))
    with pytest.raises(ValueError, match="not one number"):
        collect(net.fc, ["grad"], find_targets(net.fc), WEIGHT, Source((x, y), lambda o, t: o))
    with pytest.raises(ValueError, match="no batch"):
        collect(net, ["grad"], layout, WEIGHT, Source(iter([]), F.cross_entropy))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("grad", "give data="), ("init", "give init="), ("movement", "sc.Pruner"), ("nonsense", "no collector")],
)
def test_what_is_missing_is_said(kind: str, message: str):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=message):
        collect(net, [kind], find_targets(net), WEIGHT, Source())


def test_init_of_another_shape_is_refused():
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"shape \(3, 2\), not \(2, 2\)"):
        collect(net, ["init"], find_targets(net), WEIGHT, Source(init=nn.Linear(2, 3).state_dict()))


def test_frozen_parameters_have_no_gradient_evidence():
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="does not require gradients"):
        collect(
            net,
            ["grad"],
            find_targets(net),
            WEIGHT,
            Source((torch.randn(3, 2), torch.tensor([0, 1, 0])), F.cross_entropy),
        )


def test_noise_depends_on_seed_and_name_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

    def noise(seed: int, targets: object = None) -> Mapping[str, Tensor]:
        return collect(net, ["noise"], find_targets(net, targets), FILTER, Source(seed=seed))["noise"]  # type: ignore[arg-type]

    assert noise(0)["0.weight"].shape == (4,)
    assert torch.equal(noise(0)["1.weight"], noise(0, "1")["1.weight"])
    assert not torch.equal(noise(0)["0.weight"], noise(1)["0.weight"])


def test_streamed_evidence_is_the_mean_since_the_last_restart():
    stream = StreamingEvidence(["grad", "grad_abs", "grad_sq", "movement"])
    w = torch.tensor([1.0, -2.0])
    seen = [torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 0.5])]
    for g in seen:
        stream.observe("w", w, g)
    found = stream.evidence()
    torch.testing.assert_close(found["grad"]["w"], torch.tensor([-1.0, 1.25]))
    torch.testing.assert_close(found["grad_abs"]["w"], torch.tensor([2.0, 1.25]))
    torch.testing.assert_close(found["grad_sq"]["w"], torch.tensor([5.0, 2.125]))
    torch.testing.assert_close(found["movement"]["w"], torch.tensor([2.0, 5.0]))
    again = StreamingEvidence(stream.kinds)
    again.load_state_dict(stream.state_dict())
    for one in (stream, again):
        one.restart()
        one.observe("w", w, torch.tensor([4.0, 4.0]))
        torch.testing.assert_close(one.evidence()["grad"]["w"], torch.tensor([4.0, 4.0]))
        torch.testing.assert_close(one.evidence()["movement"]["w"], torch.tensor([-2.0, 13.0]))


def test_streaming_refuses_what_it_cannot_see():
    with pytest.raises(ValueError, match="cannot be streamed"):
        StreamingEvidence(["gate_grad_sq"])
    with pytest.raises(ValueError, match="no gradient was seen yet"):
        StreamingEvidence(["grad"]).evidence()
