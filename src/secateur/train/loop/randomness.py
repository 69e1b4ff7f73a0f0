"""The random states that a training draws from: seeded per epoch, kept in checkpoints, given back to the user."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

__all__ = ["borrowed", "mixed", "random_state", "restore_random_state", "seed_all", "seed_torch"]


def mixed(*numbers: int) -> int:
    """One seed of several whole numbers, in [0, 2^63).

    Example:
        >>> mixed(0, 1) == mixed(0, 1), mixed(0, 1) == mixed(1, 0)
        (True, False)
    """
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - data sets draw from the global one
    seed_torch(seed)


def seed_torch(seed: int) -> None:
    """Seed torch alone, on every device."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python, NumPy and torch on the processor and on ``device``: tensors and plain values."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(kind), torch.tensor(np.asarray(keys).tolist()), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of ``random_state``."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def borrowed(device: torch.device, generators: Sequence[torch.Generator]) -> Generator[None]:
    """Whatever is drawn and seeded inside: afterwards every random state is as it was.

    Args:
        device: of the model.
        generators: further ones, of a loader.
    """
    before, theirs = random_state(device), [generator.get_state() for generator in generators]
    try:
        yield
    finally:
        restore_random_state(before, device)
        for generator, state in zip(generators, theirs, strict=True):
            generator.set_state(state)
