"""Code for a newer CPU must not leak: no merged inline function, no static initialiser, in any kernel file.

The linker keeps one of several weak definitions. If that is the one compiled with AVX-512, an older CPU dies in a
function that has nothing to do with kernels.
"""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.native.oracle import instruction_sets, needs_core

CSRC = Path(__file__).resolve().parents[2] / "csrc"
LINE = re.compile(r'^SECATEUR_ISA\((\w+), (\w+), "([^"]*)", "([^"]*)"\)$', re.MULTILINE)
ROOM = re.compile(r"^SECATEUR_ROOM\((\w+)\)$", re.MULTILINE)
KERNEL = re.compile(r"^SECATEUR_KERNEL\((\w+), (\w+)\)$", re.MULTILINE)
LISTED = LINE.findall((CSRC / "kernels.def").read_text())
KERNELS = KERNEL.findall((CSRC / "kernels.def").read_text())
ROOMS = ROOM.findall((CSRC / "kernels.def").read_text())
COMPILERS = {platform.machine(): "g++", "any": "g++", "aarch64": "aarch64-linux-gnu-g++"}
# What a kernel file may ask of the rest of the world: the C memory functions that compilers insert by themselves.
IMPORTS = {"memset", "memcpy", "memmove", "memcmp", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")


def symbols(compiler: str, source: Path, flags: str, folder: Path) -> list[tuple[str, str]]:
    """(kind letter of nm, name) of every symbol of the compiled file."""
    target = folder / f"{source.stem}.o"
    common = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"]
    common += ["-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-lto"]
    subprocess.run([compiler, *common, *shlex.split(flags), "-c", str(source), "-o", str(target)], check=True)
    listing = subprocess.run(["nm", str(target)], check=True, capture_output=True, text=True).stdout
    return [(line[-2], line[-1]) for line in map(str.split, listing.splitlines())]


def leaks(found: list[tuple[str, str]], own: set[str]) -> list[str]:
    """V, W, u, v: merged by the linker. T beyond the kernels: exported. I: chosen by static code."""
    bad = [f"{kind} {name}" for kind, name in found if kind in "VWuvwiCBDS" or "GLOBAL__sub_I" in name]
    bad += [f"{kind} {name}" for kind, name in found if kind == "T" and name not in own]
    bad += [f"{kind} {name}" for kind, name in found if kind == "U" and name not in IMPORTS]
    return bad


@pytest.mark.parametrize(("isa", "architecture", "flags"), [line[:3] for line in LISTED])
def test_kernel_files_leak_nothing(isa: str, architecture: str, flags: str, tmp_path: Path) -> None:
    compiler = COMPILERS.get(architecture)
    if compiler is None or shutil.which(compiler) is None:
        pytest.skip(f"no compiler for {architecture} here")
    own = {f"secateur_{kernel}_{where}" for kernel, where in KERNELS if where == isa}
    exported: list[str] = []
    for room in ROOMS:
        if not (CSRC / room / f"{isa}.cpp").exists():
            continue
        found = symbols(compiler, CSRC / room / f"{isa}.cpp", flags, tmp_path)
        assert leaks(found, own) == []
        exported += [name for kind, name in found if kind == "T"]
    assert sorted(exported) == sorted(own)


@pytest.mark.parametrize(
    "code",
    [
        "inline int twice(int x) { return 2 * x; } int (*use)(int) = twice;",
        "template <class T> __attribute__((noinline)) T twice(T x) { return 2 * x; } int f(int x) { return twice(x); }",
        "#include <vector>\nint size(const std::vector<int>& v) { return v.at(3); }",
        "struct S { S(); }; S global;",
        "int counter = 3; int f() { return ++counter; }",
        'extern "C" int helper(int x) { return x; }',
    ],
)
def test_a_leak_is_seen(code: str, tmp_path: Path) -> None:
    source = tmp_path / "leak.cpp"
    source.write_text(code)
    assert leaks(symbols("g++", source, "", tmp_path), own=set())


def test_the_list_is_whole() -> None:
    """Every line parses; portable has every kernel; no set has one twice; every file stands for kernels."""
    text = (CSRC / "kernels.def").read_text()
    assert len(LISTED) == len(re.findall(r"^SECATEUR_ISA", text, re.MULTILINE)) >= 4
    assert len(KERNELS) == len(re.findall(r"^SECATEUR_KERNEL", text, re.MULTILINE))
    kernels = {kernel for kernel, _ in KERNELS}
    assert {kernel for kernel, isa in KERNELS if isa == "portable"} == kernels
    assert len(set(KERNELS)) == len(KERNELS)
    assert {isa for _, isa in KERNELS} == {isa for isa, *_ in LISTED}
    assert {path.parent.name for path in CSRC.glob("*/portable.cpp")} == set(ROOMS)
    assert all(any((CSRC / room / f"{isa}.cpp").exists() for room in ROOMS) for isa, *_ in LISTED)


@pytest.mark.parametrize(("flags", "features"), [line[2:] for line in LISTED if line[1] != "aarch64"])
def test_dispatch_asks_for_every_feature_that_a_file_may_use(flags: str, features: str) -> None:
    assert {flag.removeprefix("-m") for flag in shlex.split(flags)} <= set(features.split())


@needs_core
def test_the_built_core_has_the_listed_kernels() -> None:
    from secateur.native.loading import core

    here = [(k, isa) for k, isa in KERNELS if isa in {name for name, where, *_ in LISTED if where in COMPILERS}]
    built = [(kernel, isa) for kernel, isa, _, _ in core.kernels()]
    assert set(built) <= set(here)
    assert {isa for _, isa in built} >= set(instruction_sets()) >= {"portable"}
