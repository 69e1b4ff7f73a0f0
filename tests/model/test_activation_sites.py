"""Where activations are read, however they are written and joined; against the same network run by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.oracles.activations import KINDS, activation_statistics, check_statistics, read_activations

SMOOTH = {
    "gelu": (F.gelu, F.gelu),
    "tanh gelu": (lambda x: F.gelu(x, approximate="tanh"),) * 2,
    "silu": (F.silu, F.silu),
    "sigmoid": (torch.sigmoid, lambda x: 1 / (1 + torch.exp(-x))),
    "tanh": (torch.tanh, torch.tanh),
    "hardswish": (F.hardswish, lambda x: x * (x + 3).clamp(0, 6) / 6),
    "leaky relu": (lambda x: F.leaky_relu(x, 0.2), lambda x: torch.where(x > 0, x, 0.2 * x)),
    "elu": (F.elu, F.elu),
    "softplus": (F.softplus, F.softplus),
    "mish": (F.mish, F.mish),
    "relu6": (F.relu6, lambda x: x.clamp(0, 6)),
    "prelu": (nn.PReLU(5), lambda x: torch.where(x > 0, x, 0.25 * x)),
    "swish by hand": (lambda x: x * torch.sigmoid(x), F.silu),
    "quick gelu by hand": (lambda x: torch.sigmoid(1.702 * x) * x, lambda x: x * torch.sigmoid(1.702 * x)),
    "gelu by hand": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), F.gelu),
    "new gelu": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x**3))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "hardswish by hand": (lambda x: x * F.relu6(x + 3) / 6, lambda x: F.hardswish(x) * 6),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_other_activations_and_those_written_activation_statistics(name: str) -> None:
    act, slow = SMOOTH[name]
    net = nn.Sequential(nn.Linear(4, 5), nn.Identity(), nn.Linear(5, 2)).double().eval()
    torch.manual_seed(3)
    for layer in (net[0], net[2]):
        nn.init.normal_(layer.get_parameter("weight"), std=2.0)
    first = net[0]
    if isinstance(act, nn.Module):
        net[1] = act.double()
    else:
        net[1].forward = act  # type: ignore[method-assign]
    data = [torch.randn(6, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)]
    with torch.no_grad():
        parts = [slow(first(x)) for x in data]
    check_statistics(
        read_activations(net, data),
        "0.weight",
        activation_statistics(parts, exact=name in ("hardswish", "relu6", "hardswish by hand")),
    )


class Joins(nn.Module):
    """Two layers that add up, a gated pair, a chunked layer, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
        self.gate, self.up = nn.Linear(6, 4), nn.Linear(6, 4)
        self.halves = nn.Linear(4, 6)
        self.twice = nn.Linear(3, 3)
        self.one = nn.Linear(3, 1)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(x)[-1]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        joined = F.relu(self.b(x) + self.a(x))
        gate, up = F.silu(self.gate(joined)), self.up(joined)
        left, right = self.halves(gate * up).chunk(2, -1)
        left, right = torch.tanh(left), right.relu()
        once = torch.relu(self.twice(left * right))
        again = torch.relu(self.twice(once))
        return joined, gate, up, left, right, once, again, torch.sigmoid(self.one(again))


def test_a_layer_without_activation_is_read_behind_its_norm_and_scale() -> None:
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)).double().eval()
    norm = net[1]
    assert isinstance(norm, nn.BatchNorm1d)
    norm.running_mean = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    data = [torch.randn(5, 3, dtype=torch.float64)]
    found = read_activations(net, data)
    with torch.no_grad():
        check_statistics(found, "0.weight", activation_statistics([net[:2](data[0])], exact=False))


def test_sums_gates_halves_and_layers_called_twice() -> None:
    net = Joins()
    data = [torch.randn(5, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)]
    found = read_activations(net, data)
    with torch.no_grad():
        joined, gate, up, left, right, once, again, one = zip(*(net.parts(x) for x in data), strict=True)
    check_statistics(found, "a.weight", activation_statistics(list(joined)))
    check_statistics(found, "b.weight", activation_statistics(list(joined)))
    check_statistics(found, "gate.weight", activation_statistics(list(gate), exact=False))
    check_statistics(found, "up.weight", activation_statistics(list(up), exact=False))
    check_statistics(
        found, "twice.weight", activation_statistics([torch.cat([p, q]) for p, q in zip(once, again, strict=True)])
    )
    check_statistics(found, "one.weight", activation_statistics(list(one), exact=False))
    halves = [activation_statistics(list(left), exact=False), activation_statistics(list(right))]
    check_statistics(found, "halves.weight", {kind: torch.cat([half[kind] for half in halves]) for kind in KINDS})
