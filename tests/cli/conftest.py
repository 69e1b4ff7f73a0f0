"""A folder with a module of a user's, files of its model, and a way to run commands in it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from secateur.cli.app import app

NETS = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4))

def small():
    return nn.Linear(3, 2)

def tied():
    net = nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False))
    net[1].weight = net[0].weight
    return net

def batches():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 20, generator=generator)
    return [(part, part[:, :4].argmax(1)) for part in x.split(30)]

def pair():
    return tuple(torch.cat(parts) for parts in zip(*batches()))

def regression():
    return [(x, torch.zeros(len(x), 4)) for x, _ in batches()]

def generator():
    yield from batches()

def broken():
    raise ValueError("inside the factory")

def broken_data():
    def read():
        raise ValueError("inside the loader")
        yield
    return read()

def half(output, labels):
    return 0.5 * nn.functional.cross_entropy(output, labels)

def sized(width):
    return nn.Linear(width, width)

def text():
    return "no model"

def number():
    return 7

def wrong_labels():
    return [(torch.zeros(3, 20), torch.zeros(4, dtype=torch.long))]

def worst(weight):
    return -weight.abs()

model = nn.Linear(2, 2)
"""

Run = Callable[..., Any]


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory: ``nets.py``, and the weights of ``nets:make`` in ``dense.safetensors``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path)])
    (tmp_path / "nets.py").write_text(NETS)
    importlib.invalidate_caches()
    save_file(dense_state(), tmp_path / "dense.safetensors")
    yield tmp_path
    for name in ("nets", "broken_module", "needs_more"):
        sys.modules.pop(name, None)


def dense_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (40, 20), "0.bias": (40,), "2.weight": (4, 40), "2.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def run(nets: Path) -> Run:
    """``run("prune", "--model", ...)`` -> the result; the code must be 0 unless ``code=`` says otherwise."""

    def invoke(*arguments: object, code: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        told = f"{result.output}\n{result.exception!r}"
        assert result.exit_code == code, told
        return result

    return invoke
