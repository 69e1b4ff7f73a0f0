"""What a model keeps when it gets smaller: flags, ties, hooks, files, exports, and that it trains on."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from tests.oracles.removal import run, zeroed
from tests.removal.traced_nets import dead_slices, distance, some_units


class Residual(nn.Module):
    """Stem, one residual block with a wider inside, pooling, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first, self.second = nn.Conv2d(12, 20, 3, padding=1, bias=False), nn.Conv2d(20, 12, 3, padding=1)
        self.norm, self.after = nn.BatchNorm2d(20), nn.BatchNorm2d(12)
        self.classes = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        h = (h + self.after(self.second(self.norm(self.first(h)).relu()))).relu()
        return self.classes(h.mean((2, 3)))


class Attend(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))


class Language(nn.Module):
    """One block with exact norms; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(30, 16), nn.Parameter(torch.randn(10, 16))
        self.attend, self.up, self.down = Attend(16, 4), nn.Linear(16, 40), nn.Linear(40, 16)
        self.before, self.between = nn.RMSNorm(16, eps=1e-5), nn.RMSNorm(16, eps=1e-5)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids) + self.place[: ids.shape[1]]
        h = h + self.attend(self.before(h))
        return self.head(h + self.down(F.gelu(self.up(self.between(h)))))


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(batch))


def sentences(batch: int) -> Tensor:
    return torch.randint(0, 30, (batch, 10), generator=torch.Generator().manual_seed(batch))


Pair = tuple[nn.Module, nn.Module, Callable[[int], Tensor]]


def build(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = kind()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith("var"):
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model.eval()


@pytest.fixture(params=[Residual, Language], ids=["residual", "language"])
def kind(request: pytest.FixtureRequest) -> type[nn.Module]:
    return request.param


def inputs_of(kind: type[nn.Module]) -> Callable[[int], Tensor]:
    return images if kind is Residual else sentences


def shrunk(model: nn.Module, **more: Any) -> nn.Module:
    x = inputs_of(type(model))(2)
    units = some_units(sc.groups(model, x))
    assert len(units) == 2
    return sc.shrink(model, units=units, example_inputs=x, **more)


@pytest.fixture
def pair(kind: type[nn.Module]) -> Pair:
    model = build(kind)
    return model, shrunk(model), inputs_of(kind)


def same(one: nn.Module, other: nn.Module, x: Tensor) -> bool:
    return all(torch.equal(a, b) for a, b in zip(run(one, x), run(other, x), strict=True))


def test_it_computes_what_the_masked_one_computes(pair: Pair) -> None:
    model, small, inputs = pair
    groups = sc.groups(model, inputs(2))
    masked = zeroed(model, dead_slices(groups, some_units(groups)))
    for batch in (1, 7):
        assert distance(run(masked, inputs(batch)), run(small, inputs(batch))) < 1e-4
        assert distance(run(model, inputs(batch)), run(small, inputs(batch))) > 1e-2


@pytest.mark.parametrize("inplace", [True, False])
def test_mode_flags_dtype_and_hooks(kind: type[nn.Module], inplace: bool) -> None:
    model, called = build(kind), list[tuple[int, ...]]()
    layer = "first" if kind is Residual else "up"
    model.train()
    model.get_submodule("norm" if kind is Residual else "attend").eval()
    model.get_parameter(f"{layer}.weight").requires_grad_(False)
    model.get_submodule(layer).register_forward_hook(lambda *args: called.append(tuple(args[2].shape)))
    modes = [module.training for module in model.modules()]
    flags = {name: (p.requires_grad, p.dtype, type(p)) for name, p in model.named_parameters()}
    small = shrunk(model, inplace=inplace)
    assert [module.training for module in small.modules()] == modes
    assert {name: (p.requires_grad, p.dtype, type(p)) for name, p in small.named_parameters()} == flags
    called.clear()
    small(inputs_of(kind)(3))
    assert len(called) == 1
    assert small.get_parameter(f"{layer}.weight").shape[0] in called[0], "the hook sees the smaller width"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(kind: type[nn.Module], dtype: torch.dtype) -> None:
    model, x = build(kind).to(dtype), inputs_of(kind)(2)
    x = x.to(dtype) if x.is_floating_point() else x
    small = sc.shrink(model, units=some_units(sc.groups(model, x)), example_inputs=x)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert small(x).dtype == dtype


@pytest.mark.parametrize("inplace", [True, False])
def test_ties_stay_ties(inplace: bool) -> None:
    model = build(Language)
    small = shrunk(model, inplace=inplace)
    assert small.head.weight is small.embed.weight
    assert (small is model) == inplace
    assert small.head.in_features == small.embed.embedding_dim == small.embed.weight.shape[1] == 11
    if inplace:
        assert sum(p.numel() for p in model.parameters()) == sum(
            p.numel() for p in shrunk(build(Language)).parameters()
        )


def test_copies_and_pickles_know_nothing_of_us(pair: Pair) -> None:
    _, small, inputs = pair
    buffer = io.BytesIO()
    torch.save(small, buffer)
    assert b"secateur" not in pickle.dumps(small)
    assert b"secateur" not in buffer.getvalue()
    buffer.seek(0)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(buffer, weights_only=False)):
        assert same(small, twin, inputs(3))
        if isinstance(twin, Language):
            assert twin.head.weight is twin.embed.weight


def test_strict_state_dict_into_a_copy(pair: Pair) -> None:
    _, small, inputs = pair
    twin = copy.deepcopy(small)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    twin.load_state_dict(small.state_dict(), strict=True)
    assert same(small, twin, inputs(3))


def test_saved_and_loaded_into_the_original_class(pair: Pair, kind: type[nn.Module], tmp_path: Path) -> None:
    _, small, inputs = pair
    sc.save(small, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", into=kind).eval()
    assert type(loaded) is kind
    assert [p.shape for p in loaded.parameters()] == [p.shape for p in small.parameters()]
    for batch in (1, 4):
        assert same(small, loaded, inputs(batch))


def test_exported_with_a_dynamic_batch(pair: Pair) -> None:
    _, small, inputs = pair
    program = torch.export.export(small, (inputs(4),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (1, 2, 9):
        assert distance(run(small, inputs(batch)), run(program.module(), inputs(batch))) < 1e-5


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx_with_a_dynamic_batch(pair: Pair, tmp_path: Path) -> None:
    import onnxruntime

    _, small, inputs = pair
    path = tmp_path / "small.onnx"
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    torch.onnx.export(small, (inputs(4),), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    assert b"secateur" not in path.read_bytes()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        (got,) = session.run(None, {session.get_inputs()[0].name: inputs(batch).numpy()})
        assert distance(run(small, inputs(batch)), [torch.from_numpy(got)]) < 1e-4


def test_compiled(pair: Pair) -> None:
    _, small, inputs = pair
    compiled = torch.compile(small, backend="eager")
    for batch in (2, 5):
        assert distance(run(small, inputs(batch)), run(compiled, inputs(batch))) < 1e-6


def test_training_goes_on(pair: Pair) -> None:
    _, small, inputs = pair
    small.train()
    optimizer, losses = torch.optim.Adam(small.parameters(), lr=1e-2), list[float]()
    for _ in range(5):
        optimizer.zero_grad()
        out = small(inputs(6))
        loss = F.cross_entropy(out.flatten(0, -2), torch.arange(out[..., 0].numel()) % out.shape[-1])
        loss.backward()
        assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())
        assert sum(float(p.grad.abs().sum()) > 0 for p in small.parameters()) >= len(list(small.parameters())) - 2
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] < float("inf")


def test_recalibration_changes_statistics_only() -> None:
    small = shrunk(build(Residual))
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    done = sc.recalibrate(small, [images(16), images(17)])
    changed = {name for name, tensor in small.state_dict().items() if not torch.equal(tensor, before[name])}
    statistics = {f"{norm}.running_{kind}" for norm in ("norm", "after") for kind in ("mean", "var")}
    assert statistics <= changed <= statistics | {"norm.num_batches_tracked", "after.num_batches_tracked"}
    assert set(done.moved) == {"norm", "after"}
    assert not small.training
    seen = small.first(small.stem(torch.cat([images(16), images(17)])).relu()).mean((0, 2, 3))
    assert torch.allclose(small.norm.running_mean, seen, atol=1e-2)
