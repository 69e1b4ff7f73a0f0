"""What each of two DistributedDataParallel processes finds on its batches, against one process that has them all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import secateur as sc
from secateur.core import parse_unit
from secateur.model.evidence import Source, collect
from secateur.model.ranks import OfRanks, ranks_of, ranks_of_world
from secateur.model.targets import find_targets
from tests.masks.gloo import expect_same_everywhere

Batch = tuple[Tensor, Tensor]

OF_ALL: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("snip", "weight", {}),
    ("snip_signed", "weight", {}),
    ("taylor", "weight", {}),
    ("force", "weight", {}),
    ("gate_taylor", "filter", {}),
    ("gate_taylor_so", "filter", {}),
    ("taylor_2017", "filter", {}),
    ("gate_taylor_fg", "filter", {}),
    ("head_importance", "channel", {}),
    ("mean_activation", "filter", {}),
    ("apoz", "filter", {}),
    ("activation_entropy", "filter", {}),
    ("activation_correlation", "filter", {}),
    ("lda", "filter", {}),
    ("lda_dependency", "filter", {"top_density": 0.5}),
    ("taylor_2017_flops", "filter", {}),
    ("hrank", "filter", {}),
    ("wanda", "weight", {}),
    ("ria", "weight", {}),
    ("grasp", "weight", {}),
    ("fisher", "weight", {}),
    ("taylor_second", "weight", {"hess": "exact"}),
    ("obd", "weight", {"hess": "exact"}),
    ("obd", "weight", {"hess": "ggn"}),
    ("obs", "weight", {"damping": 1e-2}),
    ("woodfisher", "weight", {"damping": 1e-2, "block": 7}),
)
"""Criterion, unit, and hyper-parameters; every collector that combines what ranks found has one, ThiNet's is below."""


def work(rank: int, folder: Path) -> None:
    scores_of_all_batches(rank)
    masks_of_all_batches(rank)
    what_only_one_rank_saw(rank)
    sampled_and_ordered(rank)
    grams(rank)
    errors_of_one_rank(rank)
    alone(rank)
    passes_of_a_training(rank)
    inside_of_what_a_trainer_wrapped(rank)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)]
    return nn.Sequential(*layers).double()


def batches(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(7)
    found: list[Batch] = []
    for at in range(count):
        x = torch.randn(6, 2, 5, 5, generator=generator, dtype=torch.float64) * (1 + at)
        found.append((x + at, torch.randint(0, 4, (6,), generator=generator)))
    return found


def own(rank: int, data: list[Any]) -> list[Any]:
    """Two of three batches on rank 0, the third on rank 1."""
    return data[:2] if rank == 0 else data[2:]


def options(unit: str) -> dict[str, Any]:
    found: dict[str, Any] = {"unit": unit, "loss": F.cross_entropy, "batches": 9}
    return found | ({"example_inputs": batches()[0][0]} if unit == "channel" else {})


def expect_alike(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> None:
    expect_same_everywhere(dict(found))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda m, n=name: f"{what} {n}: {m}")


def scores_of_all_batches(rank: int) -> None:
    plain, wrapped, data = network(), DistributedDataParallel(network()), batches()
    for name, unit, settings in OF_ALL:
        criterion = f"{name}({', '.join(f'{key}={value!r}' for key, value in settings.items())})" if settings else name
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # negative curvature
            expected = sc.score(plain, criterion, data=data, **options(unit))
            alone = sc.score(plain, criterion, data=own(rank, data), **options(unit))
            found = sc.score(wrapped, criterion, data=own(rank, data), **options(unit))
        expect_alike(found, expected, name)
        assert any(not torch.allclose(alone[key], expected[key]) for key in expected), f"{name}: a half would do"


def masks_of_all_batches(rank: int) -> None:
    data, differ = batches(), 0
    for name, unit in (("snip", "weight"), ("wanda", "weight"), ("mean_activation", "filter"), ("force", "weight")):
        wrapped = DistributedDataParallel(network())
        masks = sc.prune(wrapped, 0.5, criterion=name, data=own(rank, data), **options(unit))
        expected = sc.prune(network(), 0.5, criterion=name, data=data, **options(unit))
        expect_same_everywhere(dict(masks))
        assert all(torch.equal(masks[key], expected[key]) for key in expected), name
        first = sc.prune(network(), 0.5, criterion=name, data=own(0, data), **options(unit))
        differ += any(not torch.equal(first[key], expected[key]) for key in expected)
    assert differ >= 3, "rank 0's batches alone would choose otherwise"


class Ways(nn.Module):
    """Inputs of positive sum go one way, where two layers read the same; others go where two read different ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.a, self.b, self.c = (nn.Linear(4, 3) for _ in range(3))
        self.head = nn.Linear(3, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        parts = (self.a(x), self.b(x)) if x.sum() > 0 else (self.b(x), self.c(x + 1))
        return self.head(torch.relu(parts[0]) + torch.relu(parts[1]))


def what_only_one_rank_saw(rank: int) -> None:
    """Layers that ran on one rank alone, and layers that share their inputs on one of them."""
    plain, wrapped = Ways(), DistributedDataParallel(Ways(), find_unused_parameters=True)
    x = torch.randn(3, 7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).abs()
    data = [x[0], x[1], -x[2]]
    for name, unit in (("wanda", "weight"), ("mean_activation", "filter"), ("activation_correlation", "filter")):
        call: dict[str, Any] = {"unit": unit, "batches": 9, "targets": ["a", "b", "c"]}
        found = sc.score(wrapped, name, data=own(rank, data), **call)
        expect_alike(found, sc.score(plain, name, data=data, **call), name)


def sampled_and_ordered(rank: int) -> None:
    """Grams of sampled places add up; steps of training in an order are the first rank's."""
    plain, wrapped, data = network(), DistributedDataParallel(network()), batches()
    unit, layout = parse_unit("in_channel")[0], find_targets(plain, exclude="0")

    def gram(model: nn.Module, given: list[Batch]) -> Mapping[str, Tensor]:
        return collect(model, ["contribution_gram"], layout, unit, Source(given, batches=9))["contribution_gram"]

    parts = [gram(plain, own(one, data)) for one in (0, 1)]
    both = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    expect_alike(gram(wrapped, own(rank, data)), both, "thinet")
    call = {"loss": F.cross_entropy, "batches": 3}
    found = sc.score(wrapped, "prospr", data=own(rank, data), **call)
    expect_alike(found, sc.score(plain, "prospr", data=own(0, data), **call), "prospr")


def grams(rank: int) -> None:
    plain, wrapped, data = network(), DistributedDataParallel(network()), batches()
    unit, layout = parse_unit("weight")[0], find_targets(plain)

    def gram(model: nn.Module, given: list[Batch]) -> Mapping[str, Tensor]:
        return collect(model, ["gram"], layout, unit, Source(given, batches=9))["gram"]

    expect_alike(gram(wrapped, own(rank, data)), gram(plain, data), "gram")


def broken(data: list[Batch]) -> Iterator[Batch]:
    yield data[0]
    raise OSError("a shard that cannot be read")


def errors_of_one_rank(rank: int) -> None:
    """All ranks raise, none waits; afterwards everything works as before."""
    wrapped, data = DistributedDataParallel(network()), batches()
    for name, unit in (("snip", "weight"), ("grasp", "weight"), ("fisher", "weight"), ("apoz", "filter")):
        call = options(unit)
        error, text = (
            (OSError, "cannot be read") if rank else (ValueError, "rank 1 could not do its part.*cannot be read")
        )
        with pytest.raises(error, match=text):
            sc.prune(wrapped, 0.5, criterion=name, data=broken(data) if rank else data, **call)
        with pytest.raises(ValueError, match="data yielded no batch"):
            sc.score(wrapped, name, data=iter([]) if rank else data, **call)
        with pytest.raises(ValueError, match="give data="):
            sc.score(wrapped, name, data=data if rank else None, **call)
    wrong = [torch.full((6, 2, 5, 5), float("nan"), dtype=torch.float64)] if rank else [data[0][0]]
    with pytest.raises(ValueError, match=r"finite|NaN|nan"):
        sc.prune(wrapped, 0.5, criterion="wanda", data=wrong)
    sc.prune(wrapped, 0.5, criterion="snip", data=data, loss=F.cross_entropy)


def alone(rank: int) -> None:
    """One rank may look at weights, and at its own data through the module inside, while the other does nothing."""
    wrapped, data = DistributedDataParallel(network()), batches()
    if rank == 0:
        assert torch.equal(sc.score(wrapped, "magnitude")["0.weight"], wrapped.module[0].weight.abs())
        found = sc.score(wrapped.module, "snip", data=own(0, data), **options("weight"))
        expected = sc.score(network(), "snip", data=own(0, data), **options("weight"))
        assert torch.equal(found["0.weight"], expected["0.weight"])


def passes_of_a_training(rank: int) -> None:
    """Each rank trains on a half; one process takes both halves in for each step. Half the filters fire in each."""
    plan = sc.Plan(sparsity=0.5, criterion="mean_activation", unit="filter", schedule="linear", begin=2, end=4, every=2)
    wrapped, plain = DistributedDataParallel(network(1)), network(1)
    models: list[tuple[nn.Module, Any]] = [
        (wrapped, lambda batch: [(batch[0][rank * 3 :][:3], batch[1][rank * 3 :][:3])])
    ]
    models.append((plain, lambda batch: [(batch[0][:3], batch[1][:3]), (batch[0][3:], batch[1][3:])]))
    found: list[dict[str, Tensor]] = []
    for model, parts in models:
        pruner, optimizer = sc.Pruner(model, plan, batches=2), partial(SGD, lr=0.01)(model.parameters())
        pruner.attach(optimizer)
        for x, y in batches(4):
            read = parts((torch.cat([x[:3], -3 * x[3:]]), y))
            for x, y in read:
                (F.cross_entropy(model(x), y) / len(read)).backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(dict(pruner.masks))
        assert len(pruner.history) == 2
    expect_same_everywhere(found[0])
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def inside_of_what_a_trainer_wrapped(rank: int) -> None:
    """A callback is given the module inside of DDP, or a part of it: with the ranks it is pruned as the whole is."""
    data, plan = [x for x, _ in batches()], sc.Plan(sparsity=0.5, criterion="wanda")
    expected = sc.prune(network(), 0.5, criterion="wanda", data=data, batches=9)
    wrapped = DistributedDataParallel(nn.Sequential(network()))
    for ranks in (ranks_of(wrapped), ranks_of_world(wrapped.module)):
        given = OfRanks(wrapped.module[0], ranks)
        assert sc.find_masks(given) is None
        pruner = sc.Pruner(given, plan, own(rank, data), batches=9)
        pruner.step()
        expect_same_everywhere(dict(pruner.masks))
        assert all(torch.equal(pruner.masks[name], expected[name]) for name in expected)
        assert pruner.masks.model is wrapped.module[0], "the wrapper is looked through"
        pruner.masks.undo()
