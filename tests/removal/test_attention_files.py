"""A model with opened attention as files: for those who have this library, and for those who have not."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.deploy.attention import Attention, open_attention
from tests.io.forge import edited, hurt
from tests.removal.attention_net import Around, near, unsettled
from tests.removal.plain_net import Plain

HERE = Path(__file__).parent
WITHOUT = """
import sys
sys.modules["secateur"] = None  # importing it raises ImportError
sys.path[:0] = sys.argv[1:3]
import torch
from safetensors.torch import load_file
from plain_net import Plain
from small_net_attention import load
folder = sys.argv[2]
torch.set_num_threads(1)
net = load(Plain(), load_file(f"{folder}/small-net.safetensors")).eval()
assert net.head.weight is net.embed.weight
try:
    import secateur
except ImportError:
    torch.save((net(torch.load(f"{folder}/ids.pt")), str(net)), f"{folder}/out.pt")
"""


def plain() -> Plain:
    net = unsettled(Plain())
    assert isinstance(net, Plain)
    with torch.no_grad():
        net.norm.running_var.uniform_(0.5, 1.5)
    return net


def shrunk(ids: Tensor) -> Plain:
    """Two heads of four, and a part of every width beside."""
    opened = open_attention(plain())
    heads = sc.groups(opened, ids, unit="head")
    assert len(heads) == 2
    small = sc.shrink(opened, example_inputs=ids, unit="head", units={name: [1, 2] for name in heads})
    widths = sc.groups(small, ids)
    return sc.shrink(small, example_inputs=ids, units={name: [0, 3] for name in widths})


def test_who_has_not_this_library_gets_the_model(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (3, 6))
    small = shrunk(ids)
    sc.save(small, tmp_path / "small-net.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"small-net.safetensors", "small_net_attention.py"}
    text = (tmp_path / "small_net_attention.py").read_text()
    assert "import secateur" not in text
    assert "from secateur" not in text
    assert 'load_file("small-net.safetensors")' in text
    torch.save(ids, tmp_path / "ids.pt")
    code = [sys.executable, "-W", "error", "-c", WITHOUT, str(HERE), str(tmp_path)]
    subprocess.run(code, check=True, timeout=120, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    out, printed = torch.load(tmp_path / "out.pt")
    assert near(out, small(ids))
    assert printed == str(small)  # every size that a module shows is the new one


def test_who_has_it_loads_as_ever(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (3, 6))
    small = shrunk(ids)
    sc.save(small, tmp_path / "net")
    net = plain()
    loaded = sc.load(tmp_path / "net", into=net)
    assert loaded is net
    assert torch.equal(net(ids), small(ids))
    assert str(net) == str(small)
    assert not net.encoder.use_nested_tensor
    again = open_attention(plain())
    assert torch.equal(sc.load(tmp_path / "net", into=again)(ids), small(ids))
    sc.save(again, tmp_path / "net")  # over its own files
    assert torch.equal(sc.load(tmp_path / "net", into=Plain).eval()(ids), small(ids))


def test_opened_after_it_was_shrunk(tmp_path: Path) -> None:
    net, ids = plain(), torch.randint(0, 20, (3, 6))
    opened = open_attention(sc.shrink(net, example_inputs=ids, units={"wide.weight": [5, 7]}))
    sc.save(opened, tmp_path / "net")
    assert torch.equal(sc.load(tmp_path / "net", into=plain())(ids), opened(ids))


def test_opened_and_not_shrunk(tmp_path: Path) -> None:
    net, x = unsettled(Around()), torch.randn(2, 6, 5)
    opened = open_attention(net)
    opened.attention.scale = 0.25
    sc.save(opened, tmp_path / "net")
    target = sc.load(tmp_path / "net", into=Around())
    assert target.attention.sizes() == {"num_heads": 4, "head_dim": 2, "v_head_dim": 2, "scale": 0.25}
    assert torch.equal(target(x), opened(x))
    sc.save(net, tmp_path / "plain")
    assert not (tmp_path / "plain_attention.py").exists()
    assert near(sc.load(tmp_path / "plain", into=open_attention(Around()))(x), net(x))  # the names are the same


def test_masks_are_for_those_who_have_it(tmp_path: Path) -> None:
    opened, x = open_attention(unsettled(Around())), torch.randn(2, 6, 5)
    sc.prune(opened, 0.5)
    sc.save(opened, tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net"]  # packed weights are no plain tensors
    assert torch.equal(sc.load(tmp_path / "net", into=Around())(x), opened(x))


def test_the_attention_alone(tmp_path: Path) -> None:
    module, x = open_attention(nn.MultiheadAttention(8, 4)), torch.randn(5, 2, 8)
    sc.save(module, tmp_path / "1.a")
    assert torch.equal(sc.load(tmp_path / "1.a", into=Attention(8, 4))(x, x, x)[0], module(x, x, x)[0])
    with pytest.raises(ValueError, match="load it into"):
        sc.load(tmp_path / "1.a", into=nn.MultiheadAttention(8, 4))
    space: dict[str, Any] = {"__name__": "beside"}
    exec((tmp_path / "_1_attention.py").read_text(), space)
    assert near(space["load"](nn.MultiheadAttention(8, 4), module.state_dict())(x, x, x), module(x, x, x))


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "net_attention.py").write_text("mine = 1\n")
    with pytest.raises(ValueError, match=r"net_attention\.py is not a file of this library"):
        sc.save(open_attention(Around()), tmp_path / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["net_attention.py"]
    with pytest.raises(ValueError, match=r"record= has the key 'secateur\.attention'"):
        sc.save(open_attention(Around()), tmp_path / "other", record={"secateur.attention": 1})


def facts(net: Plain) -> list[Any]:
    """Everything that loading could change."""
    numbers = [vars(module) for module in net.modules() if isinstance(module, Attention)]
    sizes = [{key: value for key, value in table.items() if key[0] != "_"} for table in numbers]
    tensors = [(name, id(tensor), tensor.clone().tolist()) for name, tensor in net.state_dict(keep_vars=True).items()]
    return [str(net), net.encoder.use_nested_tensor, [id(module) for module in net.modules()], sizes, tensors]


def test_an_error_leaves_torchs_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(0, 20, (3, 6))
    sc.save(shrunk(ids), tmp_path / "net")

    def stop(pairs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("secateur.deploy.files.swap_in", stop)
    for target in (plain(), open_attention(plain())):
        before = facts(target)
        with pytest.raises(KeyboardInterrupt):
            sc.load(tmp_path / "net", into=target)
        assert facts(target) == before


def test_forged_numbers_are_refused_and_leave_the_target(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (1, 6))
    sc.save(shrunk(ids), tmp_path / "net")
    content, loaded = (tmp_path / "net").read_bytes(), 0
    for seed in range(120):

        def forge(record: dict[str, Any], seed: int = seed) -> None:
            part = {"attention": record["record"]["secateur.attention"]}
            hurt(random.Random(seed), part)
            record["record"]["secateur.attention"] = part.get("attention")

        (tmp_path / "forged").write_bytes(edited(content, forge))
        target = plain()
        before = facts(target)
        try:
            sc.load(tmp_path / "forged", into=target, max_bytes=1 << 22)
        except ValueError:
            assert facts(target) == before
        else:
            target(ids)
            loaded += 1
    assert loaded < 60


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"attention": {"num_heads": 3, "head_dim": 2, "v_head_dim": 2, "scale": 1.0}}, "3 heads of 2"),
        ({"attention": {"num_heads": True, "head_dim": 2, "v_head_dim": 2, "scale": 1.0}}, "has not num_heads"),
        ({"attention": {"num_heads": 4, "head_dim": 2, "v_head_dim": 2, "scale": 1e999}}, "has not num_heads|JSON"),
        ({"attention": {"num_heads": -4, "head_dim": -2, "v_head_dim": -2, "scale": 1.0}}, "has not num_heads"),
        ({"attention": {"num_heads": 4, "head_dim": 2}}, "has not num_heads"),
        ({"before": {"num_heads": 4, "head_dim": 2, "v_head_dim": 2, "scale": 1.0}}, "before is a Linear"),
        ({"behind": {"num_heads": 4, "head_dim": 2, "v_head_dim": 2, "scale": 1.0}}, "none of that name"),
        ([], "has not num_heads"),
    ],
)
def test_wrong_numbers_are_said(tmp_path: Path, sizes: Any, message: str) -> None:
    sc.save(open_attention(Around()), tmp_path / "net")

    def forge(record: dict[str, Any]) -> None:
        record["record"]["secateur.attention"] = sizes

    (tmp_path / "net").write_bytes(edited((tmp_path / "net").read_bytes(), forge))
    target = Around()
    with pytest.raises(ValueError, match=message):
        sc.load(tmp_path / "net", into=target)
    assert type(target.attention) is nn.MultiheadAttention
