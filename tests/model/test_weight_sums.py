"""RIA's sums over the outputs that read an input, and over the inputs of an output, against loops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.core import streamed


def _images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), groups=2),
        nn.ConvTranspose2d(6, 4, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(2),
        nn.Conv1d(2, 3, 5),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def _sizes(layer: nn.Module) -> dict[tuple[int, int, tuple[int, ...]], tuple[float, tuple[int, ...]]]:
    """(output, input, place in the kernel) -> |w| and where it is stored."""
    weight = layer.weight.detach().double()
    if isinstance(layer, nn.Linear):
        return {(o, i, ()): (abs(float(weight[o, i])), (o, i)) for o, i in itertools.product(*map(range, weight.shape))}
    groups, found = layer.groups, {}
    ins, outs = layer.in_channels // groups, layer.out_channels // groups
    for group, o, i in itertools.product(range(groups), range(outs), range(ins)):
        for place in itertools.product(*map(range, layer.kernel_size)):
            first = (group * ins + i, o) if layer.transposed else (group * outs + o, i)
            known = abs(float(weight[(*first, *place)]))
            found[group * outs + o, group * ins + i, place] = known, (*first, *place)
    return found


def _oracle(layer: nn.Module, norms: Tensor, a: float) -> Tensor:
    """RIA by loops: of an output all its weights, of an input and a place all outputs that read it there."""
    sizes, made = _sizes(layer), torch.zeros(layer.weight.shape, dtype=torch.float64)
    for (o, i, place), (size, stored) in sizes.items():
        down = sum(other for (_, j, p), (other, _) in sizes.items() if (j, p) == (i, place))
        across = sum(other for (q, _, _), (other, _) in sizes.items() if q == o)
        made[stored] = (size / down + size / across) * float(norms[stored]) ** a if size else 0.0
    return made


def _with_zeros(net: nn.Sequential, x: Tensor) -> nn.Sequential:
    net.double()(x)
    with torch.no_grad():
        for layer in net:
            if hasattr(layer, "weight"):
                layer.weight.view(-1)[::5] = 0.0
    return net


@pytest.mark.parametrize("a", [0.0, 0.5])
def test_ria_of_grouped_depthwise_and_transposed_convolutions(a: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5).double()
    net = _with_zeros(_images(), x)
    norms = {n: s / net.get_parameter(n).detach().abs() for n, s in sc.score(net, "wanda", data=x).items()}
    scores = sc.score(net, f"ria(a={a})" if a != 0.5 else "ria", data=x)
    for at, layer in enumerate(net):
        if hasattr(layer, "weight"):
            expected = _oracle(layer, norms[f"{at}.weight"].nan_to_num(1.0), a)
            assert torch.allclose(scores[f"{at}.weight"], expected, rtol=1e-10, atol=1e-14), at


def test_ria_of_channels_knows_how_their_makers_are_stored() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 2, 5, 5).double()
    net = nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1))
    net.double()
    single = sc.score(net, "ria", data=x, targets=["0.weight", "2.weight"])
    for criterion, each in (("ria", single), ("wanda", sc.score(net, "wanda", data=x))):
        channels = sc.score(net, criterion, unit="channel", data=x, example_inputs=x)
        assert torch.allclose(channels["0.weight"], each["0.weight"].mean((0, 2, 3)))
        assert torch.allclose(channels["2.weight"], each["2.weight"].mean((1, 2, 3)))


class Mixed(nn.Module):
    """Three experts in one parameter, of which one gets no tokens, and attention from one sequence to another."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 5, 4))
        self.cross = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        made = F.linear(x, self.up[0]).sum() + F.linear(x, self.up[1]).sum()  # of equal inputs, but two layers
        other = x + 1.0
        return made + self.cross(x, other, other, need_weights=False)[0]


def test_only_outputs_of_one_product_share_an_input() -> None:
    torch.manual_seed(0)
    net, x = Mixed().double(), torch.randn(2, 3, 4).double()
    with pytest.warns(UserWarning, match="no input reached 'up'"):
        scores = sc.score(net, "ria(a=0)", targets=["up", "cross.in_proj_weight"], data=x)

    def ria(weight: Tensor) -> Tensor:
        size = weight.detach().abs()
        return size / size.sum(0) + size / size.sum(1, keepdim=True)

    for expert in range(3):
        assert torch.allclose(scores["up"][expert], ria(net.up[expert]))
    weight = net.cross.in_proj_weight
    assert torch.allclose(scores["cross.in_proj_weight"], torch.cat([ria(weight[:4]), ria(weight[4:])]))


def test_pieces_of_a_layer_are_scored_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 6, 5)
    net = _images()
    net(x)
    scores = sc.score(net, "ria", data=x)
    flat = torch.cat([score.flatten() for score in scores.values()])
    kept = flat >= flat.sort().values[flat.numel() // 2]
    monkeypatch.setattr(streamed, "PIECE", 7)
    masks = sc.prune(net, 0.5, criterion="ria", data=x)
    assert torch.equal(torch.cat([masks[name].flatten() for name in scores]), kept)


def test_stage_by_stage_with_what_is_left_of_earlier_layers() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).double(), torch.randn(40, 6).double()
    dense = [net[at].weight.detach().clone() for at in (0, 2)]
    masks = sc.reconstruct(net, data=x, sparsity=0.5, criterion="ria", solver="refit", within="row").masks
    inputs = [x, net[:2](x).detach()]
    for name, weight, seen in zip(("0.weight", "2.weight"), dense, inputs, strict=True):
        size = weight.abs()
        score = (size / size.sum(0) + size / size.sum(1, keepdim=True)) * seen.norm(dim=0).sqrt()
        middle = score.sort(dim=1).values[:, score.shape[1] // 2][:, None]
        assert torch.equal(masks[name], score >= middle)


class Overlapping(nn.Module):
    """All rows of a weight in one product, and some of them in another."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight).sum() + F.linear(2 * x, self.weight[:2]).sum()


def test_rows_that_went_into_one_product_stay_together_where_some_also_went_into_another() -> None:
    torch.manual_seed(0)
    net, x = Overlapping().double(), torch.randn(5, 4).double()
    size = net.weight.detach().abs()
    expected = size / size.sum(0) + size / size.sum(1, keepdim=True)
    scores = sc.score(net, "ria(a=0)", targets=["weight"], data=x)
    assert torch.allclose(scores["weight"], expected)
