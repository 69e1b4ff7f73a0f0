"""``secateur shrink``: the file holds a smaller model that meets the budget, and loads into its class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from tests.cli.conftest import Run, dense_state


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4))


def shrink(run: Run, *options: object, code: int = 0, weights: str = "dense.safetensors") -> Any:
    given = ("--model", "nets:make", "--weights", weights, "-o", "small.safetensors")
    return run("shrink", *given, *options, code=code)


def strongest(count: int) -> torch.Tensor:
    """Oracle: the units of the only hidden layer with the largest weights, in order."""
    return dense_state()["0.weight"].norm(dim=1).argsort(descending=True)[:count].sort().values


def test_the_file_is_the_smaller_model(run: Run, nets: Path) -> None:
    printed = shrink(run, "--example", "1,20", "--macs", 0.5, "--json", "record.json").stdout
    kept, dense = strongest(20), dense_state()
    small = sc.load(nets / "small.safetensors", into=make)
    assert torch.equal(small[0].weight, dense["0.weight"][kept])
    assert torch.equal(small[2].weight, dense["2.weight"][:, kept])
    size = (nets / "small.safetensors").stat().st_size
    plain = (nets / "dense.safetensors").stat().st_size
    assert f"{plain / size:.2f} x smaller" in printed
    assert "0.weight     40 -> 20 channels" in printed
    record = json.loads((nets / "record.json").read_text())
    assert (record["requested"], record["after"]["macs"]) == ({"macs": 0.5}, 20 * 24)
    stored = sc.load(nets / "small.safetensors").record
    assert stored is not None
    assert stored["shrinkage"] == record


def test_several_budgets_hold_together(run: Run, nets: Path) -> None:
    shrink(run, "--data", "nets:batches", "--macs", 0.9, "--params", 300, "--bytes", 2000)
    small = sc.load(nets / "small.safetensors", into=make)
    assert sum(p.numel() for p in small.parameters()) <= 300
    assert small[0].out_features == 11  # 25 each, 4 biases: 279; 12 would be 304


@pytest.mark.parametrize(("options", "width"), [(("8",), 16), (("0=6",), 18), (("0*=5", "9*=3"), None)])
def test_widths_are_rounded(run: Run, nets: Path, options: tuple[str, ...], width: int | None) -> None:
    rounded = [part for option in options for part in ("--round-to", option)]
    result = shrink(run, "--example", "1,20", "--macs", 0.5, *rounded, code=0 if width else 2)
    if width is None:
        assert "round_to='9*' matches no layer" in result.output
    else:
        assert sc.load(nets / "small.safetensors", into=make)[0].out_features == width


def test_a_goal_that_is_not_met_is_code_3_and_no_file(run: Run, nets: Path) -> None:
    result = shrink(run, "--example", "1,20", "--params", 20, code=3)
    assert "params <= 20 cannot be met" in result.output
    assert "29 are left" in result.output
    assert not (nets / "small.safetensors").exists()


def test_masks_of_a_file_are_carried_out(run: Run, nets: Path) -> None:
    options = ("--sparsity", 0.25, "--unit", "channel", "--criterion", "l2", "--data", "nets:batches")
    run("prune", "--model", "nets:make", "--weights", "dense.safetensors", "-o", "sparse.safetensors", *options)
    shrink(run, "--data", "nets:generator", weights="sparse.safetensors")
    small = sc.load(nets / "small.safetensors", into=make)
    assert torch.equal(small[0].weight, dense_state()["0.weight"][strongest(30)])


def test_gradients_and_measured_time(run: Run, nets: Path) -> None:
    method = ("--criterion", "taylor", "--data", "nets:generator", "--loss", "cross_entropy", "--batches", 2)
    shrink(run, *method, "--sparsity", 0.5)
    once = (nets / "small.safetensors").read_bytes()
    shrink(run, *method[:3], "nets:batches", *method[4:], "--sparsity", 0.5)
    assert (nets / "small.safetensors").read_bytes() == once  # no batch of the generator was lost
    shrink(run, *method, "--sparsity", 0.5, "--round-to", "measured")
    small = sc.load(nets / "small.safetensors", into=make)
    assert small[0].out_features in (8, 16, 20)
    assert "in multiples of" in shrink(run, *method, "--sparsity", 0.5, "--round-to", "measured").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--macs", 0.5), "give --example with the shape"),
        (("--macs", 0.5, "--example", "1,3,x"), "--example '1,3,x': write the shape"),
        (("--macs", 0.5, "--example", "1,20", "--round-to", "layer=x"), "--round-to 'layer=x'"),
        (("--macs", 0, "--example", "1,20"), "macs=0.0: give a fraction"),
        (("--example", "1,20"), "this model has no masks"),
        (("--macs", 0.5, "--example", "1,20", "--recalibrate", "nets:batches"), "no batch norm"),
        (("--macs", 0.5, "--example", "1,20", "--criterion", "nets:nothing"), "has no 'nothing'"),
    ],
)
def test_mistakes_are_code_2(run: Run, nets: Path, options: tuple[object, ...], words: str) -> None:
    result = shrink(run, *options, code=2)
    assert words in " ".join(result.output.split())
    assert not (nets / "small.safetensors").exists()
