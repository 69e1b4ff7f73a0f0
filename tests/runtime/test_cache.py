"""The cache of choices: what is kept comes back, on the same machine alone; damage and crowds hurt nobody."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.runtime import cache as caching
from secateur.runtime.cache import Cache, cache_folder, machine, machine_key
from secateur.runtime.choose import choose
from secateur.runtime.graph import Graph, Node
from secateur.runtime.remember import entry_of, rebuild, structure
from tests.native.oracle import needs_core


def layer(weight: torch.Tensor, **fields: Any) -> Graph:
    node = Node(kind="linear", output="y", inputs=("x",), weight=weight, **fields)
    return Graph((node,), {"x": (weight.shape[1],), "y": (len(weight),)}, ("x",), ("y",))


def sparse(rows: int = 64, cols: int = 96, density: float = 0.2, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, cols, generator=generator)
    kept = torch.randperm(rows * cols, generator=generator)[: int(density * rows * cols)]
    mask = torch.zeros(rows * cols)
    mask[kept] = 1.0
    return weight * mask.view(rows, cols)


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    Cache(1, tmp_path / "new" / "folder").put("a", {"lanes": 16})
    assert Cache(1, tmp_path / "new" / "folder").get("a") == {"lanes": 16}
    assert Cache(1, tmp_path / "new" / "folder").get("b") is None
    assert Cache(2, tmp_path / "new" / "folder").get("a") is None  # other threads, other machine


@pytest.mark.parametrize("change", ["cpu", "cores", "isa", "secateur", "kernels", "torch"])
def test_another_machine_has_other_choices(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cache(1, tmp_path).put("a", {"lanes": 16})
    here = machine(1)
    assert change in here
    monkeypatch.setattr(caching, "machine", lambda threads: here | {change: "other"})
    assert Cache(1, tmp_path).get("a") is None


def test_the_folder_is_where_the_platform_and_the_user_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", "/someone")
    monkeypatch.delenv("SECATEUR_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/secateur")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert cache_folder() == Path("/someone/.cache/secateur")
    monkeypatch.setattr("sys.platform", "darwin")
    assert cache_folder() == Path("/someone/Library/Caches/secateur")
    monkeypatch.setenv("SECATEUR_CACHE", "~/mine")
    assert cache_folder() == Path("/someone/mine")
    monkeypatch.setenv("SECATEUR_CACHE", "off")
    assert cache_folder() is None
    nowhere = Cache(1)
    nowhere.put("a", {})
    assert nowhere.get("a") is None


DAMAGE = {
    "cut off": lambda text: text[: len(text) // 2],
    "not text": lambda text: b"\xff\xfe" + text,
    "empty": lambda text: b"",
    "another format": lambda text: text.replace(b'"format":1', b'"format":2'),
    "another machine": lambda text: text.replace(b'"threads":1', b'"threads":3'),
    "a list": lambda text: b"[" * 9 + b"]" * 9,
    "too deep": lambda text: b"[" * 100_000,
    "no choice": lambda text: text.replace(b'"choice":{', b'"chosen":{'),
    "no time": lambda text: text.replace(b'"at":', b'"at":"1","then":'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_set_aside(damage: str, tmp_path: Path) -> None:
    first = Cache(1, tmp_path)
    first.put("a", {"lanes": 16})
    assert first.path is not None
    first.path.write_bytes(DAMAGE[damage](first.path.read_bytes()))
    with pytest.warns(RuntimeWarning, match="damaged .* set aside"):
        assert Cache(1, tmp_path).get("a") is None
    assert not first.path.exists()
    assert first.path.with_suffix(".damaged").exists()
    first.put("b", {"lanes": 1})
    assert Cache(1, tmp_path).get("b") == {"lanes": 1}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    blocked = Cache(1, tmp_path / "file" / "cache")
    with pytest.warns(RuntimeWarning, match="cannot be kept in .*SECATEUR_CACHE"):
        blocked.put("a", {})
    assert blocked.get("a") is None


def test_what_another_process_wrote_is_seen_and_kept(tmp_path: Path) -> None:
    one, other = Cache(1, tmp_path), Cache(1, tmp_path)
    assert one.get("a") is None
    other.put("a", {"n": 1})
    assert one.get("a") == {"n": 1}
    one.put("b", {"n": 2})
    assert (other.get("a"), other.get("b")) == ({"n": 1}, {"n": 2})


def write_many(folder: Path, who: int) -> None:
    for i in range(10):
        Cache(1, folder).put(f"{who} {i}", {"who": who, "i": i})


def test_a_crowd_of_writers_loses_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    crowd = [context.Process(target=write_many, args=(tmp_path, who)) for who in range(4)]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * 4
    found = Cache(1, tmp_path)
    assert [found.get(f"{who} {i}") for who in range(4) for i in range(10)] == [
        {"who": who, "i": i} for who in range(4) for i in range(10)
    ]
    assert not list(tmp_path.glob("*.tmp"))


def test_old_choices_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_MOST_ENTRIES", 3)
    now = iter(range(100, 1000))
    monkeypatch.setattr(caching.time, "time", lambda: next(now))
    cache = Cache(1, tmp_path)
    for i in range(5):
        cache.put(f"{i}", {"i": i})
    assert [cache.get(f"{i}") for i in range(5)] == [None, None, {"i": 2}, {"i": 3}, {"i": 4}]
    monkeypatch.setattr(caching, "_MOST_BYTES", 1000)
    cache.put("long", {"text": "x" * 300})
    cache.put("longer", {"text": "x" * 400})
    assert cache.path is not None
    assert cache.path.stat().st_size <= 1000
    assert cache.get("longer") is not None


def test_old_machines_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caching, "_MOST_FILES", 2)
    for threads in (1, 2, 3):
        Cache(threads, tmp_path).put("a", {})
        path = tmp_path / f"choices-{machine_key(threads)}.json"
        os.utime(path, (threads, threads))
    Cache(4, tmp_path).put("a", {})
    assert {path.name for path in tmp_path.glob("*.json")} == {f"choices-{machine_key(n)}.json" for n in (3, 4)}


def test_a_structure_is_what_times_depend_on() -> None:
    first = structure(layer(sparse(seed=1)), 16)
    assert structure(layer(sparse(seed=2)), 16) == first  # other values and places, the same density
    others = [
        structure(layer(sparse(seed=1)), 64),
        structure(layer(sparse(seed=1)), 16, torch.bfloat16),
        structure(layer(sparse(density=0.1)), 16),
        structure(layer(sparse(rows=65)), 16),
        structure(layer(sparse(), bias=torch.zeros(64)), 16),
        structure(layer(sparse(), activation="relu"), 16),
        structure(layer(sparse(16, 96).repeat_interleave(4, 0)), 16),
    ]
    assert len({first, *others}) == len(others) + 1


@needs_core
def test_a_choice_is_built_again_without_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    graph, x = layer(sparse()), torch.randn(16, 96)
    chosen = choose(graph, [x], 16)
    entry = json.loads(json.dumps(entry_of(graph, chosen)))
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: pytest.fail("measured again"))
    again = rebuild(graph, entry, [x], 1)
    assert again is not None
    assert (again.layouts, again.us, again.dense_us, again.backend) == (
        chosen.layouts,
        chosen.us,
        chosen.dense_us,
        "one",
    )
    assert torch.equal(again.program.run([x])[0], chosen.program.run([x])[0])
    for field, value in {
        "lanes": 17,
        "backend": "own",
        "layouts": ["block16"],
        "us": "fast",
        "layers_us": [],
        "samples": None,
        "dense_us": float("nan"),
    }.items():
        assert rebuild(graph, entry | {field: value}, [x], 1) is None, field
    assert rebuild(graph, {}, [x], 1) is None
    assert rebuild(layer(sparse(density=0.9)), entry | {"layouts": ["csr"]}, [x], 1) is None  # no longer a candidate


@needs_core
@pytest.mark.parametrize("backend", ["own", "gomp"])
def test_a_choice_of_several_threads_is_built_again(backend: str) -> None:
    graph, x = layer(sparse(640, 96)), torch.randn(64, 96)
    entry = {
        "lanes": 64,
        "backend": backend,
        "layouts": ["even"],
        "layers_us": [1.0],
        "layers_dense_us": [2.0],
        "other_us": 0.0,
        "us": 1.0,
        "dense_us": 2.0,
        "samples": 64,
    }
    again = rebuild(graph, entry, [x], 2)
    assert again is not None
    assert again.wins
    assert torch.allclose(again.program.run([x])[0], x @ graph.nodes[0].weight.T, atol=1e-4)  # type: ignore[union-attr]
