"""Reading Fashion-MNIST in all the shapes it comes in, and refusing what it is not."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import struct
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from secateur.benchmark import data as module
from secateur.benchmark.data import digits, download_fashion_mnist, fashion_mnist, load_images

NAMES = {key: name for key, (name, _) in module._FILES.items()}


def arrays() -> dict[str, np.ndarray]:
    g = np.random.default_rng(0)
    return {
        "x_train": g.integers(0, 256, (12, 28, 28), dtype=np.uint8),
        "y_train": g.integers(0, 10, 12, dtype=np.uint8),
        "x_test": g.integers(0, 256, (5, 28, 28), dtype=np.uint8),
        "y_test": g.integers(0, 10, 5, dtype=np.uint8),
    }


def idx(array: np.ndarray) -> bytes:
    magic = 0x803 if array.ndim == 3 else 0x801
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def write_idx(folder: Path, zipped: bool) -> None:
    for key, array in arrays().items():
        content = idx(array)
        name = NAMES[key] if zipped else NAMES[key].removesuffix(".gz")
        (folder / name).write_bytes(gzip.compress(content) if zipped else content)


def check(images: module.Images) -> None:
    raw = arrays()
    expected = (torch.from_numpy(raw["x_train"]).double() / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(images.x_train[:, 0].double(), expected, rtol=0, atol=1e-6)
    assert images.x_test.shape == (5, 1, 28, 28)
    assert images.y_test.tolist() == raw["y_test"].tolist()
    assert images.size == 28
    assert len(images.first(3, 2).y_train) == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path: Path, zipped: bool):
    write_idx(tmp_path, zipped)
    check(fashion_mnist(tmp_path))


def test_npz_as_file_and_in_a_folder(tmp_path: Path):
    file = tmp_path / "fashion.npz"
    np.savez(file, **arrays())
    check(fashion_mnist(file))
    check(load_images("fashion-mnist", tmp_path))


def test_what_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="does not exist"):
        fashion_mnist(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="neither an npz nor train-images"):
        fashion_mnist(tmp_path)
    write_idx(tmp_path, zipped=False)
    images = tmp_path / NAMES["x_train"].removesuffix(".gz")
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match="cut short"):
        fashion_mnist(tmp_path)
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"npz|pickle"):
        fashion_mnist(tmp_path)
    np.savez(tmp_path / "a.npz", **{**arrays(), "y_test": np.full(5, 11, np.uint8)})
    with pytest.raises(ValueError, match=r"in 0\.\.9"):
        fashion_mnist(tmp_path)
    raw = arrays()
    del raw["y_test"]
    np.savez(tmp_path / "a.npz", **raw)
    with pytest.raises(ValueError, match="has no y_test"):
        fashion_mnist(tmp_path)
    with pytest.raises(ValueError, match="no data set 'mnist'"):
        load_images("mnist")
    with pytest.raises(ValueError, match="leave it out"):
        load_images("digits", tmp_path)


def test_digits_are_split_without_overlap_and_the_same_every_time():
    one, two = digits(), digits()
    assert torch.equal(one.x_test, two.x_test)
    assert len(one.y_train) + len(one.y_test) == 1797
    assert float(one.x_train.max()) == 1.0
    assert float(one.x_train.min()) == 0.0
    assert not torch.equal(one.y_test, digits(seed=1).y_test)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        return None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A web server on this machine that offers a folder."""
    folder = tmp_path / "offered"
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/", folder
        running.shutdown()
        thread.join()


def test_the_real_download_code_fetches_checks_and_fetches_once(
    server: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    url, folder = server
    write_idx(folder, zipped=True)
    sums = {k: (n, hashlib.md5((folder / n).read_bytes()).hexdigest()) for k, n in NAMES.items()}
    monkeypatch.setattr(module, "_FILES", sums)
    target = download_fashion_mnist(tmp_path / "cache", url)
    check(fashion_mnist(target))
    for name in NAMES.values():
        (folder / name).unlink()
    assert download_fashion_mnist(tmp_path / "cache", url) == target, "what is there is not fetched again"
    (target / NAMES["y_test"]).write_bytes(b"spoilt")
    with pytest.raises(ValueError, match="could not be downloaded"):
        download_fashion_mnist(tmp_path / "cache", url)


def test_a_wrong_file_is_not_kept(server: tuple[str, Path], tmp_path: Path):
    url, folder = server
    write_idx(folder, zipped=True)
    with pytest.raises(ValueError, match="is not the file it should be"):
        download_fashion_mnist(tmp_path / "cache", url)
    assert not list((tmp_path / "cache").iterdir())


def test_offline_is_said_in_one_sentence(tmp_path: Path):
    with pytest.raises(ValueError, match="could not be downloaded") as caught:
        download_fashion_mnist(tmp_path / "cache", "http://127.0.0.1:9/")
    assert "\n" not in str(caught.value)
    assert "--path" in str(caught.value)
