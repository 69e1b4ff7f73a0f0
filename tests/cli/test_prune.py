"""``secateur prune`` and ``inspect``: the file holds exactly what was asked for, and says so."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.deploy import load
from tests.cli.conftest import Run, dense_state

WEIGHTS = 40 * 20 + 4 * 40  # of both layers; the biases stay


def prune(run: Run, *options: object, output: str = "sparse.safetensors", weights: str = "dense.safetensors") -> Any:
    return run("prune", "--model", "nets:make", "--weights", weights, "-o", output, *options)


def inspect(run: Run, path: str = "sparse.safetensors") -> dict[str, Any]:
    return json.loads(run("inspect", path, "--json").stdout)


def kept_by_magnitude(state: dict[str, torch.Tensor], sparsity: float) -> dict[str, np.ndarray]:
    """Oracle in float64: the smallest floor(S N + 0.5) of all weights together go, lower index first."""
    names = ("0.weight", "2.weight")
    flat = np.concatenate([np.abs(state[name].double().numpy()).ravel() for name in names])
    kept = np.ones(len(flat), bool)
    kept[np.argsort(flat, kind="stable")[: int(np.floor(sparsity * len(flat) + 0.5))]] = False
    cut = state[names[0]].numel()
    return {names[0]: kept[:cut].reshape(40, 20), names[1]: kept[cut:].reshape(4, 40)}


def test_the_file_holds_the_largest_weights_and_nothing_else(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.9)
    dense = dense_state()
    expected = kept_by_magnitude(dense, 0.9)
    found = load(nets / "sparse.safetensors").tensors
    for name, tensor in dense.items():
        mask = torch.from_numpy(expected[name]) if name in expected else torch.ones_like(tensor, dtype=torch.bool)
        assert torch.equal(found[name], tensor * mask)


def test_it_says_shares_and_real_bytes(run: Run, nets: Path) -> None:
    printed = prune(run, "--sparsity", 0.9).stdout
    assert "90.0 % zeros in 2 tensors" in printed
    size = (nets / "sparse.safetensors").stat().st_size
    dense = (nets / "dense.safetensors").stat().st_size
    assert size < dense
    assert f"{dense / size:.2f} x smaller" in printed


def test_a_file_that_is_not_smaller_is_called_no_gain(run: Run) -> None:
    result = run("prune", "--model", "nets:small", "--sparsity", 0.5, "-o", "sparse.safetensors")
    assert "no gain here" in result.stdout
    assert "smaller" not in result.stdout


def test_inspect_shows_kept_masks_bytes_and_plan(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.9, "--allocation", "uniform")
    found = inspect(run)
    rows = {row["name"]: row for row in found["tensors"]}
    assert (found["format"], found["unit"]) == ("secateur", "weight")
    assert found["file_bytes"] == (nets / "sparse.safetensors").stat().st_size
    assert found["dense_bytes"] == 4 * (WEIGHTS + 44)
    assert (rows["0.weight"]["kept"], rows["0.weight"]["total"]) == (80, 800)
    assert (rows["2.weight"]["kept"], rows["2.bias"]["kept"]) == (16, None)
    assert rows["0.weight"]["mask"]["coding"] in ("bits", "rice")
    assert rows["0.weight"]["shape"] == [40, 20]
    assert found["plan"]["sparsity"] == 0.9
    assert found["plan"]["allocation"] == "uniform"
    printed = run("inspect", "sparse.safetensors").stdout
    assert "90.0 % of 960 target weights removed" in printed
    assert "allocation uniform" in printed


def test_inspect_reads_plain_safetensors(run: Run) -> None:
    found = inspect(run, "dense.safetensors")
    assert found["format"] == "safetensors"
    assert {row["name"]: row["bytes"] for row in found["tensors"]}["0.weight"] == 3200
    assert "no masks" in run("inspect", "dense.safetensors").stdout


def test_names_in_a_file_do_not_drive_the_terminal(run: Run, nets: Path) -> None:
    save_file({"evil\x1b[2J\r": torch.zeros(2)}, nets / "evil.safetensors")
    printed = run("inspect", "evil.safetensors").stdout
    assert "\x1b" not in printed
    assert "evil\\x1b[2J\\r" in printed


@pytest.mark.parametrize("option", ["--unit", "--within"])
def test_a_pattern_fixes_the_sparsity(run: Run, nets: Path, option: str) -> None:
    prune(run, option, "2 of 4")
    weight = load(nets / "sparse.safetensors").tensors["0.weight"]
    assert (weight.reshape(-1, 4) != 0).sum(1).unique().tolist() == [2]
    assert inspect(run)["plan"]["within"] == "2 of 4"


def test_coarse_units_and_what_stays_dense(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.5, "--unit", "filter", "--targets", "0*", "--exclude", "2.weight")
    found = load(nets / "sparse.safetensors").tensors
    assert int((found["0.weight"] != 0).any(1).sum()) == 20
    assert torch.equal(found["2.weight"], dense_state()["2.weight"])


def test_gradients_come_from_the_users_data_and_loss(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.5, "--criterion", "snip", "--data", "nets:batches", "--loss", "cross_entropy")
    state = {name: tensor.double().requires_grad_() for name, tensor in dense_state().items()}
    x, y = importlib.import_module("nets").batches()[0]  # one batch is what SNIP reads
    hidden = torch.relu(x.double() @ state["0.weight"].T + state["0.bias"])
    nn.functional.cross_entropy(hidden @ state["2.weight"].T + state["2.bias"], y).backward()
    scores = torch.cat([(state[n].detach() * state[n].grad).abs().flatten() for n in ("0.weight", "2.weight")])
    found = load(nets / "sparse.safetensors").tensors
    kept = torch.cat([found[n].flatten() != 0 for n in ("0.weight", "2.weight")])
    assert int(kept.sum()) == WEIGHTS // 2
    assert float(scores[kept].min()) >= float(scores[~kept].max()) * (1 - 1e-4)


@pytest.mark.parametrize("loss", ["mse", "nets:half"])
def test_losses_by_name_and_by_function(run: Run, loss: str) -> None:
    data = "nets:regression" if loss == "mse" else "nets:generator"
    options = ("--sparsity", 0.5, "--criterion", "taylor", "--batches", 1, "--data", data, "--loss", loss)
    assert "50.0 % zeros" in prune(run, *options).stdout


def test_a_criterion_of_the_user(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.5, "--criterion", "nets:worst", "--allocation", "uniform")
    weight = load(nets / "sparse.safetensors").tensors["0.weight"]
    dense = dense_state()["0.weight"].abs().flatten().sort().values
    assert float(weight.abs().max()) == float(dense[399])
    assert inspect(run)["plan"]["criterion"] == "nets:worst"


def test_the_seed_decides_what_random_removes(run: Run, nets: Path) -> None:
    files = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        prune(run, "--sparsity", 0.5, "--criterion", "random", "--seed", seed, output=f"{name}.safetensors")
        files[name] = (nets / f"{name}.safetensors").read_bytes()
    assert files["a"] == files["b"]
    assert load(nets / "a.safetensors").tensors["0.weight"].ne(load(nets / "c.safetensors").tensors["0.weight"]).any()


def test_pruning_a_sparse_file_goes_on_from_its_masks(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.5, output="half.safetensors")
    prune(run, "--sparsity", 0.9, weights="half.safetensors")
    first, second = (load(nets / f"{name}.safetensors").tensors["0.weight"] != 0 for name in ("half", "sparse"))
    assert not bool((second & ~first).any())
    assert sum(row["kept"] or 0 for row in inspect(run)["tensors"]) == 96


def test_criteria_that_compare_read_the_first_weights(run: Run, nets: Path) -> None:
    first = {name: torch.zeros_like(tensor) for name, tensor in dense_state().items()}
    save_file(first, nets / "init.safetensors")
    prune(run, "--sparsity", 0.9, "--criterion", "movement", "--init", "init.safetensors")
    expected = kept_by_magnitude(dense_state(), 0.9)  # |w - 0|
    found = load(nets / "sparse.safetensors").tensors
    assert np.array_equal(found["0.weight"].numpy() != 0, expected["0.weight"])


@pytest.mark.parametrize("protocol", [2, "zip"])
def test_checkpoints_of_tensors_are_read(run: Run, nets: Path, protocol: object) -> None:
    torch.save(dense_state(), nets / "dense.pt", _use_new_zipfile_serialization=protocol == "zip")
    prune(run, "--sparsity", 0.9, weights="dense.pt", output="a.safetensors")
    prune(run, "--sparsity", 0.9, output="b.safetensors")
    assert (nets / "a.safetensors").read_bytes() == (nets / "b.safetensors").read_bytes()


def test_tied_tensors_stand_in_a_plain_file_once(run: Run, nets: Path) -> None:
    weight = torch.arange(1.0, 26.0).reshape(5, 5)
    save_file({"0.weight": weight}, nets / "tied.safetensors")
    run("prune", "--model", "nets:tied", "--weights", "tied.safetensors", "--sparsity", 0.2, "-o", "sparse.safetensors")
    assert torch.equal(load(nets / "sparse.safetensors").tensors["1.weight"], weight * (weight > 5))


@pytest.mark.parametrize("data", ["batches", "generator"])
def test_channels_are_traced_with_the_first_batch(run: Run, nets: Path, data: str) -> None:
    method = ("--unit", "channel", "--criterion", "snip", "--data", f"nets:{data}", "--loss", "cross_entropy")
    printed = prune(run, "--sparsity", 0.5, "--batches", 2, *method).stdout
    assert "20 of 40 channels kept" in printed
    bundle = load(nets / "sparse.safetensors")
    dense = dense_state()
    prune(run, "--sparsity", 0.5, "--batches", 2, *method[:-3], "nets:batches", *method[-2:], output="again")
    assert torch.equal(bundle.masks["0.weight"], load(nets / "again").masks["0.weight"])  # no batch was lost
    kept = bundle.masks["0.weight"]
    assert torch.equal(bundle.tensors["2.weight"], dense["2.weight"] * kept)
    assert torch.equal(bundle.tensors["0.bias"], dense["0.bias"] * kept)
    rows = {row["name"]: row for row in inspect(run)["tensors"]}
    assert (rows["0.bias"]["kept"], rows["2.weight"]["kept"], rows["2.bias"]["kept"]) == (20, 80, None)


def test_merge_changes_what_reads_the_channels_and_is_refused_by_others(run: Run, nets: Path) -> None:
    method = ("--sparsity", 0.5, "--unit", "channel", "--data", "nets:batches", "--merge")
    prune(run, *method, "--criterion", "cosine")
    bundle, dense = load(nets / "sparse.safetensors"), dense_state()
    kept = bundle.masks["0.weight"]
    assert torch.equal(bundle.tensors["0.weight"], dense["0.weight"] * kept[:, None])
    assert not torch.equal(bundle.tensors["2.weight"][:, kept], dense["2.weight"][:, kept])
    prune(run, *method, "--criterion", "activation_correlation")
    assert not torch.equal(load(nets / "sparse.safetensors").tensors["2.bias"], dense["2.bias"])
    result = run("prune", "--model", "nets:make", *method, "-o", "f", code=2)
    assert "'cosine', 'srinivas_babu', 'activation_correlation' do" in " ".join(result.output.split())


def test_rounds_without_data_and_updates_with_it(run: Run, nets: Path) -> None:
    prune(run, "--sparsity", 0.5, "--criterion", "synflow", "--rounds", 3)
    few = load(nets / "sparse.safetensors").masks
    assert load(nets / "sparse.safetensors").plan["rounds"] == 3
    prune(run, "--sparsity", 0.5, "--criterion", "synflow", "--rounds", 1)
    assert sum(int(mask.sum()) for mask in few.values()) == sum(
        int(m.sum()) for m in load(nets / "sparse.safetensors").masks.values()
    )
    method = (
        "--sparsity",
        0.3,
        "--criterion",
        "woodfisher(damping=0.01)",
        "--data",
        "nets:batches",
        "--loss",
        "cross_entropy",
    )
    prune(run, *method, "--update")
    bundle, dense = load(nets / "sparse.safetensors"), dense_state()
    kept = bundle.masks["0.weight"]
    assert not torch.equal(bundle.tensors["0.weight"][kept], dense["0.weight"][kept])
    result = run("prune", "--model", "nets:make", "--sparsity", 0.3, "--update", "-o", "f", code=2)
    assert "obs, woodfisher, woodfisher_flops have" in " ".join(result.output.split())


def test_channels_need_data(run: Run, nets: Path) -> None:
    result = run("prune", "--model", "nets:make", "--unit", "channel", "--sparsity", 0.5, "-o", "f", code=2)
    assert "with the inputs of the first batch of --data" in " ".join(result.output.split())
    assert not (nets / "f").exists()
