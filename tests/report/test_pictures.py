"""A picture shows its mask: every pixel is the share kept in its block."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from secateur.report import to_html
from secateur.report.pictures import data_uri, density, encode_png, pictures
from tests.report.fake import fake_masks, fake_report
from tests.report.reading import read_page


def decoded(uri: str) -> np.ndarray:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
        image.load()
        assert (image.format, image.mode) == ("PNG", "L")
        return np.asarray(image)


def slow_density(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    plane = mask.reshape(len(mask), -1)
    height, width = plane.shape
    return np.array(
        [
            [plane[i : i + rows, j : j + columns].mean() for j in range(0, width, columns)]
            for i in range(0, height, rows)
        ]
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_png_is_decoded_to_the_same_pixels(seed: int, height: int, width: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(data_uri(encode_png(pixels))), pixels)


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30), st.integers(1, 12))
def test_density_is_the_mean_of_each_block(seed: int, height: int, width: int, largest: int) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < 0.3
    plane, (rows, columns) = density(mask, largest)
    assert max(plane.shape) <= largest
    np.testing.assert_allclose(plane, slow_density(mask, rows, columns), rtol=0, atol=1e-12)
    if max(height, width) <= largest:
        assert (rows, columns) == (1, 1)
        np.testing.assert_array_equal(plane == 1, mask)


def test_kernels_of_a_convolution_stand_side_by_side() -> None:
    mask = np.random.default_rng(1).random((3, 2, 2, 2)) < 0.5
    plane, _ = density(mask)
    for o, i, y, x in np.ndindex(mask.shape):
        assert plane[o, i * 4 + y * 2 + x] == mask[o, i, y, x]


def test_the_pictures_in_the_page_are_the_masks(page: Path) -> None:
    shown = {e.attributes["alt"]: decoded(e.attributes["src"]) for e in read_page(page).all("img")}
    lenet, resnet = fake_masks().values()
    assert list(shown)[:5] == [f"mask of {name}" for name in lenet]
    assert len(shown) == 10
    for name in ("conv1.weight", "conv2.weight", "fc2.weight", "fc3.weight"):
        plane = lenet[name].reshape(len(lenet[name]), -1)
        np.testing.assert_array_equal(shown[f"mask of {name}"], np.where(plane, 0, 255))
    grey = np.rint(255 * (1 - slow_density(lenet["fc1.weight"], 1, 3))).astype(np.uint8)
    np.testing.assert_array_equal(shown["mask of fc1.weight"], grey)
    filters = resnet["stage3.0.conv2.weight"]
    assert set(np.unique(shown["mask of stage3.0.conv2.weight"])) == {0, 255}
    np.testing.assert_array_equal(shown["mask of stage3.0.conv2.weight"][:, 0] == 0, filters[:, 0, 0, 0])


def test_captions_count_the_mask(page: Path) -> None:
    captions = [e.text for e in read_page(page).all("figcaption")]
    kept = fake_masks()["lenet magnitude gradual 90 %"]["fc1.weight"].sum()
    assert f"fc1.weight120 × 400, {kept:,} of 48,000 kept (10.1 %); a pixel is 1 × 3 weights" in captions


def test_a_few_layers_are_chosen_from_first_to_last() -> None:
    drawn = pictures(fake_report(), fake_masks())
    assert [(index, total, len(own)) for index, _, total, own in drawn] == [(1, 5, 5), (5, 14, 5)]
    names = list(fake_masks()["resnet channels 50 %"])
    chosen = [names.index(picture.parameter) for picture in drawn[1][3]]
    assert chosen == sorted(set(chosen))
    assert (chosen[0], chosen[-1]) == (0, 13)
    assert pictures(fake_report(), None) == []


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"nobody": {}}, r"masks of \['nobody'\] belong to no record"),
        ({"lenet snip 90 %": {"a.bias": np.ones(3, dtype=bool)}}, r"mask 'a.bias': .* 2 or 4 dimensions .* \(3,\)"),
        ({"lenet snip 90 %": {"a.weight": np.ones((3, 3))}}, r"mask 'a.weight': .* not float64"),
        ({"lenet snip 90 %": {"a.weight": np.ones((0, 3), dtype=bool)}}, r"at least one weight"),
    ],
)
def test_what_is_no_mask_is_refused(masks: dict[str, dict[str, np.ndarray]], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        to_html(fake_report(), tmp_path / "report.html", masks=masks)
    assert list(tmp_path.iterdir()) == []
