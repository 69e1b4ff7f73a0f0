"""The program as a process of its own: start-up, exit codes, streams."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import secateur
from secateur.cli import main
from tests.cli.conftest import Run

SOURCE = Path(secateur.__file__).resolve().parents[1]


def process(
    *arguments: str, folder: Path, module: tuple[str, ...] = ("-m", "secateur.cli")
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *module, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_commands_load_nothing_heavy_before_they_run(tmp_path: Path) -> None:
    code = f"""
import sys, types
package = types.ModuleType("secateur")  # what `import secateur` itself loads is another matter
package.__path__ = [{str(SOURCE / "secateur")!r}]
sys.modules["secateur"] = package
from secateur.cli import main
try:
    main(sys.argv[1:])
finally:
    print({{"torch", "numpy", "plotly", "matplotlib"}} & set(sys.modules))
"""
    for arguments in (["--help"], ["prune", "--help"]):
        done = process(*arguments, folder=tmp_path, module=("-c", code))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[-1] == "set()"


def test_help_lists_the_commands_and_exit_codes(run: Run) -> None:
    printed = run("--help").stdout
    for word in ("demo", "methods", "inspect", "prune", "measure", "report", "Exit codes: 0 done, 2 bad input, 3"):
        assert word in printed


def test_prune_in_the_users_folder(nets: Path) -> None:
    arguments = ("prune", "--model", "nets:make", "--weights", "dense.safetensors", "--sparsity", "0.9")
    done = process(*arguments, "-o", "sparse.safetensors", folder=nets)
    assert done.returncode == 0, done.stderr
    assert "90.0 % zeros" in done.stdout
    assert (nets / "sparse.safetensors").stat().st_size < (nets / "dense.safetensors").stat().st_size


def test_a_mistake_ends_with_code_2_and_no_traceback(nets: Path) -> None:
    done = process("prune", "--model", "nets:mak", "--sparsity", "0.9", "-o", "sparse.safetensors", folder=nets)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "secateur prune: --model nets:mak: module 'nets' has no 'mak'; did you mean 'make'?\n"


def test_an_error_of_the_users_code_ends_with_its_traceback(nets: Path) -> None:
    done = process("prune", "--model", "nets:broken", "--sparsity", "0.9", "-o", "sparse.safetensors", folder=nets)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "nets.py" in done.stderr


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("secateur 0.")
