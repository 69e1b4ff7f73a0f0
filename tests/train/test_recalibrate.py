"""Batch-norm recalibration: the catalogue's numbers, a slow oracle, and that nothing else is touched."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from secateur.train.recalibrate import batch_norms, recalibrate

X = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])


def network(seed: int = 0) -> nn.Sequential:
    """Two norms, dropout, a norm without statistics; statistics far from the truth."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 6, 3, padding=1),
            norm=nn.BatchNorm2d(6, momentum=0.3),
            drop=nn.Dropout(0.5),
            relu=nn.ReLU(),
            conv2=nn.Conv2d(6, 4, 3),
            loose=nn.BatchNorm2d(4, track_running_stats=False),
            norm2=nn.BatchNorm2d(4, momentum=None),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(4, 3),
        )
    )
    for norm in (net.norm, net.norm2):
        nn.init.uniform_(norm.running_mean, -2, 2)
        nn.init.uniform_(norm.running_var, 0.5, 3)
        norm.num_batches_tracked.fill_(5)
    return net


def images(batches: int = 3, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    sizes = [8, 8, 5][:batches]
    return [(torch.randn(n, 3, 6, 6, generator=g) * 2 + 1, torch.randint(0, 3, (n,), generator=g)) for n in sizes]


def oracle(net: nn.Sequential, data: list[tuple[Tensor, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer by layer in float64: each batch normalised by itself, dropout the identity, plain averages."""
    net = copy.deepcopy(net).double()
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"norm": [], "norm2": []}
    for x, _ in data:
        z = x.double()
        for name, layer in net.named_children():
            if isinstance(layer, nn.BatchNorm2d):
                columns = z.transpose(0, 1).flatten(1)
                mean = columns.mean(1)
                centred = columns - mean[:, None]
                squares = centred.square().sum(1)
                if name in found:
                    found[name].append((mean, squares / (columns.shape[1] - 1)))
                scale = layer.weight / (squares / columns.shape[1] + layer.eps).sqrt()
                z = (z - mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]
            elif not isinstance(layer, nn.Dropout):
                z = layer(z)
    return {n: (sum(m for m, _ in p) / len(p), sum(v for _, v in p) / len(p)) for n, p in found.items()}


def state(net: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose bits differ."""
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_the_worked_numbers_of_the_catalogue():
    norm = nn.BatchNorm1d(2)
    done = recalibrate(norm, [X, X + 1])
    assert norm.running_mean.tolist() == [3.5, 4.5]
    assert norm.running_var.tolist() == [4.0, 4.0]  # unbiased; the passes themselves use 2.6667
    assert (done.batches, int(norm.num_batches_tracked), norm.momentum) == (2, 2, 0.1)
    assert done.moved[""] == pytest.approx(((3.5**2 + 4.5**2) / 2 / (1 + norm.eps)) ** 0.5)


def test_statistics_are_the_plain_averages_in_float64():
    net, data = network(), images()
    wanted = oracle(net, data)
    recalibrate(net, data)
    for name, (mean, variance) in wanted.items():
        norm = net.get_submodule(name)
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_but_the_statistics_changes(mode: bool):
    net, data = network().train(mode), images()
    net.relu.train(not mode)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.register_buffer("calls", torch.zeros(()))
    net.register_forward_hook(lambda module, *_: module.calls.add_(1) and None)
    before, modes = state(net), {name: module.training for name, module in net.named_modules()}
    momenta = (net.norm.momentum, net.norm2.momentum)
    parameters = list(net.parameters())
    torch.manual_seed(7)
    random = torch.get_rng_state()
    recalibrate(net, data)
    assert torch.equal(torch.get_rng_state(), random)
    statistics = {f"{n}.{s}" for n in ("norm", "norm2") for s in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(same(before, state(net))) == statistics
    assert {name: module.training for name, module in net.named_modules()} == modes
    assert (net.norm.momentum, net.norm2.momentum) == momenta
    assert all(a is b for a, b in zip(parameters, net.parameters(), strict=True))
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert net.conv.weight.grad is None
    assert torch.is_grad_enabled()


def test_batches_limits_what_is_read():
    net, again = network(), network()
    read = []

    def loader():
        for batch in images():
            read.append(1)
            yield batch

    assert recalibrate(net, loader(), batches=2).batches == 2
    recalibrate(again, images()[:2])
    assert (len(read), same(state(net), state(again))) == (2, [])


@pytest.mark.parametrize("kind", ["tensor", "one pair", "bare batches", "mapping", "loader", "step"])
def test_all_kinds_of_data_give_the_same(kind: str):
    x, y = images()[0]
    net, wanted = network(), network()
    recalibrate(wanted, [(x, y)])
    given = {
        "tensor": x,
        "one pair": (x, y),
        "bare batches": [x],
        "mapping": {"input": x},
        "loader": DataLoader(TensorDataset(x), batch_size=8),
        "step": [("ignored", x, y)],
    }
    step = (lambda model, batch: model(batch[1])) if kind == "step" else None
    recalibrate(net, given[kind], step=step)
    assert same(state(net), state(wanted)) == []


def test_an_error_puts_the_old_statistics_back():
    net = network()
    before, momentum = state(net), net.norm.momentum
    with pytest.raises(RuntimeError):
        recalibrate(net, [images()[0], (torch.zeros(2, 5, 6, 6), None)])
    broken = images()
    broken[1][0][0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"'norm'.*not finite"):
        recalibrate(net, broken)
    x, y = images()[0]
    with pytest.raises(ValueError, match="labels lie in"):  # only after the new statistics are there
        recalibrate(net, images(), valid=_Second((x, y), (x, y + 5)))
    assert (same(before, state(net)), net.norm.momentum, net.training) == ([], momentum, True)


class _Second:
    """A loader that yields one batch on its first reading and another from then on."""

    def __init__(self, first: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> None:
        self.turns = [first, later]

    def __iter__(self):
        yield self.turns.pop(0)


def test_norms_that_are_left_alone_are_named_with_the_reason():
    net = network()
    net.add_module("instance", nn.InstanceNorm1d(3, track_running_stats=True))
    net.forward = lambda x: nn.Sequential.forward(net[:10], x)
    net.norm.eval()
    net.norm2.num_batches_tracked = None
    net.add_module("unused", nn.BatchNorm1d(5))
    net.add_module("last", nn.BatchNorm1d(3))
    net.forward = lambda x: net.last(net[:10](x))
    net.unused.running_mean.fill_(3.0)
    before = state(net)
    done = recalibrate(net, images())
    assert list(done.moved) == ["last"]
    assert set(done.left_alone) == {"norm", "loose", "norm2", "instance", "unused"}
    words = {"norm": "frozen", "loose": "no running", "norm2": "counter", "instance": "own", "unused": "no batch"}
    assert [name for name, word in words.items() if word not in done.left_alone[name]] == []
    assert {name.split(".")[0] for name in same(before, state(net))} == {"last"}
    assert all(name in str(done) for name in words)


def test_a_norm_used_twice_averages_all_its_calls():
    norm = nn.BatchNorm1d(2)
    recalibrate(norm, [X], step=lambda model, batch: (model(batch), model(batch + 1)))
    assert norm.running_mean.tolist() == [3.5, 4.5]


def test_wrappers_are_looked_through():
    net, wanted = network(), network()
    recalibrate(wanted, images())
    done = recalibrate(nn.DataParallel(net), images())
    assert (list(done.moved), same(state(net), state(wanted))) == (["norm", "norm2"], [])


def test_accuracy_is_reported_before_and_after_apart():
    """A net whose class is the sign of one feature, spoilt by a wrong running mean alone."""
    net = nn.Sequential(nn.BatchNorm1d(1, affine=False), nn.Linear(1, 2)).eval()
    nn.init.zeros_(net[1].bias)
    net[1].weight.data = torch.tensor([[-1.0], [1.0]])
    net[0].running_mean.fill_(100.0)
    x = torch.linspace(-1, 1, 40)[:, None]
    y = (x[:, 0] > 0).long()
    done = recalibrate(net, (x, y), valid=(x, y))
    assert done.before is not None
    assert done.after is not None
    assert (done.before.top1, done.after.top1) == (0.5, 1.0)
    assert "50.00% before recalibration, 100.00% after" in str(done)
    record = json.loads(json.dumps(done.to_record()))
    assert (record["before"]["top1"], record["after"]["top1"], record["batches"]) == (0.5, 1.0, 1)
    assert json.loads(json.dumps(recalibrate(net, (x, y)).to_record()))["before"] is None


@pytest.mark.parametrize(
    ("net", "data", "options", "words"),
    [
        (nn.Linear(2, 2), [X], {}, "no batch norm at all"),
        (nn.BatchNorm1d(2, track_running_stats=False), [X], {}, "no running statistics: every batch"),
        (nn.BatchNorm1d(2), [], {}, "yielded no batch"),
        (nn.BatchNorm1d(2), [(X, X, X)], {}, "tuple of 3"),
        (nn.BatchNorm1d(2), [3.0], {}, "a batch is a float"),
        (nn.BatchNorm1d(2), [X], {"batches": 0}, "batches=0"),
        (nn.BatchNorm1d(2), [X], {"batches": 2.0}, "batches=2.0"),
        (nn.BatchNorm1d(2), [X], {"valid": iter([])}, "read once"),
        (nn.BatchNorm1d(2), [X, X[:1]], {}, "batch 2 has one value per channel.*drop_last"),
        (nn.BatchNorm1d(2), [X], {"step": lambda model, batch: batch}, "reached by the 1 batches"),
    ],
)
def test_mistakes_are_refused(net: nn.Module, data: object, options: dict[str, object], words: str):
    before = state(net)
    with pytest.raises(ValueError, match=words):
        recalibrate(net, data, **options)  # pyright: ignore
    assert same(before, state(net)) == []


def test_what_would_be_done_can_be_asked_before():
    assert list(batch_norms(network())) == ["norm", "norm2"]
    assert batch_norms(nn.Linear(2, 2)) == {}
    shared = nn.BatchNorm1d(2)
    assert len(batch_norms(nn.Sequential(shared, shared))) == 1
