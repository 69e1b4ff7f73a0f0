"""Inputs of layers against what a change of one weight does to the layer's own output, in float64."""

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


def _collect(net: nn.Module, data: Any, *kinds: str, **choices: Any) -> dict[str, dict[str, Tensor]]:
    batches = len(data) if isinstance(data, list) else 1
    layout = find_targets(net, **choices)
    return collect(net, kinds or ("input_norm", "gram"), layout, parse_unit("weight")[0], Source(data, batches=batches))


def _images() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1, 1, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(2),
        nn.Conv1d(4, 2, 5, padding=2),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def test_norms_and_grams_are_what_changing_weights_changes() -> None:
    torch.manual_seed(0)
    net, data = _images().double(), [torch.randn(n, 4, 6, 7).double() for n in (3, 2)]
    net(data[0])
    found = _collect(net, data)
    for at, layer in enumerate(net):
        if not hasattr(layer, "weight"):
            continue
        name, weight = f"{at}.weight", layer.weight.detach()
        inputs = [net[:at](x).detach() for x in data]

        def moved(by: Tensor, layer: nn.Module = layer, inputs: list[Tensor] = inputs) -> float:
            bare = {"weight": by, "bias": torch.zeros_like(layer.bias)}
            return sum(float(torch.func.functional_call(layer, bare, (x,)).square().sum()) for x in inputs)

        for _ in range(6):
            place = tuple(int(torch.randint(size, ())) for size in weight.shape)
            one = torch.zeros_like(weight)
            one[place] = 1.0
            assert float(found["input_norm"][name][place]) == pytest.approx(moved(one) ** 0.5, rel=1e-9, abs=1e-12)
        change, gram = torch.randn(weight.shape).double(), found["gram"][name]
        turned = isinstance(layer, nn.ConvTranspose2d)
        groups = getattr(layer, "groups", 1)
        if turned:  # [I, O/g, k] -> [g * O/g, I/g, k]
            parts = change.reshape(groups, -1, *change.shape[1:]).transpose(1, 2)
        else:
            parts = change.reshape(groups, -1, *change.shape[1:])
        matrix = parts.reshape(gram.shape[0], -1, gram.shape[-1])
        assert float(torch.einsum("goi,gij,goj->", matrix, gram, matrix)) == pytest.approx(moved(change), rel=1e-9)


class Block(nn.Module):
    """Self-attention, cross-attention, a functional product and a fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.cross = (nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.q, self.k = nn.Linear(8, 8, bias=False), nn.Linear(8, 8)
        self.raw = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = x + self.own(x, x, x, need_weights=False)[0]
        x = x + self.cross(x, other, other, need_weights=False)[0]
        return F.linear(self.q(x) + self.k(x), self.raw) @ x.new_ones(5, 1)


def test_attention_and_functional_calls_are_seen() -> None:
    torch.manual_seed(0)
    net, x, other = Block().double(), torch.randn(2, 3, 8).double(), torch.randn(2, 4, 8).double()
    names = ["own.in_proj_weight", "cross.in_proj_weight", "q.weight", "k.weight", "raw"]
    layout = find_targets(net, names)
    source = Source([(x,)], step=lambda model, batch: model(batch[0], other))
    found = collect(net, ["input_norm", "gram"], layout, parse_unit("weight")[0], source)

    def gram(values: Tensor) -> Tensor:
        flat = values.detach().reshape(-1, 8)
        return flat.t() @ flat

    behind = x + net.own(x, x, x)[0]
    assert torch.allclose(found["gram"]["own.in_proj_weight"], gram(x)[None])
    both = torch.stack([gram(behind), gram(other), gram(other)])
    assert torch.allclose(found["gram"]["cross.in_proj_weight"], both)
    norms = both.diagonal(dim1=1, dim2=2).sqrt().repeat_interleave(8, 0)
    assert torch.allclose(found["input_norm"]["cross.in_proj_weight"], norms)
    last = behind + net.cross(behind, other, other)[0]
    assert torch.allclose(found["gram"]["raw"][0], gram(net.q(last) + net.k(last)))
    assert found["gram"]["q.weight"].data_ptr() == found["gram"]["k.weight"].data_ptr()  # one sum for both
    assert found["gram"]["q.weight"].data_ptr() != found["gram"]["raw"].data_ptr()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body = nn.Embedding(9, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.body(self.embed(ids))


def test_padding_is_left_out() -> None:
    torch.manual_seed(0)
    net, ids = Words(), torch.randint(9, (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    batch = {"ids": ids, "attention_mask": mask}
    rows = net.embed(ids)[mask.bool()].double().detach()
    found = sc.score(net, "wanda", data=batch, exclude="embed*")["body.weight"]
    assert torch.allclose(found.double(), net.body.weight.abs().double() * rows.norm(dim=0))
    everything = sc.score(net, "wanda", data=batch | {"attention_mask": torch.ones(3, 5)})["body.weight"]
    assert not torch.allclose(found, everything)


class Experts(nn.Module):
    """Three experts, each of them a slice of one parameter; rows of inputs go by the sign of what they begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 6, 4))
        self.down = nn.ModuleList(nn.Linear(6, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 2)
        for expert, chosen in enumerate([x[:, 0] > 0, x[:, 0] <= 0, x[:, 0] > 1e6]):
            out[chosen] = self.down[expert](F.linear(x[chosen], self.up[expert]).relu())
        return out


def test_experts_without_tokens() -> None:
    torch.manual_seed(0)
    net, x = Experts(), torch.randn(20, 4)
    with pytest.warns(UserWarning, match=r"no input reached 'up', 'down\.2\.weight'"):
        scores = sc.score(net, "wanda", targets=["up", "down*weight"], data=x)
    left, right = x[x[:, 0] > 0].norm(dim=0), x[x[:, 0] <= 0].norm(dim=0)
    expected = net.up.abs() * torch.stack([left, right, torch.ones(4)])[:, None]
    assert torch.allclose(scores["up"], expected)
    assert torch.allclose(scores["down.2.weight"], net.down[2].weight.abs())


def test_sums_over_batches_do_not_depend_on_the_cut() -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(12, 4)
    whole, cut = _collect(net, x), _collect(net, list(x.split(5)))
    for kind, tensors in whole.items():
        assert all(torch.allclose(tensor, cut[kind][name]) for name, tensor in tensors.items())
    assert whole["gram"]["0.weight"].dtype == torch.float64


class Standardised(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(1, keepdim=True))


class Sliced(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(x[:, 1:], self.weight[:, 1:])


def test_refusals_say_what_was_not_seen() -> None:
    x = torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"'weight' were not seen: it goes into aten\.(mean|sub)"):
        sc.score(Standardised(4, 2), "wanda", data=x)
    with pytest.raises(ValueError, match=r"'weight' were not seen: it goes into aten\.mm"):
        sc.score(Sliced(4, 2, bias=False), "wanda", data=x)
    with pytest.raises(ValueError, match="inputs of layers: give data="):
        sc.score(nn.Linear(4, 2), "wanda")
    with pytest.raises(ValueError, match="is an embedding: it is looked up"):
        sc.score(Words(), "wanda", targets="embed*", data={"ids": torch.zeros(1, 2).long(), "attention_mask": None})
    with pytest.raises(ValueError, match="power of the inputs' norm"):
        sc.score(nn.Linear(4, 2), "ria(a=-1)", data=x)


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        ("wanda", "inputs of layers are read before fully_shard"),
        (lambda weight, macs: weight.abs() / macs, "multiply-adds are counted before fully_shard"),
    ],
)
def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch, criterion: Any, said: str) -> None:
    monkeypatch.setattr("secateur.model.evidence.products.is_sharded", lambda tensor: True)
    with pytest.raises(ValueError, match=f"'weight' is sharded; {said}"):
        sc.score(nn.Linear(4, 2), criterion, data=torch.randn(3, 4))


def test_autocast_copies_of_weights_are_followed() -> None:
    torch.manual_seed(0)
    net, x = nn.Linear(4, 2), torch.randn(3, 4)

    def step(model: nn.Module, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(batch)

    found = sc.score(net, "wanda", data=[x], step=step)["weight"]
    assert torch.allclose(found, net.weight.abs() * x.bfloat16().float().norm(dim=0), rtol=1e-6)
