"""A shrunk model through a file into its own class, and every class that it is not refused."""

from __future__ import annotations

import contextlib
import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.deploy import load, save
from secateur.io import Bundle, read_contents
from secateur.model.masks import find_masks
from secateur.model.removal import Removal, carry_mark, find_removal, remove
from secateur.train import prune
from tests.io.forge import edited, hurt, same_bytes
from tests.removal.remove_net import H, Tied, W, make, plan


def shrunk(seed: int = 0) -> nn.Module:
    net = make(seed)
    remove(net, plan((3, 0), (2, 1)))
    return net


def data() -> Tensor:
    return torch.randn(2, 2, H, W, dtype=torch.float64)


def state(net: nn.Module) -> dict[str, Any]:
    return {name: (t.data_ptr(), t.clone()) for name, t in net.state_dict().items()} | {"repr": repr(net)}


def unchanged(net: nn.Module, before: dict[str, Any]) -> bool:
    now = state(net)
    same = all(now[n][0] == p and same_bytes(now[n][1], t) for n, (p, t) in list(before.items())[:-1])
    return now["repr"] == before["repr"] and same and find_removal(net) is None


def test_a_shrunk_model_comes_back_in_its_own_class(tmp_path: Path) -> None:
    small = shrunk()
    save(small, tmp_path / "m", record={"epoch": 3})
    target = make(seed=5)
    objects = [id(t) for t in target.state_dict(keep_vars=True).values()]
    assert load(tmp_path / "m", into=target) is target
    assert repr(target) == repr(small)
    assert [id(t) for t in target.state_dict(keep_vars=True).values()] == objects
    assert all(same_bytes(t, small.state_dict()[n]) for n, t in target.state_dict().items())
    x = data()
    assert same_bytes(target(x), small(x))
    target.load_state_dict(small.state_dict(), strict=True)
    target(x).sum().backward()
    bundle = load(tmp_path / "m")
    assert isinstance(bundle, Bundle)
    assert bundle.record is not None
    assert bundle.record["epoch"] == 3


def test_a_loaded_model_can_be_saved_shrunk_and_loaded_again(tmp_path: Path) -> None:
    small = shrunk()
    save(small, tmp_path / "a")
    second = load(tmp_path / "a", into=make(5))
    assert find_removal(second) is None  # the file does not say which units they were
    remove(second, plan((1,), (0,)))
    save(second, tmp_path / "b")
    third = load(tmp_path / "b", into=lambda: make(6))
    x = data()
    assert same_bytes(third(x), second(x))
    load(tmp_path / "b", into=third)
    with pytest.raises(ValueError, match="does not fit Net: shapes differ"):
        load(tmp_path / "a", into=third)
    assert same_bytes(third(x), second(x))


def test_best_checkpoints_of_a_shrunk_model_go_back_into_it(tmp_path: Path) -> None:
    small = shrunk()
    removal = find_removal(small)
    save(small, tmp_path / "best")
    x = data()
    expected = small(x)
    with torch.no_grad():
        small.fc2.weight += 1
    load(tmp_path / "best", into=small)
    assert same_bytes(small(x), expected)
    assert find_removal(small) == removal


def test_files_of_whole_models_are_as_they_were(tmp_path: Path) -> None:
    net = make()
    save(net, tmp_path / "whole")
    assert read_contents(tmp_path / "whole").record is None
    small = shrunk()
    size = save(small, tmp_path / "small")
    plain = save(small, tmp_path / "plain", shrunk=False)
    assert read_contents(tmp_path / "plain").record is None
    assert size - plain < 500
    wide = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 1000))
    kept = tuple(range(0, 1000, 2))
    remove(wide, Removal({"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}}))
    assert save(wide, tmp_path / "w") - save(wide, tmp_path / "v", shrunk=False) < 200


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: make(channels=6), r"conv\.weight is \(2, 2, 3, 3\) in the file, \(6, 2, 3, 3\) in the module"),
        (lambda: make(channels=6), r"or with those it had before it was shrunk: conv\.weight \(4, 2, 3, 3\)"),
        (lambda: make(hidden=5), r"fc1\.weight is \(2, 18\) in the file, \(5, 36\)"),
        (lambda: make(channels=1), r"shapes differ"),
        (lambda: make().float(), "dtypes differ"),
        (lambda: nn.Sequential(make()), "missing in the file: 0.conv.weight"),
    ],
)
def test_another_architecture_is_refused_and_stays(tmp_path: Path, target: Any, message: str) -> None:
    save(shrunk(), tmp_path / "m")
    net = target()
    before = state(net)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m", into=net)
    assert unchanged(net, before)


def test_ten_classes_never_become_five(tmp_path: Path) -> None:
    for file, model in (("whole", nn.Linear(4, 10)), ("shrunk", nn.Linear(6, 10))):
        if file == "shrunk":
            remove(model, Removal({"weight": {1: (0, 1, 2, 3)}}))
        for said in (None, True):
            save(model, tmp_path / file, shrunk=said)
            for classes in (5, 12) if (file, said) != ("whole", True) else (5,):
                net = nn.Linear(6 if file == "shrunk" else 4, classes)
                before = state(net)
                with pytest.raises(ValueError, match="shapes differ"):
                    load(tmp_path / file, into=net)
                assert unchanged(net, before)


def test_a_copy_is_saved_as_shrunk_when_told(tmp_path: Path) -> None:
    small = copy.deepcopy(shrunk())
    save(small, tmp_path / "m")
    with pytest.raises(ValueError, match=r"save it again with sc\.save\(model, path, shrunk=True\)"):
        load(tmp_path / "m", into=make(5))
    save(small, tmp_path / "m", shrunk=True)
    target = load(tmp_path / "m", into=make(5))
    x = data()
    assert same_bytes(target(x), small(x))
    with pytest.raises(ValueError, match="may be larger, but not smaller"):
        load(tmp_path / "m", into=make(channels=1))
    with pytest.raises(ValueError, match="needs the module itself"):
        save(small.state_dict(), tmp_path / "m", shrunk=True)
    with pytest.raises(ValueError, match=r"record= has the key 'secateur\.shrunk'"):
        save(small, tmp_path / "m", shrunk=True, record={"secateur.shrunk": 1})


def test_a_copy_that_carries_the_mark_can_be_shrunk_on(tmp_path: Path) -> None:
    first = shrunk()
    second = copy.deepcopy(first)
    carry_mark(first, second)
    remove(second, plan((1,), (0,)))
    assert find_removal(second) == plan((3, 0), (2, 1)).then(plan((1,), (0,)))
    assert find_removal(first) == plan((3, 0), (2, 1))
    save(second, tmp_path / "m")
    x = data()
    assert same_bytes(load(tmp_path / "m", into=make(5))(x), second(x))


def test_groups_heads_and_ties_come_back(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.heads = Tied(), 4
            self.conv = nn.Conv1d(4, 8, 1, groups=4)
            self.norm = nn.RMSNorm(4, eps=0.5)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.tied.embed(ids).T
            return self.tied.head(self.norm(self.conv(x).mean(1, keepdim=True).sum(0)[..., None].expand(-1, 4)[:, :4]))

    net = Mixed()
    kept = {"tied.embed.weight": {0: (5, 0, 3)}, "conv.weight": {0: (0, 2, 4, 6)}, "conv.bias": {0: (0, 2, 4, 6)}}
    removal = Removal({**kept, "tied.view": {0: (5, 0, 3)}}, {"": {"heads": 2}, "norm": {"eps": 0.75}})
    remove(net, removal)
    save(net, tmp_path / "m")
    target = Mixed()
    with torch.no_grad():
        target.tied.view.copy_(torch.arange(24.0).view(6, 4))
    target.tied.view = target.tied.view.clone()
    load(tmp_path / "m", into=target)
    assert (target.heads, target.norm.eps, target.conv.groups) == (2, 0.75, 4)
    assert target.tied.head.weight is target.tied.embed.weight
    assert same_bytes(target.tied.embed.weight.detach(), net.tied.embed.weight.detach())
    assert target.tied.view.tolist() == [list(range(4 * i, 4 * i + 4)) for i in (5, 0, 3)]  # in no state dict
    ids = torch.tensor([0, 2])
    assert same_bytes(target(ids), net(ids))


def test_masks_and_shapes_go_together(tmp_path: Path) -> None:
    small = shrunk().float()
    prune(small, 0.5)
    save(small, tmp_path / "m")
    target = load(tmp_path / "m", into=make(5).float())
    masks = find_masks(target)
    assert masks is not None
    masks.check()
    x = data().float()
    assert same_bytes(target(x), small(x))


def test_an_error_while_filling_takes_the_shapes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(shrunk(), tmp_path / "m")
    target = make(5)
    before = state(target)

    def stop(pairs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.deploy.files.swap_in", stop)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path / "m", into=target)
    assert unchanged(target, before)


def test_forged_structures_are_refused_and_leave_the_target(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 1, groups=4), nn.GroupNorm(4, 8))
    kept = {
        "0.weight": {0: (0, 1, 2, 3)},
        "0.bias": {0: (0, 1, 2, 3)},
        "1.weight": {0: (0, 1, 2, 3)},
        "1.bias": {0: (0, 1, 2, 3)},
    }
    remove(net, Removal(kept, {"1": {"num_groups": 2}}))
    save(net, tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    loaded = 0
    for seed in range(150):
        target = nn.Sequential(nn.Conv2d(4, 8, 1, groups=4), nn.GroupNorm(4, 8))
        before = state(target)

        def forge(record: dict[str, Any], seed: int = seed) -> None:
            part = {"shrunk": record["record"]["secateur.shrunk"]}
            hurt(random.Random(seed), part)
            record["record"]["secateur.shrunk"] = part.get("shrunk")

        (tmp_path / "f").write_bytes(edited(content, forge))
        with contextlib.suppress(ValueError):
            load(tmp_path / "f", into=target, max_bytes=1 << 20)
            target(torch.randn(1, target[0].in_channels, 2, 2))
            loaded += 1
            continue
        assert unchanged(target, before)
    assert 3 < loaded < 90
