from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from secateur.io import Bundle, read, read_contents, write
from tests.io.forge import HEADER, edited, expand_filters, join, parameter_masks, record_of, sample_bundle, sign, split


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("io") / "good"
    bundle = sample_bundle()
    write(path, bundle, masks=parameter_masks(bundle))
    return path.read_bytes()


def refuse(path: Path, content: bytes, message: str, **options: Any) -> None:
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read(path, **{"expand": expand_filters, **options})
    assert str(caught.value).startswith(f"{path}: ")


def test_the_file_to_break_is_whole_before(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(edited(content, lambda record: None))
    assert len(read(tmp_path / "f", expand=expand_filters).tensors) == 9


def test_plain_safetensors_are_named_as_such(tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(3)}, tmp_path / "plain")
    refuse(
        tmp_path / "plain", (tmp_path / "plain").read_bytes(), "not a secateur file: plain safetensors without a record"
    )


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "pickle")
    refuse(tmp_path / "pickle", (tmp_path / "pickle").read_bytes(), "pickle made by torch.save")


def test_a_newer_version_is_named(tmp_path: Path, content: bytes) -> None:
    refuse(tmp_path / "f", edited(content, lambda record: record.update(format=7)), "format version 7 is newer than 2")


@pytest.mark.parametrize("cut", [0, 5, 8, 100, -1000, -1])
def test_truncated_files(tmp_path: Path, content: bytes, cut: int) -> None:
    part = content[:cut]
    refuse(tmp_path / "f", part, f"truncated: .*{len(part)}")


def test_truncation_says_how_much_there_should_be(tmp_path: Path, content: bytes) -> None:
    size = len(content)
    refuse(tmp_path / "f", content[:-3], f"truncated: the header announces {size} bytes, the file has {size - 3}")


def test_oversized_files(tmp_path: Path, content: bytes) -> None:
    size = len(content)
    refuse(tmp_path / "f", content + b"x", f"oversized: the header announces {size} bytes, the file has {size + 1}")


def test_one_altered_byte_of_a_tensor_is_found_and_named(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    begin = header["bias"]["data_offsets"][0]
    changed = bytearray(data)
    changed[begin] ^= 1
    altered = content[: len(content) - len(data)] + bytes(changed)
    refuse(tmp_path / "f", altered, "altered: the bytes of tensor bias do not match their checksum")


def test_an_altered_plan_is_found(tmp_path: Path, content: bytes) -> None:
    assert content.count(b"cubic") == 1
    refuse(tmp_path / "f", content.replace(b"cubic", b"cosin"), "altered: the header does not match its checksum")


def test_altered_shapes_of_the_container_are_found(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    header["bias"]["shape"] = [2, 10]
    refuse(tmp_path / "f", join(header, data), "altered: the header does not match its checksum")


def huge(record: HEADER) -> None:
    record["tensors"]["gaps"].update(shape=[10**6, 10**6])
    record["units"]["gaps"].update(shape=[10**6, 10**6])
    record["layout"].pop("gaps")


def test_a_small_file_cannot_claim_a_huge_memory(tmp_path: Path, content: bytes) -> None:
    message = r"declares 10000002\d{5} elements, \d+ bytes with their masks, more than the limit of 1073741824 bytes"
    refuse(tmp_path / "f", edited(content, huge), message)


def test_the_limit_is_the_readers_choice(tmp_path: Path, content: bytes) -> None:
    refuse(tmp_path / "f", content, "more than the limit of 1000 bytes", max_bytes=1000)
    assert read(tmp_path / "f", expand=expand_filters, max_bytes=10**6).plan == {"sparsity": 0.9, "schedule": "cubic"}


def put(*path: str, value: Any) -> Callable[[HEADER], None]:
    def edit(record: HEADER) -> None:
        place = record
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("format", value=True), "names no format version"),
        (put("format", value="1"), "names no format version"),
        (put("extra", value=1), "the record does not have exactly the keys"),
        (put("units", value=[]), "units in its record is not a table"),
        (put("plan", value=[1]), "plan in its record is list, not dict or null"),
        (put("unit", value=None), "masks of its record do not belong"),
        (put("unit", value="u" * 1000), "described by 1000 characters"),
        (put("tensors", "bias", value={"shape": [20], "kept": 20, "expand": False}), "disagree about the tensors"),
        (put("tensors", "more", value=None), r"disagree about the tensors \['more'\]"),
        (put("tensors", "gaps", "kept", value=99), "tensor gaps keeps 99 elements"),
        (put("tensors", "gaps", "kept", value=-1), "tensor gaps keeps -1 of 2000"),
        (put("tensors", "gaps", "shape", value=[2**40, 2**40]), "more elements than any machine holds"),
        (put("tensors", "gaps", "shape", value=[50, "40"]), "tensor gaps has the shape"),
        (put("tensors", "gaps", "shape", value=[40, 50]), "differ in shape|belongs to no masked tensor"),
        (put("tensors", "tied", "tied", value="tied"), "tensor tied is tied to tied, which cannot be"),
        (put("tensors", "tied", "tied", value="gone"), "tensor tied is tied to gone, which cannot be"),
        (put("tensors", "tied", "tied", value="bias"), "tensor tied is tied to bias, which cannot be"),
        (put("units", "index", "coding", value="zip"), "unknown coding 'zip'"),
        (put("units", "index", "shape", value=[100]), "tensor index and its mask differ in shape"),
        (put("units", "gaps", "count", value=1), "tensor gaps and its mask differ"),
        (put("units", "conv", "count", value=2), "tensor conv: mask has 3 bits set, its record says 2"),
        (put("layout", "conv", "groups", value=0), "layout of conv"),
        (put("layout", "conv", "kind", value="pool"), "kind 'pool'"),
        (put("layout", "conv", "shape", value=[4, 3, 2, 200]), "layout of conv belongs to no masked tensor"),
        (put("layout", value={}), "coarse units, but no layout"),
        (put("crc32", "bias", value="1"), "checksum of tensor bias is '1'"),
        (put("crc32", "bias", value=1), "bytes of tensor bias do not match"),
    ],
)
def test_records_that_contradict_themselves(
    tmp_path: Path, content: bytes, edit: Callable[[HEADER], None], message: str
) -> None:
    refuse(tmp_path / "f", edited(content, edit), message)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (140_000, "tensor index: index 150000 out of range for 140000 elements"),
        (100, "tensor index: mask has 16 low bits per gap, too many for 1 positions among 100 elements"),
    ],
)
def test_positions_beyond_the_end_are_named_with_their_tensor(
    tmp_path: Path, content: bytes, size: int, message: str
) -> None:
    def shrink(record: HEADER) -> None:
        record["tensors"]["index"]["shape"] = record["units"]["index"]["shape"] = [size]

    refuse(tmp_path / "f", edited(content, shrink), message)


def test_forged_mask_bytes_with_a_fitting_checksum_are_refused(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    begin, end = header["index#mask"]["data_offsets"]
    assert list(data[begin:end]) == [16, 4, 18928 % 256, 18928 // 256]
    forged = bytes([16, 6, 0, 0])
    record = record_of(header)
    record["crc32"]["index#mask"] = zlib.crc32(forged)
    changed = join(sign(header, record), data[:begin] + forged + data[end:])
    refuse(tmp_path / "f", changed, "tensor index: mask lists 2 positions, its record says 1")


def slot(**changes: Any) -> Callable[[HEADER], None]:
    return lambda header: header["bias"].update(changes)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (slot(dtype="F128"), "unknown dtype 'F128'"),
        (slot(dtype=["F32"]), "unknown dtype"),
        (slot(shape=[-20]), r"tensor bias has the shape \[-20\]"),
        (slot(shape=[True]), "tensor bias has the shape"),
        (slot(shape=[10**6] * 3), "needs 4000000000000000000 bytes, its offsets give 80"),
        (slot(shape=[1] * 65), "has the shape"),
        (slot(shape=[0, 10**30]), "more elements than any machine holds"),
        (slot(data_offsets=[0]), "data offsets"),
        (slot(data_offsets=[0, 80.0]), "data offsets"),
        (slot(data_offsets=[0, 80]), "begins at byte 0 of the data"),
        (slot(more=1), "is not {dtype, shape, data_offsets}"),
        (lambda header: header.update(bias=[]), "is not {dtype, shape, data_offsets}"),
        (lambda header: header.update(__metadata__={"secateur": 1}), "not a table of strings"),
        (lambda header: header.update(__metadata__=[]), "not a table of strings"),
        (lambda header: header.pop("flags"), "begins at byte"),
    ],
)
def test_containers_that_contradict_themselves(
    tmp_path: Path, content: bytes, edit: Callable[[HEADER], Any], message: str
) -> None:
    header, data = split(content)
    edit(header)
    refuse(tmp_path / "f", join(header, data), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[" * 100_000, "nested too deeply|no valid JSON"),
        (b"[1]", "header is not a JSON object"),
        (b'{"a":1,"a":2}', "stands twice"),
        (b'{"a":' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"\xff\xfe{}", "no valid JSON"),
        (b"", "no valid JSON"),
    ],
)
def test_headers_that_are_no_headers(tmp_path: Path, text: bytes, message: str) -> None:
    refuse(tmp_path / "f", len(text).to_bytes(8, "little") + text, message)


@pytest.mark.parametrize("text", ["[" * 100_000, "nothing", "[1]", "null", '{"format":' + "9" * 5000 + "}"])
def test_records_that_are_no_records(tmp_path: Path, content: bytes, text: str) -> None:
    header, data = split(content)
    refuse(tmp_path / "f", join(sign(header, text), data), "nested too deeply|no valid JSON|no format version")


def test_a_huge_header_length_allocates_nothing(tmp_path: Path) -> None:
    refuse(tmp_path / "f", b"\xff" * 8 + b"{}", "announce a header of 18446744073709551615 bytes")


def test_booleans_are_zero_or_one(tmp_path: Path, content: bytes) -> None:
    header, data = split(content)
    begin, end = header["flags"]["data_offsets"]
    forged = data[:begin] + b"\x01\x02\x00" + data[end:]
    record = record_of(header)
    record["crc32"]["flags"] = zlib.crc32(b"\x01\x02\x00")
    refuse(tmp_path / "f", join(sign(header, record), forged), "tensor flags: a boolean byte is neither 0 nor 1")


def test_coarse_units_need_their_expansion(tmp_path: Path, content: bytes) -> None:
    refuse(tmp_path / "f", content, "read it with secateur.load", expand=None)
    wrong: Callable[..., Any] = lambda masks, layout, spec: {"conv": torch.ones(4, 3, 2, 2).bool()}  # noqa: E731
    refuse(tmp_path / "f", content, "unit mask of conv does not keep the 36", expand=wrong)


def test_what_check_raises_comes_before_any_tensor(tmp_path: Path, content: bytes) -> None:
    def check(contents: Any) -> None:
        raise ValueError(f"{len(contents.tensors)} names")

    refuse(tmp_path / "f", content[:-1] + b"\xff", "9 names", check=check)


@pytest.mark.parametrize("reader", [read, read_contents])
def test_paths_that_are_no_files(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        reader(tmp_path / "none")
    with pytest.raises(ValueError, match="is a folder"):
        reader(tmp_path)


def test_messages_name_the_file_and_nothing_of_its_bytes(tmp_path: Path) -> None:
    write(tmp_path / "f", Bundle({"w": torch.ones(2)}))
    header, data = split((tmp_path / "f").read_bytes())
    (tmp_path / "f").write_bytes(join(header, data[:-1]))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "f"))):
        read_contents(tmp_path / "f")
    assert json.loads(header["__metadata__"]["secateur"])["format"] == 1
