"""Evidence of examples, feature maps and pairs of channels, against loops in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core.units import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.targets import find_targets
from tests.model.test_activations import Net, Tokens, images

FILTER = parse_unit("filter")[0]


def labelled(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [(x, torch.randint(0, 3, (len(x),), generator=g)) for x in images(*sizes)]


def activations(net: Net, data: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Layer -> [N, C, H, W]."""
    with torch.no_grad():
        first = torch.cat([F.relu(net.bn(net.conv1(x))) for x, _ in data])
        second = F.relu(net.conv2(F.max_pool2d(first, 2)))
        return {
            "conv1.weight": first,
            "conv2.weight": second,
            "head.weight": net.head(second.flatten(1))[..., None, None],
        }


def found(kinds: list[str], net: nn.Module, data: object, **more: object) -> dict[str, dict[str, Tensor]]:
    return collect(net, kinds, find_targets(net), FILTER, Source(data, batches=9, **more))  # type: ignore[arg-type]


DATA = labelled(4, 1, 6)


def test_means_and_maxima_of_each_example_with_its_label() -> None:
    net = Net(F.relu)
    made = found(["activation_pooled", "activation_max", "labels"], net, DATA)
    for name, slow in activations(net, DATA).items():
        torch.testing.assert_close(made["activation_pooled"][name], slow.mean((2, 3)).t())
        torch.testing.assert_close(made["activation_max"][name], slow.amax((2, 3)).t())
        assert torch.equal(made["labels"][name], torch.cat([y for _, y in DATA]))


def test_ranks_of_feature_maps() -> None:
    net = Net(F.relu)
    made = found(["activation_rank"], net, DATA)["activation_rank"]
    for name, slow in activations(net, DATA).items():
        ranks = [[int(torch.linalg.matrix_rank(slow[n, c])) for n in range(len(slow))] for c in range(slow.shape[1])]
        torch.testing.assert_close(made[name], torch.tensor(ranks, dtype=torch.float64).mean(1))
    assert 1 < float(made["conv1.weight"].mean()) < 4


def test_covariances_over_examples_and_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.model.evidence.covariance._AT_ONCE", 64)  # several blocks
    net = Net(F.relu)
    made = found(["activation_covariance"], net, DATA)["activation_covariance"]
    for name, slow in activations(net, DATA).items():
        rows = slow.movedim(1, 0).flatten(1)
        torch.testing.assert_close(made[name], torch.cov(rows, correction=0))


def test_covariances_do_not_lose_a_small_variance_beside_a_large_mean() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU()).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
    x = 1e8 + torch.rand(500, 2, dtype=torch.float64)
    made = found(["activation_covariance"], net, [x])["activation_covariance"]["0.weight"]
    torch.testing.assert_close(made, torch.cov((x - 1e8).t(), correction=0), rtol=1e-6, atol=1e-9)


class TimesFirst(nn.Module):
    """Six tokens, six examples: [T, B, C] inside, so that no length tells which axis is which."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x.transpose(0, 1)))).mean(0)


def test_examples_are_found_where_time_comes_first() -> None:
    net, x = TimesFirst(), torch.randn(6, 6, 3, dtype=torch.float64)
    made = found(["activation_pooled"], net, [x])["activation_pooled"]["up.weight"]
    torch.testing.assert_close(made, F.relu(net.up(x)).mean(1).t().detach())


def test_examples_are_found_in_passes_that_are_differentiated_too() -> None:
    """Gradients call more operators: the looks aside have to call them as well."""
    net, x, y = TimesFirst(), torch.randn(6, 6, 3, dtype=torch.float64), torch.arange(6) % 2
    kinds = ["activation_pooled", "gate_example_abs"]
    made = found(kinds, net, [(x, y)], loss=F.cross_entropy)["activation_pooled"]
    with torch.no_grad():
        up = F.relu(net.up(x))
        torch.testing.assert_close(made["up.weight"], up.mean(1).t())
        torch.testing.assert_close(made["down.weight"], net.down(up).mean(1).t())


def test_a_model_of_one_batch_size_shows_its_examples_too() -> None:
    class Fixed(TimesFirst):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(6, 6, 3))

    net, x = Fixed(), torch.randn(6, 6, 3, dtype=torch.float64)
    made = found(["activation_pooled"], net, [x])["activation_pooled"]["up.weight"]
    torch.testing.assert_close(made, F.relu(net.up(x)).mean(1).t().detach())


def test_padding_has_no_part_in_any_of_them() -> None:
    net, ids = Tokens(), torch.randint(0, 9, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    kinds = ["activation_pooled", "activation_max", "activation_covariance"]
    made = found(kinds, net, {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        hidden = F.relu(net.up(net.table(ids)))
    own = [hidden[n, : int(mask[n].sum())] for n in range(3)]
    torch.testing.assert_close(made["activation_pooled"]["up.weight"], torch.stack([one.mean(0) for one in own], 1))
    torch.testing.assert_close(made["activation_max"]["up.weight"], torch.stack([one.amax(0) for one in own], 1))
    slow = torch.cov(torch.cat(own).t(), correction=0)
    torch.testing.assert_close(made["activation_covariance"]["up.weight"], slow)


def test_what_is_wrong_with_labels_is_said() -> None:
    x = images(4)[0]
    for labels, message in ((None, "labels are missing"), (torch.zeros(4), r"shape \(4,\), torch.float32")):
        with pytest.raises(ValueError, match=message):
            found(["labels"], Net(F.relu), [(x, labels)])
    with pytest.raises(ValueError, match="all of class 2"):
        sc.score(Net(F.relu), "lda", unit="filter", data=(x, torch.full((4,), 2)))


# -- what criteria make of it ---------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_lda_is_the_ratio_of_scatters(pool: str) -> None:
    net, y = Net(F.relu), torch.cat([y for _, y in DATA])
    scores = sc.score(net, f"lda(pool={pool!r}, ridge=0.0)", unit="filter", data=DATA)
    for name, maps in activations(net, DATA).items():
        if name not in scores:
            continue
        x = maps.amax((2, 3)) if pool == "max" else maps.mean((2, 3))
        for j in range(x.shape[1]):
            between = within = 0.0
            for c in range(3):
                own = x[y == c, j]
                between += len(own) * float(own.mean() - x[:, j].mean()) ** 2
                within += float((own - own.mean()).square().sum())
            assert float(scores[name][j]) == pytest.approx(between / within)


def test_full_lda_of_two_classes_is_the_known_direction() -> None:
    """Two classes have one direction, S_w^-1 (mu_1 - mu_0), whose eigenvalue is n_0 n_1 / n times d S_w^-1 d."""
    net, x = Net(F.relu), images(40)[0]
    y = (torch.arange(40) < 15).long()
    score = sc.score(net, "lda(full=True, ridge=0.0)", unit="filter", data=[(x, y)])["conv1.weight"]
    own = activations(net, [(x, y)])["conv1.weight"].amax((2, 3))
    inside = sum(torch.cov(own[y == c].t(), correction=0) * int((y == c).sum()) for c in (0, 1))
    d = own[y == 1].mean(0) - own[y == 0].mean(0)
    v = torch.linalg.solve(inside, d)
    eigenvalue = 25 * 15 / 40 * d @ v
    torch.testing.assert_close(score, eigenvalue * (v / v.norm()).square())


def entropy(values: list[float], bins: int, low: float, high: float) -> float:
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, int((value - low) / (high - low) * bins)) if high > low else 0] += 1
    return -sum(n / len(values) * math.log(n / len(values)) for n in counts if n)


@pytest.mark.parametrize("span", ["layer", "unit"])
def test_entropy_of_pooled_activations(span: str) -> None:
    net = Net(F.relu)
    with torch.no_grad():
        net.bn.bias[2] = -100.0
    pooled = activations(net, DATA)["conv1.weight"].mean((2, 3)).t()
    for prune, sign in (("low", 1), ("high", -1)):
        spec = f"activation_entropy(bins=7, range={span!r}, prune={prune!r})"
        scores = sc.score(net, spec, unit="filter", data=DATA)["conv1.weight"]
        for channel, score in zip(pooled, scores.tolist(), strict=True):
            own = channel if span == "unit" else pooled
            assert score == pytest.approx(sign * entropy(channel.tolist(), 7, float(own.min()), float(own.max())))
    assert abs(float(scores[2])) == 0.0, "a dead channel says nothing"


def test_of_each_set_of_copies_one_is_left() -> None:
    """Planted: unit 3 is twice unit 0, unit 4 unit 1 shifted, unit 5 never fires; behind the ReLU."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = 2 * net[0].weight[0], 2 * net[0].bias[0]
        net[0].weight[4], net[0].bias[4] = net[0].weight[1], net[0].bias[1] + 0.1
        net[0].bias[5] = -100.0
    x = torch.randn(200, 4, dtype=torch.float64)
    masks = sc.prune(
        net, 3 / 6, criterion="activation_correlation", unit="channel", data=[x], example_inputs=x, batches=1
    )
    assert masks.unit_masks["0.weight"].tolist() == [False, False, True, True, True, False]


def slow_order(a: Tensor, absolute: bool = False) -> list[int]:
    """The greedy loop from scratch at every step."""
    cov = torch.cov(a, correction=0)
    left, order = list(range(len(a))), []
    while len(left) > 1:
        pairs = {(i, j): float(cov[i, j] / (cov[i, i] * cov[j, j]).sqrt()) for i in left for j in left if i < j}
        i, j = max(pairs, key=lambda pair: abs(pairs[pair]) if absolute else pairs[pair])
        gone = i if cov[i, i] < cov[j, j] else j
        order.append(gone)
        left.remove(gone)
    return order + left


@pytest.mark.parametrize("absolute", [False, True])
def test_the_greedy_order_is_that_of_a_plain_loop(absolute: bool) -> None:
    net, x = nn.Sequential(nn.Linear(5, 12), nn.Tanh(), nn.Linear(12, 2)).double(), images(9)[0].flatten(0, 1)
    x = x.flatten(1)[:, :5]
    spec = f"activation_correlation(absolute={absolute})"
    scores = sc.score(net, spec, unit="filter", targets="0", data=[x])["0.weight"]
    with torch.no_grad():
        assert scores.argsort().tolist() == slow_order(net[:2](x).t(), absolute)
