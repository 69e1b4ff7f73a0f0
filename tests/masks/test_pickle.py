"""A pruned model that was pickled is a plain model: it names no symbol of this package and loads without it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.model.masks import find_masks
from tests.masks.nets import expect_equal, make_batches, make_net, mask_model, random_unit_masks

PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)

LOADER = """
import pickle, sys
from pathlib import Path

class Uninstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("secateur", "tests"):
            raise ModuleNotFoundError(f"{name} is uninstalled", name=name)

sys.meta_path.insert(0, Uninstalled())
import torch
folder = Path(sys.argv[1])
torch.set_num_threads(1)
images, expected, dense = torch.load(folder / "check.pt")
for path in sorted(folder.glob("model*")):
    if path.suffix == ".pickle":
        model = pickle.loads(path.read_bytes())
    else:
        model = torch.load(path, weights_only=False)
    assert torch.equal(model.eval()(images), expected), path
    model.load_state_dict(dense)
    assert torch.equal(model[4].weight, dense["4.weight"]), "a plain model takes dense weights as they are"
    model.train()(images).sum().backward()
    print(path.name)
assert not any(name.partition(".")[0] == "secateur" for name in sys.modules)
"""


def pruned() -> nn.Module:
    model = make_net()
    masks = mask_model(model, random_unit_masks(model))
    masks.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    return model


def saved(model: nn.Module, protocol: int) -> bytes:
    buffer = io.BytesIO()
    torch.save(model, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_symbol_of_the_package_is_in_the_bytes(protocol: int) -> None:
    model = pruned()
    assert len(model._load_state_dict_post_hooks) == 1, "there is a hook, and it is pickled with the model"
    for data in (pickle.dumps(model, protocol), saved(model, protocol), pickle.dumps(copy.deepcopy(model), protocol)):
        assert b"secateur" not in data.lower()
        assert b"tests.masks" not in data


def test_it_loads_and_runs_with_the_package_uninstalled(tmp_path: Path) -> None:
    model = pruned()
    for protocol in PROTOCOLS:
        (tmp_path / f"model{protocol}.pickle").write_bytes(pickle.dumps(model, protocol))
        (tmp_path / f"model{protocol}.pt").write_bytes(saved(model, protocol))
    images = make_batches(1)[0][0]
    with torch.no_grad():
        expected = model.eval()(images)
    torch.save((images, expected, make_net(1).state_dict()), tmp_path / "check.pt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(f"model{n}.{kind}" for n in PROTOCOLS for kind in ("pickle", "pt"))


def test_a_loaded_model_is_plain_here_too_and_can_be_pruned_again() -> None:
    model = pruned()
    back = torch.load(io.BytesIO(saved(model, 2)), weights_only=False)
    expect_equal(back, model)
    assert find_masks(back) is None
    dense = make_net(1).state_dict()
    back.load_state_dict(dense)
    assert torch.equal(back[4].weight, dense["4.weight"])
    masks = mask_model(back, random_unit_masks(back, seed=5))
    again = pickle.loads(pickle.dumps(back))
    expect_equal(again, back)
    back.load_state_dict(dense)
    masks.check()


def test_the_weights_of_a_pruned_model_load_in_safe_mode(tmp_path: Path) -> None:
    model = pruned()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    fresh = make_net(5)
    fresh.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    expect_equal(fresh, model)
