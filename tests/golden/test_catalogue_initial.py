"""The catalogue's worked numbers and hard tests of pruning before training (4.1 to 4.8), by the public functions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core import SCHEDULES

F64 = torch.float64


def layer(weight: list[list[float]]) -> nn.Linear:
    made = nn.Linear(len(weight[0]), len(weight), bias=False, dtype=F64)
    made.weight.data.copy_(torch.tensor(weight, dtype=F64))
    return made


def test_w12_the_three_classic_mistakes_of_the_fisher() -> None:
    """Loss w . x has the gradient x: samples with the catalogue's gradients."""
    net, x = layer([[1.0, 2.0]]), torch.tensor([[0.5, -0.1], [-0.5, 0.3], [0.4, 0.1]], dtype=F64)
    found = sc.score(net, "fisher", data=(x, torch.zeros(3)), loss=lambda output, y: output.mean())["weight"]
    assert found.flatten().tolist() == pytest.approx([0.22, 4 * 0.0366667], abs=1e-6)
    square_of_mean, last = x.mean(0).square(), x[-1].square()
    assert square_of_mean.tolist() == pytest.approx([0.017778, 0.01], abs=1e-6)
    assert last.tolist() == pytest.approx([0.16, 0.01], abs=1e-6)


def test_w14_grasp_on_a_quadratic() -> None:
    h = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.4], [0.0, -0.4, 3.0]], dtype=F64)
    b = torch.tensor([1.0, -0.5, 0.2], dtype=F64)
    net = layer([[0.6, -1.0, 0.4]])

    def step(model: Any, batch: Any) -> Tensor:
        w = model.weight.flatten()
        return 0.5 * w @ h @ w - b @ w

    found = sc.score(net, "grasp", data=[0], step=step)["weight"].flatten()
    assert found.tolist() == pytest.approx([-0.468, 1.07, 1.7376])
    masks = sc.prune(net, 1 / 3, criterion="grasp", data=[0], step=step)
    assert masks["weight"].flatten().tolist() == [False, True, True]


def test_w15_synflow_conserves_r_in_every_layer() -> None:
    net = nn.Sequential(layer([[1.0, -2.0], [3.0, 0.5]]), nn.ReLU(), layer([[-1.0, 2.0]]))
    found = sc.score(net, "synflow")
    assert found["0.weight"].tolist() == [[1.0, 2.0], [6.0, 1.0]]
    assert found["2.weight"].tolist() == [[3.0, 7.0]]
    assert found["0.weight"].sum() == found["2.weight"].sum() == 10.0


def test_w15_and_w16_schedules() -> None:
    keep = SCHEDULES["geometric"].function
    assert [round(1 - keep(k / 100, 0.0, 0.99), 5) for k in (1, 10, 50, 100)] == [0.95499, 0.63096, 0.1, 0.01]
    expected = [0.63096, 0.39811, 0.25119, 0.15849, 0.1, 0.0631, 0.03981, 0.02512, 0.01585, 0.01]
    assert [round(1 - keep(t / 10, 0.0, 0.99), 5) for t in range(1, 11)] == expected


@pytest.mark.parametrize(("steps", "expected"), [(1, 2.88), (3, 1.179648)])
@pytest.mark.parametrize("criterion", ["prospr", "prospr_gate"])
def test_w17_prospr_in_one_dimension(criterion: str, steps: int, expected: float) -> None:
    """L = w^2, a = 2, eta = 0.1: s = a (1 - eta a)^(2 M) w^2."""
    net = nn.Sequential(layer([[1.5]]), nn.Identity(), layer([[1.0]]))
    net[2].requires_grad_(False)

    def step(model: Any, batch: Any) -> Tensor:
        return model[0].weight.square().sum()

    found = sc.score(net, criterion, unit="filter", targets="0.weight", data=[0], step=step, batches=steps + 1)[
        "0.weight"
    ]
    assert found.item() == pytest.approx(expected)


# -- hard tests of 4.8 ----------------------------------------------------------------------------------------


def clusters(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 20, generator=g) * 1.2
    y = torch.randint(0, 5, (600,), generator=g)
    return centres[y] + torch.randn(600, 20, generator=g), y


def mlp(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))


def gradient_norm(net: nn.Module, data: tuple[Tensor, Tensor], masks: Any = None) -> float:
    names = ["0.weight", "2.weight", "4.weight"]
    loss = F.cross_entropy(net(data[0]) / 200.0, data[1])
    made = torch.autograd.grad(loss, [net.get_parameter(name) for name in names])
    kept = [torch.ones_like(g) if masks is None else masks[name] for name, g in zip(names, made, strict=True)]
    return sum(float((g * mask).square().sum()) for g, mask in zip(made, kept, strict=True))


def reversed_grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    return -weight * hessian_gradient


def unsigned_grasp(weight: Tensor, hessian_gradient: Tensor) -> Tensor:
    return (weight * hessian_gradient).abs()


def tempered(output: Tensor, labels: Tensor) -> Tensor:
    """The script of the catalogue divides the logits for SNIP too."""
    return F.cross_entropy(output / 200.0, labels)


PUBLISHED = [  # seed -> GraSP, its absolute value, SNIP, GraSP reversed
    (1.7283, 0.5643, 0.2398, 0.0036),
    (1.5248, 0.5055, 0.2801, 0.0017),
    (1.1631, 0.4484, 0.1872, 0.0013),
    (1.3684, 0.4163, 0.2250, 0.0037),
    (1.3014, 0.5264, 0.3769, 0.0015),
]


@pytest.mark.parametrize("seed", range(5))
def test_p1_what_pruning_leaves_of_the_gradient_tells_the_sign_of_grasp(seed: int) -> None:
    """The catalogue's own data, networks and batch, all five seeds: its ordering, and its numbers to the last digit."""
    data, ratios = clusters(seed), []
    for criterion in ("grasp", unsigned_grasp, "snip", "random", reversed_grasp):
        net = mlp(seed)
        dense = gradient_norm(net, data)
        loss = tempered if criterion == "snip" else F.cross_entropy  # the evidence of GraSP divides by itself
        masks = sc.prune(net, 0.8, criterion=criterion, data=data, loss=loss, min_density=None)
        ratios.append(gradient_norm(net, data, masks) / dense)
    right, unsigned, snip, random, wrong = ratios
    assert right > 1 > unsigned > snip > random > wrong
    assert [right, unsigned, snip, wrong] == pytest.approx(PUBLISHED[seed], abs=6e-5)


def lenet(biases: bool) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    for module in net[::2]:
        if not biases:
            nn.init.zeros_(module.bias)
    return net


@pytest.mark.parametrize(
    ("criterion", "rounds", "sparsity", "kept", "effective"),
    [
        ("magnitude", None, 0.99, [0, 2208, 454], 0),
        ("snip", None, 0.99, [162, 2045, 455], 1170),
        ("synflow", None, 0.99, [1321, 675, 666], 2662),
        ("synflow", 1, 0.99, [0, 1695, 967], 0),
        ("magnitude", None, 0.999, [0, 0, 266], 0),
        ("snip", None, 0.999, [0, 58, 208], 0),
        ("synflow", None, 0.999, [129, 37, 100], 264),
        ("synflow", 1, 0.999, [0, 0, 266], 0),
    ],
)
def test_p3_layer_collapse_of_lenet_300_100(
    criterion: str, rounds: int | None, sparsity: float, kept: list[int], effective: int
) -> None:
    net = lenet(biases=criterion != "synflow")
    given: dict[str, Any] = {}
    if criterion == "snip":
        net_rng = lenet(biases=True)  # the script drew its data right behind the network
        assert torch.equal(net_rng[0].weight, net[0].weight)
        given = {"data": (torch.randn(100, 784), torch.randint(0, 10, (100,))), "loss": F.cross_entropy}
    masks = sc.prune(net, sparsity, criterion=criterion, rounds=rounds, min_density=None, **given)
    counts = [masks.kept(name) for name in masks]
    assert sum(counts) == sum(kept)
    assert counts == kept
    assert sc.effective(net).effective == effective


def test_p3_random_with_the_densities_of_erdos_renyi_keeps_every_layer() -> None:
    net = lenet(biases=True)
    masks = sc.prune(net, 0.99, criterion="random", allocation="erk", min_density=None)
    counts = [masks.kept(name) for name in masks]
    assert sum(counts) == 2662
    assert all(count > 100 for count in counts)


def test_p2_trained_networks_order_the_criteria() -> None:
    """Three seeds: large final weights matter, small ones do not, random and initial are between.

    Gradients vanish where training has converged: what reads them alone fails on some seeds.
    """
    ends: dict[str, list[float]] = {}
    for seed in range(3):
        (x, y), net = clusters(seed), mlp(seed)
        init = {n: t.clone() for n, t in net.state_dict().items()}
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(150):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
        given = {"init": init, "data": list(zip(x.split(10), y.split(10), strict=True)), "batches": 60}
        for name in (
            "large_final",
            "magnitude_increase",
            "movement",
            "large_init",
            "random",
            "small_final",
            "fisher",
            "snip",
        ):
            _, masks = sc.prune(
                net, 0.7, criterion=name, loss=F.cross_entropy, inplace=False, min_density=None, **given
            )
            with sc.masked(net, masks), torch.no_grad():
                ends.setdefault(name, []).append(float((net(x).argmax(1) == y).float().mean()))
    assert min(ends["large_final"]) >= 0.998
    assert min(ends["magnitude_increase"]) >= 0.99
    assert min(ends["movement"]) >= 0.99
    assert max(ends["small_final"]) < 0.3
    for random, initial in zip(ends["random"], ends["large_init"], strict=True):
        assert 0.2 <= random < initial <= 1.0
    assert min(ends["fisher"]) < 0.9 > min(ends["snip"]), "the trap is there"


def test_p3_random_weights_keep_the_layers_proportions_and_lose_their_paths() -> None:
    """One draw of the catalogue kept [2354, 300, 8] of the weights at density .01, 149 of them on a path."""
    paths = []
    for seed in range(5):
        net = lenet(biases=True)
        masks = sc.prune(net, 0.99, criterion="random", seed=seed, min_density=None)
        for name, size in zip(masks, (235_200, 30_000, 1_000), strict=True):
            assert abs(masks.kept(name) - size / 100) < 4 * (size * 0.01 * 0.99) ** 0.5
        paths.append(sc.effective(net).effective)
        sc.prune(net, 0.999, criterion="random", seed=seed, min_density=None)
        assert sc.effective(net).effective == 0
    assert all(20 < path < 500 for path in paths), paths
