from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.model.removal import Removal, mark_shrunk, remove, restore_shapes, structure, tensor_shapes
from secateur.model.removal.restore import Structure
from tests.removal.remove_net import H, Net, Tied, W, make, plan


class Heads(nn.Module):
    """Numbers of the user's own beside the tensors."""

    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.heads, self.sizes, self.eps = heads, (heads, width // heads), 1e-5
        self.flag, self.title, self._hidden = True, "attention", 7

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(x).view(*x.shape[:2], 3, *self.sizes).sum(2).flatten(2) / self.heads


def test_only_what_shapes_do_not_tell_is_kept() -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.LayerNorm(8),
        nn.Embedding(5, 4, padding_idx=1),
        nn.Embedding(5, 4),
        nn.LSTM(3, 4, num_layers=2, bidirectional=True),
        nn.MultiheadAttention(8, 4),
        nn.RMSNorm(4, eps=0.5),
        nn.InstanceNorm2d(4),
        nn.Unflatten(1, (2, 4)),
        nn.Dropout(0.3),
        Heads(),
    )
    found = structure(net)
    assert found == {
        "0": {"groups": 1},  # a class with four may have come down to one
        "1": {"groups": 8},
        "3": {"num_groups": 2},
        "5": {"padding_idx": 1},
        "8": {"num_heads": 4},
        "9": {"eps": 0.5},
        "10": {"num_features": 4},
        "11": {"unflattened_size": (2, 4)},
        "13": {"heads": 4, "sizes": (4, 2), "eps": 1e-5},
    }
    assert json.loads(json.dumps(found))["8"] == {"num_heads": 4}


def test_a_class_built_on_a_known_layer_has_numbers_of_its_own() -> None:
    class Wide(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(2, 4, 3)
            self.width = 4

    assert structure(nn.Sequential(Wide())) == {"0": {"groups": 1, "width": 4}}


@given(st.integers(1, 6), st.integers(1, 6))
def test_any_sizes_smaller_or_larger_come_back(channels: int, hidden: int) -> None:
    small, net = make(channels=channels, hidden=hidden), make(seed=1, channels=3, hidden=3)
    objects = [id(t) for t in net.state_dict(keep_vars=True).values()]
    restore_shapes(net, tensor_shapes(small), structure(small))
    assert repr(net) == repr(small)
    assert [id(t) for t in net.state_dict(keep_vars=True).values()] == objects
    net.load_state_dict(small.state_dict())
    x = torch.randn(2, 2, H, W, dtype=torch.float64)
    assert torch.equal(net(x), small(x))


def grouped(n: int = 4, per: int = 2) -> nn.Module:
    return nn.Sequential(nn.Conv2d(n * per, n * per, 3, groups=n), nn.GroupNorm(n, n * per))


@pytest.mark.parametrize(
    ("large", "small", "shape"),
    [
        (lambda: grouped(4), lambda: grouped(3), (2, 6, 4, 4)),
        (lambda: grouped(4), lambda: grouped(4, 1), (2, 4, 4, 4)),
        (lambda: grouped(4), lambda: grouped(1), (2, 2, 4, 4)),
        (lambda: nn.LSTM(3, 5, bidirectional=True), lambda: nn.LSTM(2, 4, bidirectional=True), (3, 1, 2)),
        (lambda: Heads(8, 4), lambda: Heads(6, 3), (1, 2, 6)),
        (Tied, lambda: smaller(Tied(), {"embed.weight": {0: (1, 2), 1: (0,)}, "view": {0: (1, 2), 1: (0,)}}), None),
    ],
)
def test_layers_with_more_to_them_compute_the_same(
    large: Callable[[], nn.Module], small: Callable[[], nn.Module], shape: tuple[int, ...] | None
) -> None:
    net, source = large(), small()
    stored = {name: tuple(t.shape) for name, t in source.state_dict().items()}
    restore_shapes(net, stored, structure(source))
    assert repr(net) == repr(source)
    assert structure(net) == structure(source)
    net.load_state_dict(source.state_dict())
    x = torch.tensor([0, 1]) if shape is None else torch.randn(shape)
    left, right = net(x), source(x)
    assert torch.equal(left[0], right[0])


def smaller(net: nn.Module, kept: dict[str, dict[int, tuple[int, ...]]]) -> nn.Module:
    remove(net, Removal(kept))
    return net


@pytest.mark.parametrize(
    ("shapes", "told", "message"),
    [
        ({"fc3.weight": (2, 2)}, {}, r"has no parameters or buffers \['fc3\.weight'\]"),
        ({"fc2.weight": (2, 3, 1)}, {}, r"fc2\.weight has shape \(2, 3\) and cannot become \(2, 3, 1\)"),
        ({"fc2.weight": (2, 0)}, {}, r"cannot become \(2, 0\)"),
        ({"fc2.weight": (1, 3)}, {}, r"fc2 \(Linear\): bias would be \(2,\)"),
        ({"fc2.weight": (2, 7)}, {"fc2": {"in_features": 6}}, "sets in_features to 6, its tensors say 7"),
        ({"fc2.weight": (2, 7)}, {"fc9": {"heads": 6}}, r"\['fc9'\], which are no modules"),
        ({"fc2.weight": (2, 7)}, {"conv": {"heads": 6}}, "no attribute 'heads'"),
        ({"fc2.weight": (2, 7)}, {"": {"training": 6}}, "training is False and cannot be set to 6"),
        ({"fc2.weight": (2, 7)}, {"conv": {"forward": 6}}, "cannot be set to 6"),
    ],
)
def test_what_does_not_fit_leaves_the_model(shapes: Any, told: Any, message: str) -> None:
    net = make()
    net.eval()
    x = torch.randn(2, 2, H, W, dtype=torch.float64)
    net(x).sum().backward()
    expected, text = net(x), repr(net)
    pointers = [t.data_ptr() for t in net.state_dict().values()]
    grads = [p.grad for p in net.parameters()]
    with pytest.raises(ValueError, match=message):
        restore_shapes(net, shapes, told)
    assert repr(net) == text
    assert [t.data_ptr() for t in net.state_dict().values()] == pointers
    assert all(p.grad is grad for p, grad in zip(net.parameters(), grads, strict=True))
    assert torch.equal(net(x), expected)


def test_tied_names_need_one_shape() -> None:
    with pytest.raises(ValueError, match=r"ties 'embed\.weight' and 'head\.weight', which are to be \(3, 2\) and"):
        restore_shapes(Tied(), {"embed.weight": (3, 2), "head.weight": (4, 2)}, {})


def test_the_structure_of_a_removal_names_only_what_it_changed() -> None:
    net = nn.Sequential(Net(), nn.Conv2d(4, 8, 1, groups=4), nn.Conv2d(9, 9, 1, groups=9), Heads())
    kept = {f"0.{name}": axes for name, axes in plan((0, 1), (2,)).kept.items()}
    kept |= {"1.weight": {0: (0, 2, 4, 6)}, "1.bias": {0: (0, 2, 4, 6)}, "3.qkv.bias": {}}
    remove(net, Removal(kept, {"3": {"heads": 2}}))
    told = Structure.of(net)
    assert told.attributes == {"1": {"groups": 4}, "3": {"heads": 2}}
    assert told.before is not None
    assert told.before["1.weight"] == (8, 1, 1, 1)
    assert "0.fc2.bias" not in told.before
    assert "2.weight" not in told.before
    assert Structure.from_record(json.loads(json.dumps(told.to_record()))) == told


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"before": {}, "removal": {}},
        {"before": [], "removal": Removal().to_record()},
        {"before": {"w": [1.5]}, "removal": Removal().to_record()},
        {"before": {"w": [-1]}, "removal": Removal().to_record()},
    ],
)
def test_damaged_structures_are_refused(record: object) -> None:
    with pytest.raises(ValueError, match="record"):
        Structure.from_record(record)


def test_a_mark_can_be_made_by_hand() -> None:
    net = nn.Linear(2, 2)
    net.heads = 3
    mark_shrunk(net, Removal({"weight": {0: (0, 4)}}, {"": {"heads": 3}}))
    assert Structure.of(net) == Structure(None, {"": {"heads": 3}})
    mark_shrunk(net, Removal({"weight": {0: (0, 4)}}), {"weight": (5, 2)})
    assert Structure.of(net).before == {"weight": (5, 2)}
