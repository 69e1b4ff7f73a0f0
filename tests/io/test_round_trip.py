from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.io import Bundle, read, read_contents, write
from secateur.io.container import DTYPES
from secateur.types import KeyLayout
from tests.io.forge import expand_filters, parameter_masks, same_bundle, same_bytes, sample_bundle

ZEROLESS = {torch.float8_e8m0fnu} if hasattr(torch, "float8_e8m0fnu") else set()


def random_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    """Any bit pattern: infinities, nans with payloads, denormals."""
    generator = torch.Generator().manual_seed(seed)
    if dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    raw = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def without_removed(tensor: Tensor, mask: Tensor) -> Tensor:
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return torch.where(mask, tensor.view(integer), 0).view(tensor.dtype)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_every_bit_comes_back(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    tensors: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for index in range(data.draw(st.integers(0, 5))):
        dtype = DTYPES[data.draw(st.sampled_from(sorted(DTYPES)))]
        shape = tuple(data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 40]), max_size=3)))
        density = data.draw(st.sampled_from([None, 0.0, 0.02, 0.5, 0.97, 1.0]))
        name = data.draw(st.sampled_from(["a", "b.c", "ä ö", 'q"uote\\', "x#y"])) + str(index)
        tensors[name] = random_bits(shape, dtype, index)
        if density is not None and dtype not in ZEROLESS:
            masks[name] = torch.rand(shape, generator=torch.Generator().manual_seed(index)) < density
            tensors[name] = without_removed(tensors[name], masks[name])
    bundle = Bundle(tensors, masks, "weight" if masks else None)
    path = tmp_path_factory.mktemp("io") / "any.safetensors"
    assert write(path, bundle) == path.stat().st_size
    assert same_bundle(read(path), bundle)


def test_a_bundle_with_everything_comes_back(tmp_path: Path) -> None:
    bundle = sample_bundle()
    write(tmp_path / "all", bundle, masks=parameter_masks(bundle))
    back = read(str(tmp_path / "all"), expand=expand_filters)
    assert same_bundle(back, bundle)
    assert back.tensors["tied"] is back.tensors["bits"]


@pytest.mark.parametrize(("sparsity", "most"), [(0.5, 0.532), (0.9, 0.1155), (0.99, 0.0131)])
def test_files_are_as_small_as_promised(tmp_path: Path, sparsity: float, most: float) -> None:
    generator = torch.Generator().manual_seed(1)
    mask = torch.ones(1_000_000, dtype=torch.bool)
    mask[torch.randperm(1_000_000, generator=generator)[: int(sparsity * 1_000_000)]] = False
    mask = mask.view(1000, 1000)
    weight = torch.randn(1000, 1000, generator=generator) * mask
    written = write(tmp_path / "w", Bundle({"w": weight}, {"w": mask}, "weight"))
    assert written == (tmp_path / "w").stat().st_size <= most * 4_000_000
    assert same_bytes(read(tmp_path / "w").tensors["w"], weight + 0.0)


def test_coarse_units_cost_their_own_bits_alone(tmp_path: Path) -> None:
    rows = torch.arange(64) % 4 == 0
    mask = rows[:, None].expand(64, 1000).clone()
    bundle = Bundle({"w": torch.ones(64, 1000) * mask}, {"w": rows}, "row", {"w": KeyLayout((64, 1000))})
    assert write(tmp_path / "w", bundle, masks={"w": mask}) < 16 * 1000 * 4 + 1000
    stored = safetensors.torch.load_file(tmp_path / "w")
    # gaps 0 and fifteen of 3: k = 1, 31 bits of ones and zeros, 16 low bits
    assert stored["w#mask"].numel() == 1 + 4 + 2


def test_the_safetensors_library_reads_the_stored_tensors(tmp_path: Path) -> None:
    bundle = sample_bundle()
    write(tmp_path / "all", bundle, masks=parameter_masks(bundle))
    stored = safetensors.torch.load_file(tmp_path / "all")
    assert same_bytes(stored["bias"], bundle.tensors["bias"])
    assert same_bytes(stored["empty"], bundle.tensors["empty"])
    assert same_bytes(stored["bits#values"], bundle.tensors["bits"][bundle.masks["bits"]])
    assert stored["index#mask"].tolist() == [16, 0b100, 18928 % 256, 18928 // 256]  # 150000 = 2 * 2^16 + 18928
    with safetensors.safe_open(tmp_path / "all", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def test_views_strides_and_conjugates_are_stored_by_value(tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "turned": base.t(),
        "part": base[1:3],
        "base": base,
        "spread": torch.ones(1).expand(5),
        "conj": torch.tensor([1 + 2j]).conj(),
        "image": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }
    write(tmp_path / "v", Bundle(tensors))
    back = read(tmp_path / "v").tensors
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


def test_tied_tensors_are_stored_once_and_masked_by_any_name(tmp_path: Path) -> None:
    weight = torch.eye(300)
    alone = write(tmp_path / "one", Bundle({"a": weight}))
    both = write(tmp_path / "two", Bundle({"a": weight, "b": weight.detach()}))
    assert both - alone < 300
    assert read_contents(tmp_path / "two").tensors["b"].tied_to == "a"
    bundle = Bundle({"a": weight, "b": weight.detach()}, {"b": weight != 0}, "weight")
    assert write(tmp_path / "masked", bundle) < 5000
    assert same_bundle(read(tmp_path / "masked"), bundle)


def test_the_contents_are_told_without_the_tensors(tmp_path: Path) -> None:
    bundle = sample_bundle()
    size = write(tmp_path / "all", bundle, masks=parameter_masks(bundle))
    contents = read_contents(tmp_path / "all")
    assert contents.file_bytes == size
    assert contents.dense_bytes == 4 * 48 + 4 * 600 + 2 * 2000 + 2 * 200000 + 4 * 20 + 8 + 0 + 3
    assert list(contents.tensors) == list(bundle.tensors)
    conv, index, tied = (contents.tensors[name] for name in ("conv", "index", "tied"))
    assert (conv.dtype, conv.shape, conv.kept, conv.stored_bytes) == (torch.float32, (4, 3, 2, 2), 36, 36 * 4 + 1)
    assert (index.kept, index.stored_bytes) == (1, 2 + 4)
    assert (tied.kept, tied.stored_bytes, tied.tied_to) == (contents.tensors["bits"].kept, 0, "bits")
    assert (contents.plan, contents.record) == (bundle.plan, bundle.record)


def test_read_tensors_are_writable_and_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a", Bundle({"w": torch.ones(3)}))
    tensor = read(tmp_path / "a").tensors["w"]
    tensor += 1
    assert read(tmp_path / "a").tensors["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("bundle", "masks", "message"),
    [
        (
            Bundle({"w": torch.ones(4)}, {"w": torch.tensor([True, False] * 2)}, "weight"),
            None,
            "w: 2 elements that its mask",
        ),
        (Bundle({"w": torch.full((2,), torch.nan)}, {"w": torch.zeros(2).bool()}, "weight"), None, "w: 2 elements"),
        (Bundle({"w": torch.ones(4)}, {"w": torch.ones(4)}, "weight"), None, "masks are torch.bool"),
        (Bundle({"w": torch.ones(4)}, {"w": torch.ones(2).bool()}, "row"), None, r"shape \(2,\), the tensor \(4,\)"),
        (Bundle({"w": torch.ones(4)}, {"v": torch.ones(4).bool()}, "weight"), None, "come without a tensor"),
        (Bundle({"w": torch.ones(4)}, {"w": torch.ones(4).bool()}), None, "without unit="),
        (Bundle({"w": torch.ones(4)}, {"w": torch.ones(1).bool()}, "row"), {"w": torch.ones(4).bool()}, "layout="),
        (
            Bundle({"w": torch.ones(4)}, {"w": torch.ones(4).bool()}, "row", {"w": KeyLayout((5,))}),
            None,
            r"its layout says \(5,\)",
        ),
        (
            Bundle({"w": torch.ones(4), "w#mask": torch.ones(1)}, {"w": torch.ones(4).bool()}, "weight"),
            None,
            "rename it",
        ),
        (Bundle({"__metadata__": torch.ones(4)}), None, "rename it"),
        (Bundle({"w": 3}), None, "w is a int, not a tensor"),
        (Bundle({"w": torch.ones(4).to_sparse()}), None, "to_dense"),
        (Bundle({"w": torch.ones(4, device="meta")}), None, "meta device"),
        (Bundle({"w": torch.ones(4, dtype=torch.complex128)}), None, "complex128 cannot be stored"),
        (Bundle({"w": torch.nn.UninitializedParameter()}), None, "no shape yet"),
        (Bundle({}, plan={"f": print}), None, "plan= must be plain JSON"),
        (Bundle({}, record={"t": torch.ones(1)}), None, "record= must be plain JSON"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_the_file_is_touched(
    tmp_path: Path, bundle: Any, masks: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "f", bundle, masks=masks)
    assert list(tmp_path.iterdir()) == []


def test_tied_names_with_different_masks_are_refused(tmp_path: Path) -> None:
    weight = torch.zeros(4)
    bundle = Bundle({"a": weight, "b": weight}, {"a": torch.ones(4).bool(), "b": torch.zeros(4).bool()}, "weight")
    with pytest.raises(ValueError, match="'a' and 'b' are the same tensor"):
        write(tmp_path / "f", bundle)


def test_minus_zero_under_a_mask_becomes_zero(tmp_path: Path) -> None:
    mask = torch.tensor([True, False])
    write(tmp_path / "f", Bundle({"w": torch.tensor([-0.0, -0.0])}, {"w": mask}, "weight"))
    assert torch.signbit(read(tmp_path / "f").tensors["w"]).tolist() == [True, False]
