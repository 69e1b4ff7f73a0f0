"""Hundreds of broken files: each is refused by ``ValueError`` or holds equal data, in bounded memory."""

from __future__ import annotations

import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from secateur.io import Bundle, read, write
from tests.io.forge import (
    HEADER,
    expand_filters,
    hurt,
    join,
    parameter_masks,
    record_of,
    same_bundle,
    sample_bundle,
    sign,
    split,
)

LIMIT = 64 << 20
"""Bytes that the hostile files below may make the reader take."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, bytes]:
    bundle = sample_bundle()
    path = tmp_path_factory.mktemp("io") / "good"
    write(path, bundle, masks=parameter_masks(bundle))
    return bundle, path.read_bytes()


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """The address space may grow by 4 times the limit: what wants more fails with something else than ValueError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4 * LIMIT, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def flip_bit(chance: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def set_bytes(chance: random.Random, content: bytes) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + chance.randbytes(chance.randint(1, 16)) + content[start + chance.randint(1, 16) :]


def truncate(chance: random.Random, content: bytes) -> bytes:
    return content[: chance.randrange(len(content))]


def insert(chance: random.Random, content: bytes) -> bytes:
    start = chance.randrange(len(content) + 1)
    return content[:start] + chance.randbytes(chance.randint(1, 9)) + content[start:]


def repeat(chance: random.Random, content: bytes) -> bytes:
    start = chance.randrange(len(content))
    stop = min(len(content), start + chance.randint(1, 300))
    return content[:stop] + content[start:]


def change_length(chance: random.Random, content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little") + chance.choice([-8, -1, 1, 8, 64, 10**9, 2**40])
    return length.to_bytes(8, "little") + content[8:]


def swap_entries(chance: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    a, b = chance.sample([key for key in header if key != "__metadata__"], 2)
    field = chance.choice(["dtype", "shape", "data_offsets"])
    header[a][field], header[b][field] = header[b][field], header[a][field]
    return join(header, data)


def edit_header(chance: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    hurt(chance, header)
    return join(header, data)


ACCIDENTS = [flip_bit, set_bytes, truncate, insert, repeat, change_length, swap_entries, edit_header]


def outcome(path: Path, content: bytes) -> Bundle | str:
    """What the reader makes of it: a bundle, or the words of its refusal."""
    path.write_bytes(content)
    try:
        return read(path, expand=expand_filters, max_bytes=LIMIT)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("mutate", ACCIDENTS, ids=lambda mutate: mutate.__name__)
def test_accidents_are_refused_or_harmless(
    tmp_path: Path, good: tuple[Bundle, bytes], mutate: Callable[[random.Random, bytes], bytes]
) -> None:
    bundle, content = good
    refused = 0
    for seed in range(100):
        found = outcome(tmp_path / "f", mutate(random.Random(seed), content))
        if isinstance(found, str):
            refused += 1
            assert found.startswith(f"{tmp_path / 'f'}: "), f"seed {seed}: {found}"
        else:
            assert same_bundle(found, bundle), f"seed {seed}: other data was read"
    assert refused > 50


def signed(chance: random.Random, content: bytes) -> bytes:
    header, data = split(content)
    record: HEADER = record_of(header)
    slots = {key: entry for key, entry in header.items() if key != "__metadata__"}
    for _ in range(chance.choice([1, 1, 2, 4])):
        hurt(chance, record if chance.random() < 0.8 else slots)
    whole = all(isinstance(entry, dict) and {"dtype", "shape"} <= set(entry) for entry in slots.values())
    header = {**slots, "__metadata__": header["__metadata__"]}
    return join(sign(header, record) if whole else header, data)


def test_malice_with_a_fitting_digest_is_refused_or_within_bounds(tmp_path: Path, good: tuple[Bundle, bytes]) -> None:
    """The author of these files knows the format: only the checks behind the digest stand against them."""
    refused = 0
    for seed in range(1500):
        found = outcome(tmp_path / "f", signed(random.Random(seed), good[1]))
        if isinstance(found, str):
            refused += 1
            assert "header does not match" not in found, f"seed {seed}: the forged digest is wrong"
        else:
            assert sum(t.numel() * t.element_size() for t in found.tensors.values()) <= LIMIT, f"seed {seed}"
    assert 700 < refused < 1500


def test_the_memory_limit_of_this_file_is_felt(tmp_path: Path) -> None:
    import torch

    with pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(8 * LIMIT, dtype=torch.uint8)
