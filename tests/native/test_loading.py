"""Which core is loaded: forced instruction sets, an absent core, and what the environment asks for."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from secateur import native
from secateur.native import loading
from tests.native.oracle import instruction_sets, needs_core

SWITCHES = ("SECATEUR_ISA", "SECATEUR_REQUIRE_NATIVE", "SECATEUR_DISABLE_NATIVE")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    base = {name: value for name, value in os.environ.items() if name not in SWITCHES}
    return subprocess.run(
        [sys.executable, "-c", code], env=base | environment, capture_output=True, text=True, check=False, timeout=120
    )


def core_alone(**environment: str) -> subprocess.CompletedProcess[str]:
    """Load the extension module without the package: no torch, so it takes milliseconds."""
    code = (
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('secateur._core', {loading.core.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import sys; assert 'torch' not in sys.modules\n"
        "print(module.active.isa)\n"
    )
    return python(code, **environment)


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in SWITCHES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@needs_core
@pytest.mark.parametrize("isa", instruction_sets())
def test_a_forced_instruction_set_is_used(isa: str) -> None:
    done = core_alone(SECATEUR_ISA=isa)
    assert done.stdout.strip() == isa, done.stderr


@needs_core
@pytest.mark.parametrize("isa", ["sse9", "AVX2", "neon" if platform.machine() == "x86_64" else "avx2"])
def test_an_absent_one_is_an_error_that_lists_the_others(isa: str) -> None:
    done = core_alone(SECATEUR_ISA=isa)
    assert done.returncode != 0
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith(f"ImportError: SECATEUR_ISA: instruction set '{isa}' is not available here; available: ")
    assert sorted(message.split("available: ")[1].split(", ")) == instruction_sets()


@needs_core
def test_the_best_one_is_the_default() -> None:
    """The last available line of kernels.def; torch's own view of the CPU agrees on x86."""
    order = list(dict.fromkeys(line[1] for line in loading.core.kernels() if line[3]))
    assert core_alone().stdout.strip() == order[-1]
    capability = torch.backends.cpu.get_cpu_capability()
    if platform.machine() == "x86_64" and capability in {"AVX2", "AVX512"}:
        assert order[-1].removesuffix("bf16").removesuffix("vnni") == capability.lower()


@needs_core
def test_the_package_obeys_from_the_outside() -> None:
    done = python("from secateur import native; print(native.isa())", SECATEUR_ISA="portable")
    assert done.stdout.strip() == "portable", done.stderr


def test_without_the_core_the_package_says_so_once_and_works() -> None:
    code = (
        "import sys; sys.modules['secateur._core'] = None\n"
        "import torch, importlib\n"
        "from secateur import native\n"
        "importlib.import_module('secateur.native')\n"
        "mask = torch.tensor([True, False, True])\n"
        "bits = native.pack_bits(mask)\n"
        "print(native.available(), native.isa(), bits.tolist(), native.count_bits(bits, 3))\n"
    )
    done = python(code)
    assert done.stdout.strip() == "False torch [5] 2", done.stderr
    assert done.stderr.count("the C++ core of secateur is absent") == 1


def test_an_absent_core_warns(clean: pytest.MonkeyPatch) -> None:
    clean.setitem(sys.modules, "secateur._core", None)
    with pytest.warns(RuntimeWarning, match="core of secateur is absent"):
        assert loading._load() is None


@pytest.mark.parametrize("name", ["SECATEUR_REQUIRE_NATIVE", "SECATEUR_ISA"])
def test_an_absent_core_that_is_asked_for_is_an_error(clean: pytest.MonkeyPatch, name: str) -> None:
    clean.setitem(sys.modules, "secateur._core", None)
    clean.setenv(name, "1" if name == "SECATEUR_REQUIRE_NATIVE" else "avx2")
    with pytest.raises(ImportError, match=f"{name}=.* absent: reinstall"):
        loading._load()


def test_a_core_that_does_not_load_is_not_an_absent_core(clean: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ModuleNotFoundError("No module named 'something'", name="something")

    clean.setattr(loading.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="something"):
        loading._load()


@pytest.mark.filterwarnings("error")
def test_disabling_is_silent(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("SECATEUR_DISABLE_NATIVE", "1")
    assert loading._load() is None


def test_contradictions_and_nonsense_are_refused(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("SECATEUR_DISABLE_NATIVE", "1")
    clean.setenv("SECATEUR_REQUIRE_NATIVE", "1")
    with pytest.raises(ValueError, match="contradict"):
        loading._load()
    clean.setenv("SECATEUR_REQUIRE_NATIVE", "maybe")
    with pytest.raises(ValueError, match="SECATEUR_REQUIRE_NATIVE='maybe': allowed are 0, 1"):
        loading._load()


@needs_core
def test_the_module_is_the_one_that_the_caller_built() -> None:
    """tools/sanitizers.sh names its own module here: nothing is sanitized if another one runs."""
    expected = os.environ.get("SECATEUR_EXPECT_CORE")
    assert native.available()
    assert expected is None or Path(expected).samefile(loading.core.__file__)
