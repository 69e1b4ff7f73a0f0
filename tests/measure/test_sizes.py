"""Bytes on disk, counted by the tools of the trade."""

from __future__ import annotations

import gzip
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import secateur.deploy
from secateur.measure import environment, sizes
from secateur.measure.sizes import plain_bytes
from tests.measure.networks import lenet_300_100


def test_plain_and_gzip_are_what_safetensors_and_gzip_write(tmp_path: Path) -> None:
    net = lenet_300_100()
    with torch.no_grad():
        net[1].weight[:, ::2] = 0
    found = sizes(net)
    path = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(net.state_dict(), path)
    assert found.plain_bytes == path.stat().st_size
    assert abs(found.gzip_bytes - len(gzip.compress(path.read_bytes(), 6))) <= 64
    assert found.gzip_bytes < 0.8 * found.plain_bytes
    assert found.file_bytes == secateur.deploy.save(net, tmp_path / "ours.safetensors")
    assert found.file_bytes == (tmp_path / "ours.safetensors").stat().st_size


def test_tied_tensors_and_views_stand_once_and_load_again() -> None:
    net = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 50, bias=False), nn.Linear(8, 50, bias=False))
    net[1].weight = net[0].weight
    whole = torch.randn(100, 8)
    net[2].weight = nn.Parameter(whole[50:])  # safetensors itself refuses to write a part of shared memory
    net.register_buffer("rest", whole[:50])
    loaded = safetensors.torch.load(plain_bytes(net))
    assert set(loaded) == {"0.weight", "2.weight", "rest"}
    assert torch.equal(loaded["2.weight"], net[2].weight)


def test_environment_says_where() -> None:
    found = environment()
    assert found.torch == torch.__version__
    assert found.threads == torch.get_num_threads()
    assert found.cores >= 1
    assert all((found.cpu, found.isa, found.python, found.platform, found.secateur))
