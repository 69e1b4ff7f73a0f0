"""All evidence that reads batches shares one forward and one backward pass per batch, and is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.targets import find_targets

FILTER = parse_unit("filter")[0]
KINDS = ["grad", "grad_sq", "gate_grad_sq", "activation_mean", "activation_zeros"]


class Counting(nn.Module):
    """conv, batch norm, ReLU, linear; counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 4)
        self.sizes: list[int] = []
        self.backwards = 0
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        h = F.relu(self.norm(self.conv(x)))
        if h.requires_grad:
            h.register_hook(self._count)
        return self.head(h.flatten(1))

    def _count(self, gradient: Tensor) -> None:
        self.backwards += 1


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 2, 4, 4, generator=g, dtype=torch.float64), torch.randint(0, 4, (5,), generator=g))
        for _ in range(count)
    ]


def gathered(net: nn.Module, kinds: list[str]) -> dict[str, dict[str, Tensor]]:
    layout = find_targets(net, unit="filter")
    return collect(net, kinds, layout, FILTER, Source(batches(), F.cross_entropy, batches=3))


def test_one_forward_and_one_backward_per_batch_for_all() -> None:
    net = Counting()
    gathered(net, KINDS)
    looked = 2  # where gates go, by the first batch; and where activations are, by two of its rows
    assert net.sizes.count(5) == 3 + 1
    assert len(net.sizes) == 3 + looked
    assert net.backwards == 3


@pytest.mark.parametrize("kind", KINDS)
def test_together_is_as_alone(kind: str) -> None:
    together, alone = gathered(Counting(), KINDS)[kind], gathered(Counting(), [kind])[kind]
    assert list(together) == list(alone)
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor)
        assert float(tensor.abs().sum()) > 0


def test_activations_alone_need_no_loss_and_no_graph() -> None:
    net = Counting()
    layout = find_targets(net, unit="filter")
    found = collect(net, ["activation_mean"], layout, FILTER, Source([x for x, _ in batches()], batches=3))
    torch.testing.assert_close(found["activation_mean"], gathered(Counting(), KINDS)["activation_mean"])
    assert net.backwards == 0


def test_a_gate_whose_layer_is_called_twice_later_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.head(self.first(h) if float(x.sum()) < 0 else h)

    net, ones = Twice(), torch.ones(4, 3)
    data = [(ones, torch.zeros(4).long()), (-ones, torch.zeros(4).long())]
    with pytest.raises(ValueError, match=r"'first\.weight' is called 2 times in one pass"):
        collect(
            net, ["gate_grad_sq"], find_targets(net, unit="filter"), FILTER, Source(data, F.cross_entropy, batches=2)
        )
    assert not net.first._forward_hooks, "the gates are gone"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "cross_entropy"}, r"loss='cross_entropy': give a function of output and labels"),
        ({"step": 3}, "step=3: give a function of model and batch"),
    ],
)
def test_functions_that_are_none(given: dict[str, Any], said: str) -> None:
    net = nn.Linear(4, 2)
    with pytest.raises(ValueError, match=said):
        sc.score(net, "snip", data=(torch.randn(3, 4), torch.tensor([0, 1, 1])), **given)
    with pytest.raises(ValueError, match=said):
        sc.prune(net, 0.5, criterion="wanda", data=torch.randn(3, 4), **given)
    assert sc.find_masks(net) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": nn.CrossEntropyLoss}, r"loss=CrossEntropyLoss is a class: give CrossEntropyLoss\(\)"),
        ({"data": 3}, "data=3: give a loader, a list of batches, or one batch"),
        ({"seed": "a"}, "seed='a': give a whole number"),
        ({"seed": True}, "seed=True: give a whole number"),
        ({"init": nn.Linear(2, 2), "criterion": "movement"}, "init= is a Linear: give a state dict"),
        ({"targets": 3}, "targets=3: give a name, a glob"),
        ({"exclude": 3}, "exclude=3: give a name, a glob"),
        ({"allocation": "ERK"}, "unknown allocation 'ERK': did you mean 'erk'"),
        ({"allocation": "knapsack"}, r"a knapsack needs costs; give sc\.knapsack"),
    ],
)
def test_slips_are_named_before_anything_is_read(given: dict[str, Any], said: str) -> None:
    net = nn.Linear(4, 2)
    before = net.weight.detach().clone()
    call: dict[str, Any] = {
        "criterion": "snip",
        "loss": F.cross_entropy,
        "data": (torch.randn(3, 4), torch.tensor([0, 1, 1])),
    }
    with pytest.raises(ValueError, match=said):
        sc.prune(net, 0.5, **call | given)
    assert sc.find_masks(net) is None
    assert torch.equal(net.weight, before)


def test_names_may_come_from_any_iterable() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    masks = sc.prune(net, 0.5, targets=(name for name in ("1.weight",)))
    assert list(masks) == ["1.weight"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dense": nn.Linear(4, 2)}, "dense= is a Linear: give a state dict"),
        ({"solver": None}, "unknown solver None"),
        ({"batches": 0}, "batches=0: how many batches to read, a whole number from 1"),
        ({"step": "x"}, "step='x': give a function of model and batch"),
    ],
)
def test_slips_of_a_reconstruction(given: dict[str, Any], said: str) -> None:
    net = nn.Linear(4, 2)
    sc.prune(net, 0.5)
    before = net.weight.detach().clone()
    with pytest.raises(ValueError, match=said):
        sc.reconstruct(net, **{"data": torch.randn(8, 4)} | given)
    assert torch.equal(net.weight, before)


def test_a_scan_wants_a_function() -> None:
    with pytest.raises(ValueError, match="evaluate=3: give a function of the model"):
        sc.sensitivity(nn.Linear(4, 2), 3)  # type: ignore[arg-type]
