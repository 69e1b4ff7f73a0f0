"""Real data for the demo and the benchmarks: scikit-learn's digits, and Fashion-MNIST from files or the net."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["Images", "digits", "download_fashion_mnist", "fashion_mnist", "load_images"]

_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_FILES = {
    "x_train": ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "y_train": ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    "x_test": ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    "y_test": ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
}
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801


@dataclass(frozen=True)
class Images:
    """A data set of images in memory.

    Attributes:
        name: for tables and pages.
        x_train, x_test: float32 [N, C, H, W], normalised.
        y_train, y_test: int64 [N].
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor

    @property
    def size(self) -> int:
        """Height and width in pixels."""
        return int(self.x_train.shape[-1])

    def first(self, train: int, test: int) -> Images:
        """The first images of each part."""
        return Images(self.name, self.x_train[:train], self.y_train[:train], self.x_test[:test], self.y_test[:test])


def digits(seed: int = 0, test_share: float = 0.2) -> Images:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (UCI, Alpaydin & Kaynak 1998), no download.

    Args:
        seed: of the split.
        test_share: share of the test images.

    Returns:
        Images with values from 0 to 1.

    Raises:
        ValueError: if scikit-learn is not installed.

    Example:
        >>> data = digits()
        >>> data.x_train.shape, data.x_test.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError('the digits come with scikit-learn: pip install "secateur[demo]"') from error
    x, y = load_digits(return_X_y=True)
    images = torch.tensor(np.asarray(x), dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(np.asarray(y), dtype=torch.int64)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    tests = int(len(labels) * test_share + 0.5) + 1
    test, train = order[:tests], order[tests:]
    return Images("digits", images[train], labels[train], images[test], labels[test])


def fashion_mnist(path: str | Path | None = None) -> Images:
    """Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747): 60,000 + 10,000 images of 28x28 pixels, ten classes.

    Args:
        path: an ``.npz`` with x_train, y_train, x_test, y_test, or a folder with it or with the four idx files
            (gzipped or not); None: downloaded once to the cache folder.

    Returns:
        Images, normalised by mean .2860 and standard deviation .3530.

    Raises:
        ValueError: if files are missing or not what they should be, or the download fails.
    """
    arrays = _read(Path(path)) if path is not None else _read(download_fashion_mnist())
    x = {key: (torch.from_numpy(arrays[key]).float().div(255).sub(0.2860).div(0.3530)) for key in ("x_train", "x_test")}
    y = {key: torch.from_numpy(arrays[key]).long() for key in ("y_train", "y_test")}
    return Images("fashion-mnist", x["x_train"][:, None], y["y_train"], x["x_test"][:, None], y["y_test"])


def load_images(name: str, path: str | Path | None = None) -> Images:
    """A data set by name: ``"digits"`` or ``"fashion-mnist"``.

    Raises:
        ValueError: for another name, or a path where none is needed.
    """
    if name == "digits":
        if path is not None:
            raise ValueError(f"--path {path} was given, but the digits come with scikit-learn; leave it out")
        return digits()
    if name == "fashion-mnist":
        return fashion_mnist(path)
    raise ValueError(f"no data set {name!r}; known: digits, fashion-mnist")


def download_fashion_mnist(folder: str | Path | None = None, url: str = _URL) -> Path:
    """Fetch the four files once, check their MD5 sums, and return the folder.

    Args:
        folder: where to; None: ``$SECATEUR_CACHE`` or ``~/.cache/secateur``.
        url: address of the folder that holds the files.

    Returns:
        The folder.

    Raises:
        ValueError: in one sentence, if the files cannot be fetched or are not the right ones.
    """
    named = os.environ.get("SECATEUR_CACHE", "off")  # "off" is for what `pack` measures
    cache = Path.home() / ".cache" / "secateur" if named == "off" else Path(named)
    target = Path(folder) if folder is not None else cache / "fashion-mnist"
    target.mkdir(parents=True, exist_ok=True)
    for name, digest in _FILES.values():
        file = target / name
        if file.exists() and _md5(file.read_bytes()) == digest:
            continue
        try:
            with urllib.request.urlopen(url + name, timeout=30) as answer:
                content = answer.read()
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(
                f"Fashion-MNIST could not be downloaded ({reason}); give the files you have with "
                "--path FILE_OR_FOLDER (four idx files, or one npz)"
            ) from error
        if _md5(content) != digest:
            raise ValueError(f"{url}{name} is not the file it should be (MD5 {_md5(content)}, expected {digest})")
        partial = file.with_suffix(".part")
        partial.write_bytes(content)
        partial.replace(file)
    return target


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise ValueError(f"{path} does not exist; give an npz file, or a folder with the npz or the four idx files")
    if path.is_dir():
        archives = sorted(path.glob("*.npz"))
        if archives:
            return _read_npz(archives[0])
        return _checked(path, {key: _read_idx(path, name, key) for key, (name, _) in _FILES.items()})
    return _read_npz(path)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = [key for key in _FILES if key not in archive.files]
            if missing:
                raise ValueError(f"{path} has no {', '.join(missing)}; it has {', '.join(archive.files)}")
            return _checked(path, {key: archive[key] for key in _FILES})
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not an npz file: {error}") from error


def _read_idx(folder: Path, name: str, key: str) -> np.ndarray:
    found = next((folder / n for n in (name, name.removesuffix(".gz")) if (folder / n).exists()), None)
    if found is None:
        raise ValueError(f"{folder} has neither an npz nor {name} (gzipped or not)")
    content = found.read_bytes()
    if found.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{found} is not a whole gzip file: {error}") from error
    dimensions = 3 if key.startswith("x") else 1
    header = 4 + 4 * dimensions
    magic, *shape = struct.unpack(f">{1 + dimensions}I", content[:header]) if len(content) >= header else (0,)
    expected = _IDX_IMAGES if dimensions == 3 else _IDX_LABELS
    if magic != expected or len(content) != header + int(np.prod(shape)):
        raise ValueError(f"{found} is not an idx file of {'images' if dimensions == 3 else 'labels'}, or is cut short")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape).copy()


def _checked(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if (
            x.ndim != 3
            or x.shape[1:] != (28, 28)
            or y.shape != x.shape[:1]
            or x.dtype != np.uint8
            or y.max(initial=0) > 9
        ):
            raise ValueError(
                f"{path}: x_{part} is {x.dtype} {x.shape} and y_{part} {y.shape}; "
                "expected uint8 [N, 28, 28] and [N] in 0..9"
            )
    return arrays
