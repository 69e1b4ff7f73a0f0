"""Packed files: another process gets the same answers; what is damaged, foreign or made up is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.deploy.pack import loading, saving
from secateur.deploy.pack import region as running
from tests.io.forge import hurt, join, split
from tests.io.test_fuzz import flip_bit, set_bytes, truncate
from tests.native.oracle import needs_core

pytestmark = [needs_core, pytest.mark.usefixtures("sparse_wins")]
Edit = Callable[[dict[str, Any]], None]


def sparse(model: nn.Module, sparsity: float = 0.9) -> nn.Module:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < sparsity] = 0.0
    return model.eval()


def rows() -> nn.Module:
    blocks = nn.Linear(32, 16)
    net = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), blocks, nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 5, bias=False))
    sparse(net)
    blocks.weight.data = blocks.weight.data[::4].repeat_interleave(4, 0)
    net[5].weight.data.add_(1.0)  # dense
    return net


class Images(nn.Module):
    """A residual, a pool of each kind, a depthwise convolution, a norm that is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.c = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.norm(self.a(x))), 3, 2, 1)
        y = F.relu(self.c(self.b(y)) + y)
        return self.head(F.avg_pool2d(y, 2).mean((2, 3)))


class TwoPrograms(nn.Module):
    """Rows of a sequence, then all of them as one row: the axes of samples change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 8), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)).flatten(1))


class Softmax(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.softmax(self.a(x), 1))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "rows": (rows, (24,)),
    "images": (lambda: sparse(Images(), 0.7), (3, 12, 12)),
    "two programs": (lambda: sparse(TwoPrograms()), (3, 12)),
}


def packed(name: str = "rows", samples: int = 2) -> tuple[nn.Module, sc.PackedModel, Tensor]:
    make, shape = MODELS[name]
    model, x = make(), torch.randn(samples, *shape)
    return model, sc.pack(model, x), x


@pytest.mark.parametrize("blobs", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_the_same_answers(name: str, blobs: bool, tmp_path: Path) -> None:
    model, fast, x = packed(name)
    size = sc.save(fast, tmp_path / "f", blobs=blobs, record={"epoch": 3})
    assert size == (tmp_path / "f").stat().st_size
    again = sc.load(tmp_path / "f")
    assert isinstance(again, sc.PackedModel)
    assert len(again.regions) == len(fast.regions) == (2 if name == "two programs" else 1)
    assert torch.equal(again(x), fast(x))
    for samples in (1, 5, 20):
        more = torch.randn(samples, *x.shape[1:])
        with torch.no_grad():
            assert torch.allclose(again(more), model(more), atol=1e-5)


def test_another_process_without_the_class(tmp_path: Path) -> None:
    _, fast, x = packed()
    sc.save(fast, tmp_path / "f")
    torch.save(x, tmp_path / "x")
    code = (
        "import sys, torch, secateur as sc; fast = sc.load(sys.argv[1] + '/f'); "
        "torch.save(fast(torch.load(sys.argv[1] + '/x')), sys.argv[1] + '/y')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=dict(os.environ, SECATEUR_CACHE="off"))
    assert torch.equal(torch.load(tmp_path / "y"), fast(x))


def test_the_machine_that_wrote_a_file_does_not_measure_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast, x = packed()
    sc.save(fast, tmp_path / "f")
    monkeypatch.setattr(running, "choose", lambda *args, **options: pytest.fail("measured again"))
    again = sc.load(tmp_path / "f")
    assert isinstance(again, sc.PackedModel)
    assert [(line.name, line.layout, line.us) for line in again.explain().layers] == [
        (line.name, line.layout, line.us) for line in fast.explain().layers
    ]
    assert torch.equal(again(x), fast(x))
    with monkeypatch.context() as patch:
        patch.setattr(loading, "machine", lambda threads: {"cpu": "another"})
        other = sc.load(tmp_path / "f")
        assert isinstance(other, sc.PackedModel)
        assert other.regions[0].given == {}


@pytest.mark.parametrize("name", ["rows", "images"])
def test_blobs_save_packing_and_others_pack_again(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast, x = packed(name)
    sc.save(fast, tmp_path / "f", blobs=True)
    calls: list[str] = []
    pack_layer = loading.pack_layer

    def count(graph: Any, node: Any, layout: str, threads: int) -> Any:
        calls.append(layout)
        return pack_layer(graph, node, layout, threads)

    monkeypatch.setattr(loading, "pack_layer", count)
    assert torch.equal(sc.load(tmp_path / "f")(x), fast(x))  # type: ignore[operator]
    assert calls == []
    monkeypatch.setattr(loading, "STREAMS", saving.STREAMS + 1)
    assert torch.equal(sc.load(tmp_path / "f")(x), fast(x))  # type: ignore[operator]
    assert calls == [line.layout for line in fast.explain().layers]


def test_a_loaded_model_has_no_dense_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, fast, x = packed("images")
    sc.save(fast, tmp_path / "f")
    again = sc.load(tmp_path / "f")
    assert isinstance(again, sc.PackedModel)
    with pytest.raises(ValueError, match="has no dense model beside it"):
        _ = again.dense
    assert repr(again) == "PackedModel(from a file, 1 programs)"
    copied = pickle.loads(pickle.dumps(again))
    assert torch.equal(copied(x), fast(x))
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [*[2.0] * (len(calls) - 1), 1.0])
    slow = sc.load(tmp_path / "f")
    assert isinstance(slow, sc.PackedModel)
    slow.regions[0].given = {}
    with torch.no_grad():
        assert torch.allclose(slow(x), model(x), atol=1e-6)
    assert slow.is_dense
    assert {line.layout for line in slow.explain().layers} == {"torch"}


def test_what_torch_runs_in_between_is_named(tmp_path: Path) -> None:
    fast = sc.pack(sparse(Softmax()), torch.randn(2, 8))
    with pytest.raises(ValueError, match=r"torch runs a part .* \(aten\.softmax\.int\); .* pack again"):
        sc.save(fast, tmp_path / "f")
    dense = sc.pack(nn.Softmax(1), torch.randn(1, 4))
    with pytest.raises(ValueError, match=r"nothing of this model runs in programs \(it has no .*sc\.save the sparse"):
        sc.save(dense, tmp_path / "f")
    assert not list(tmp_path.iterdir())


def test_options_that_do_not_belong(tmp_path: Path) -> None:
    model, fast, _ = packed()
    with pytest.raises(ValueError, match="has no masks"):
        sc.save(fast, tmp_path / "f", shrunk=True)
    with pytest.raises(ValueError, match="blobs=True is for packed models"):
        sc.save(model, tmp_path / "f", blobs=True)
    sc.save(fast, tmp_path / "f")
    with pytest.raises(ValueError, match="is a packed model, which has no weights"):
        sc.load(tmp_path / "f", into=rows())


def resigned(content: bytes, edit: Edit) -> bytes:
    """The file with its record edited, and a digest that fits."""
    header, data = split(content)
    record = json.loads(header["__metadata__"][saving.KEY])
    edit(record)
    text = json.dumps(record)
    slots = {key: entry for key, entry in header.items() if key != "__metadata__"}
    table = json.dumps([[key, slots[key]["dtype"], slots[key]["shape"]] for key in sorted(slots)])
    digest = hashlib.sha256(f"{table}\n{text}".encode()).hexdigest()
    return join({**slots, "__metadata__": {saving.KEY: text, f"{saving.KEY}.sha256": digest}}, data)


def node_of(record: dict[str, Any], number: int = 0) -> dict[str, Any]:
    return record["parts"][0]["nodes"][number]


LIES: dict[str, tuple[str, Edit, str]] = {
    "newer": ("rows", lambda r: r.update(format=9), "format version 9 is newer"),
    "no format": ("rows", lambda r: r.pop("format"), "names no format"),
    "threads": ("rows", lambda r: r.update(threads=0), "0 threads"),
    "no parts": ("rows", lambda r: r.update(parts=[], choices=[]), "no list of programs"),
    "other kind": ("rows", lambda r: node_of(r).update(kind="eval"), "numbers that no layer has"),
    "reads the future": ("rows", lambda r: node_of(r).update(inputs=[r["parts"][0]["outputs"][0]]), "nobody made"),
    "output is an input": ("rows", lambda r: r["parts"][0].update(outputs=r["parts"][0]["inputs"]), "nobody makes"),
    "weight too wide": ("rows", lambda r: r["parts"][0]["shapes"].update({r["parts"][0]["inputs"][0]: [9]}), "make"),
    "weight reshaped": ("rows", lambda r: node_of(r)["weight"].update(shape=[24, 32]), "another shape"),
    "huge weight": ("rows", lambda r: node_of(r)["weight"].update(shape=[10**6, 10**6]), "raise max_bytes="),
    "huge value": ("rows", lambda r: r["parts"][0]["shapes"].update({r["parts"][0]["inputs"][0]: [10**12]}), "bytes"),
    "activation": ("rows", lambda r: node_of(r).update(activation="exec"), "numbers that no layer has"),
    "residual of nothing": ("rows", lambda r: node_of(r).update(residual=True), "numbers that no layer has"),
    "eps": ("rows", lambda r: node_of(r, 2).update(eps=-1.0), "numbers that no layer has"),
    "stride": ("images", lambda r: node_of(r).update(stride=[2, 2]), "does not make"),
    "padding": ("images", lambda r: node_of(r).update(padding=[2, 2]), "does not make"),
    "groups": ("images", lambda r: node_of(r).update(groups=3), "does not make"),
    "kernel": ("images", lambda r: node_of(r).update(kernel=[1, 1]), "does not make"),
    "fused pool": ("images", lambda r: node_of(r, 1).update(activation="relu"), "numbers that no layer has"),
    "dtype": ("rows", lambda r: r["parts"][0].update(dtype="float7"), "runs in 'float7'"),
    "dtype of no kind": ("rows", lambda r: r["parts"][0].update(dtype=[]), "altered"),
    "lead": ("rows", lambda r: r["parts"][0].update(leads=[0]), "axes of samples"),
    "no bias": ("rows", lambda r: node_of(r).update(bias=False), "nobody asks for"),
    "bias of others": ("rows", lambda r: node_of(r, 3).update(bias=True), "is missing"),
    "a field more": ("rows", lambda r: node_of(r).update(code="x"), "fields of one"),
    "checksum": ("rows", lambda r: r["crc32"].update({"0.0.bias": 7}), "checksum"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_with_a_fitting_digest_are_refused(lie: str, tmp_path: Path) -> None:
    name, edit, message = LIES[lie]
    sc.save(packed(name)[1], tmp_path / "f")
    (tmp_path / "f").write_bytes(resigned((tmp_path / "f").read_bytes(), edit))
    with pytest.raises(ValueError, match=message) as refusal:
        sc.load(tmp_path / "f")
    assert str(refusal.value).startswith(f"{tmp_path / 'f'}: ")


def outcome(path: Path, content: bytes, x: Tensor) -> Tensor | str:
    """What comes of a file and a call: an answer, or the words of a refusal."""
    path.write_bytes(content)
    try:
        found = sc.load(path, max_bytes=1 << 26)
        return found(x) if isinstance(found, sc.PackedModel) else "a bundle"
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("mutate", [flip_bit, set_bytes, truncate], ids=lambda mutate: mutate.__name__)
def test_accidents_are_refused_or_harmless(mutate: Callable[..., bytes], tmp_path: Path) -> None:
    _, fast, x = packed()
    sc.save(fast, tmp_path / "f", blobs=True)
    content, wanted = (tmp_path / "f").read_bytes(), fast(x)
    found = [outcome(tmp_path / "f", mutate(random.Random(seed), content), x) for seed in range(60)]
    assert sum(isinstance(each, str) for each in found) > 40
    assert all(torch.equal(each, wanted) for each in found if isinstance(each, Tensor))


@pytest.mark.parametrize("name", ["rows", "images"])
def test_malice_is_refused_or_runs_within_bounds(name: str, tmp_path: Path) -> None:
    """The author of these files knows the format, and lies in the record: graph, choices, blobs."""
    _, fast, x = packed(name)
    sc.save(fast, tmp_path / "f", blobs=True)
    content = (tmp_path / "f").read_bytes()

    def lie(record: dict[str, Any], seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(chance.choice([1, 1, 2, 3])):
            hurt(chance, record["parts"] if chance.random() < 0.8 else record)

    refused = 0
    for seed in range(150):
        found = outcome(tmp_path / "f", resigned(content, lambda record, seed=seed: lie(record, seed)), x)
        if isinstance(found, str):
            refused += 1
            assert "header does not match" not in found, seed
        else:
            assert len(found) == len(x), seed
    assert 60 < refused < 150
