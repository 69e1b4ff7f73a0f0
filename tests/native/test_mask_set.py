"""MaskSet: all tensors in one call, the torch reference wherever the core does not reach, and clear refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur import native
from secateur.native import mask_set as room
from secateur.native.loading import core
from tests.native.oracle import DTYPES, awkward_values, bits_tensor, masked, random_mask, raw

SHAPES = [(3, 5), (64,), (2, 3, 4, 5), (0, 7), (129, 33), ()]


@pytest.fixture(params=["core", "core by addresses", "reference"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "reference":
        monkeypatch.setattr(room, "core", None)
        return request.param
    if core is None:
        pytest.skip("the C++ core is absent")
    if request.param == "core by addresses":  # a torch before 2.10
        monkeypatch.setattr(room, "EXCHANGE", None)
    return request.param


def masks_for(shapes: list[tuple[int, ...]], density: float = 0.3) -> tuple[list[np.ndarray], native.MaskSet]:
    masks = [random_mask(int(np.prod(shape)), density, seed) for seed, shape in enumerate(shapes)]
    return masks, native.MaskSet([bits_tensor(mask) for mask in masks], shapes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_tensors(either: str, dtype: torch.dtype) -> None:
    masks, table = masks_for(SHAPES)
    tensors = [awkward_values(mask.size, dtype).view(shape) for mask, shape in zip(masks, SHAPES, strict=True)]
    expected = [masked(tensor, mask) for tensor, mask in zip(tensors, masks, strict=True)]
    table.apply(tensors)
    assert len(table) == len(SHAPES)
    assert all((raw(tensor) == wanted).all() for tensor, wanted in zip(tensors, expected, strict=True))


def test_mixed_types_and_gaps(either: str) -> None:
    masks, table = masks_for([(40,)] * 6)
    tensors: list[Tensor | None] = [None, *(awkward_values(40, dtype) for dtype in DTYPES), None]
    expected = [None if t is None else masked(t, mask) for t, mask in zip(tensors, masks, strict=True)]
    table.apply(tensors)
    for tensor, wanted in zip(tensors, expected, strict=True):
        assert tensor is None or (raw(tensor) == wanted).all()
    table.apply([None] * 6)


def test_integers_are_masked_too(either: str) -> None:
    masks, table = masks_for([(50,)])
    values = torch.arange(1, 51)
    table.apply([values])
    assert (values.numpy() == np.where(masks[0], np.arange(1, 51), 0)).all()


STRIDED: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "every other": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "offset": lambda t: torch.cat([torch.ones(3), t.reshape(-1)])[3:].view(t.shape),
}


@pytest.mark.parametrize("how", STRIDED)
def test_strides(either: str, how: str) -> None:
    shape = (4, 6, 3, 5)
    masks, table = masks_for([shape])
    values = torch.randn(shape)
    tensor = STRIDED[how](values)
    for _ in range(2):  # the second time from the cache
        table.apply([tensor])
        assert (tensor.numpy() == np.where(masks[0].reshape(shape), values.numpy(), 0)).all()


def test_parameters_and_gradients(either: str) -> None:
    masks, table = masks_for([(7, 9)])
    weight = nn.Parameter(torch.randn(7, 9))
    (weight**2).sum().backward()
    assert weight.grad is not None
    wanted = np.where(masks[0].reshape(7, 9), weight.grad.numpy(), 0)
    table.apply([weight])
    table.apply([weight.grad])
    assert (weight.grad.numpy() == wanted).all()
    assert weight.is_leaf
    assert weight.requires_grad


def test_autograd_notices(either: str) -> None:
    _, table = masks_for([(4, 4)])
    weight = nn.Parameter(torch.randn(4, 4))
    loss = (weight**2).sum()  # saves the weight
    table.apply([weight])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([torch.ones(2, 3)], r"tensors: got 1, expected one for each of the 2 masks"),
        ([torch.ones(2, 3), torch.ones(3, 5)], r"tensors\[1\]: got torch.float32 of shape \(3, 5\).* shape \(5, 3\)"),
        ([torch.ones(6, dtype=torch.bfloat16), None], r"tensors\[0\]: got torch.bfloat16 of shape \(6,\).* \(2, 3\)"),
        ([torch.ones(2, 3).to_sparse(), None], r"tensors\[0\]: expected a dense tensor, got torch.sparse_coo"),
        ([torch.ones(2, 3, dtype=torch.int32), torch.ones(1, dtype=torch.int32)], r"tensors\[1\]: got torch.int32"),
    ],
)
def test_refusals_change_nothing(either: str, tensors: list[Tensor | None], message: str) -> None:
    _, table = masks_for([(2, 3), (5, 3)], density=0.0)
    with pytest.raises(ValueError, match=message):
        table.apply(tensors)
    assert all(t is None or t.is_sparse or bool((t == 1).all()) for t in tensors)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_compressed_sparse_is_refused_alike(either: str) -> None:
    _, table = masks_for([(2, 3)])
    with pytest.raises(ValueError, match=r"tensors\[0\]: expected a dense tensor, got torch.sparse_csr"):
        table.apply([torch.ones(2, 3).to_sparse_csr()])


@pytest.mark.parametrize(
    ("bits", "shapes", "message"),
    [
        ([torch.zeros(1, dtype=torch.uint8)], [], "1 bits and 0 shapes"),
        ([torch.zeros(1, dtype=torch.uint8)], [(3, 3)], r"bits\[0\]: expected uint8 of shape \(2,\) for 9 elements"),
        ([torch.zeros(2)], [(3, 3)], "torch.float32"),
    ],
)
def test_bits_must_fit(either: str, bits: list[Tensor], shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.MaskSet(bits, shapes)


def test_no_tensors(either: str) -> None:
    table = native.MaskSet([], [])
    table.apply([])
    assert len(table) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(either: str, copied: Callable[[native.MaskSet], native.MaskSet]) -> None:
    masks, table = masks_for([(30,)])
    twin = copied(table)
    del table
    values = torch.ones(30)
    twin.apply([values])
    assert (values.numpy() == masks[0]).all()


def test_the_bits_stay_alive() -> None:
    """The core holds addresses; the MaskSet must hold what lies there."""
    mask = random_mask(4096, 0.5)
    table = native.MaskSet([bits_tensor(mask)[: 4096 // 8]], [(4096,)])
    _ = [torch.full((512,), 255, dtype=torch.uint8) for _ in range(100)]
    values = torch.ones(4096)
    table.apply([values])
    assert (values.numpy() == mask).all()


def test_meta_tensors_pass() -> None:
    _, table = masks_for([(30,)])
    nowhere = torch.empty(30, device="meta")
    table.apply([nowhere])
    assert nowhere.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cuda(dtype: torch.dtype) -> None:
    masks, table = masks_for([(40, 5)])
    values = awkward_values(200, dtype).view(40, 5)
    wanted = masked(values, masks[0])
    on_device = values.cuda()
    table.apply([on_device])
    assert (raw(on_device.cpu()) == wanted).all()
    bits = native.pack_bits(torch.from_numpy(masks[0]).cuda())
    assert bits.is_cuda
    assert native.unpack_bits(bits, 200).cpu().tolist() == masks[0].tolist()
    assert native.count_bits(bits, 200) == masks[0].sum()


@pytest.mark.skipif(core is None, reason="the C++ core is absent")
@pytest.mark.skipif(not hasattr(Tensor, "__dlpack_c_exchange_api__"), reason="this torch has no exchange table")
def test_the_core_itself_reads_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the core must not touch goes through torch, or the speed is lost without a test noticing."""
    left: list[int] = []
    _, table = masks_for([(4, 6), (4, 6), (4, 6), (4, 6), (1, 6, 1), ()])
    monkeypatch.setattr(native.MaskSet, "_apply_rest", lambda self, rest: left.extend(index for index, _ in rest))
    weight = nn.Parameter(torch.ones(4, 6))
    one = torch.ones(6, 1, 1).permute(2, 0, 1)  # contiguous although permuted: lengths of 1
    table.apply([weight, torch.ones(6, 4).t(), torch.ones(4, 6, dtype=torch.int32), None, one, torch.ones(())])
    assert left == [1, 2]


@pytest.mark.slow
def test_compile_leaves_it_alone(either: str) -> None:
    """Addresses of traced tensors mean nothing, so Dynamo must step around the whole call."""
    masks, table = masks_for([(30,)])

    def step(values: Tensor) -> Tensor:
        values = values + 1
        table.apply([values])
        return values * 2

    compiled = torch.compile(step, backend="eager")
    for start in (0.0, 1.0):
        assert (compiled(torch.full((30,), start)).numpy() == masks[0] * 2 * (start + 1)).all()
