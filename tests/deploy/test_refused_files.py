from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.deploy import load, save
from secateur.deploy.filling import swap_in
from secateur.model.masks import find_masks
from tests.deploy.net import UNITS, expect_state, make_net, mask_net, state_of
from tests.io.forge import edited, hurt


def shapes_differ() -> nn.Module:
    return nn.Sequential(*make_net()[:5], nn.Linear(32, 6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            shapes_differ,
            r"5\.weight is \(5, 32\) in the file, \(6, 32\) in the module, 5\.bias is \(5,\).*sizes of the file",
        ),
        (lambda: make_net()[:5], r"unexpected in the file: 5\.weight, 5\.bias\. build the module that was saved"),
        (lambda: nn.Sequential(*make_net(), nn.Linear(5, 5)), r"missing in the file: 6\.weight, 6\.bias"),
        (lambda: make_net().double(), r"0\.weight is torch\.float32 in the file.*model\.to\(torch\.float32\)"),
        (lambda: make_net().to("meta"), "meta device; call to_empty"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "no shape yet; run the module once"),
        (lambda: 3, "into= made a int"),
    ],
)
def test_targets_that_do_not_fit_stay_as_they_are(tmp_path: Path, make: Callable[[], Any], message: str) -> None:
    model = make_net()
    mask_net(model)
    save(model, tmp_path / "m")
    target = make()
    plain = isinstance(target, nn.Module) and not any(
        t.is_meta or hasattr(t, "materialize") for t in target.parameters()
    )
    before = state_of(target) if plain else {}
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "m", into=target if isinstance(target, nn.Module) else make)
    if plain:
        expect_state(target, before)
        assert find_masks(target) is None


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state


class Copies(nn.Linear):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return {name: tensor.detach().clone() for name, tensor in super().state_dict(*args, **options).items()}


def test_modules_that_cannot_be_filled_in_place_say_so(tmp_path: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "m")
    with pytest.raises(ValueError, match="_extra_state is a dict, not a tensor"):
        save(Extra(2, 2), tmp_path / "e")
    with pytest.raises(ValueError, match="files hold no such extra state"):
        load(tmp_path / "m", into=Extra(2, 2))
    with pytest.raises(ValueError, match="is a copy that a hook of the module makes"):
        load(tmp_path / "m", into=Copies(2, 2))
    expanded = nn.Linear(2, 2)
    expanded.bias = nn.Parameter(torch.zeros(1).expand(2))
    with pytest.raises(ValueError, match="bias of the module is an expanded view"):
        load(tmp_path / "m", into=expanded)


@pytest.mark.parametrize("when", [0, 1, 3])
def test_an_interrupt_in_the_middle_of_filling_leaves_the_target(when: int) -> None:
    targets = [torch.full((3,), float(k)) for k in range(4)]
    values = [torch.full((3,), 10.0 + k) for k in range(4)]

    class Interrupting(torch.Tensor):
        pass

    values[when] = values[when].as_subclass(Interrupting)

    def stop(cls: Any, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.copy_:
            raise KeyboardInterrupt
        return torch.Tensor.__torch_function__.__func__(cls, function, types, args, kwargs)

    Interrupting.__torch_function__ = classmethod(stop)
    with pytest.raises(KeyboardInterrupt):
        swap_in(list(zip(targets, values, strict=True)))
    assert [target.tolist() for target in targets] == [[float(k)] * 3 for k in range(4)]


def test_broken_files_leave_the_target(tmp_path: Path) -> None:
    model = make_net()
    mask_net(model, "block(2, 3)")
    save(model, tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    target = make_net(5)
    before = state_of(target)
    for seed in range(150):
        chance = random.Random(seed)
        broken = bytearray(content)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        (tmp_path / "f").write_bytes(bytes(broken) if seed % 2 else content[: chance.randrange(len(content))])
        try:
            load(tmp_path / "f", into=target)
        except ValueError:
            expect_state(target, before)
            assert find_masks(target) is None
        else:
            expect_state(target, state_of(model))
            target, before = make_net(5), state_of(make_net(5))


@pytest.mark.parametrize("spec", ["row", "in_channel", "block(2, 3)"])
def test_forged_units_and_layouts_are_refused_by_value_error(tmp_path: Path, spec: str) -> None:
    model = make_net()
    mask_net(model, spec)
    save(model, tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    refused = 0
    for seed in range(150):
        target = make_net(5)
        before = state_of(target)
        (tmp_path / "f").write_bytes(
            edited(content, lambda record, seed=seed: forge_units(random.Random(seed), record))
        )
        try:
            load(tmp_path / "f", into=target, max_bytes=1 << 20)
        except ValueError:
            refused += 1
            expect_state(target, before)
            assert find_masks(target) is None
    assert 100 < refused < 150


def forge_units(chance: random.Random, record: dict[str, Any]) -> None:
    part = {key: record[key] for key in ("unit", "layout", "units")}
    part["unit"] = chance.choice([part["unit"], part["unit"], *UNITS])
    if chance.random() < 0.9:
        hurt(chance, part)
    record.update(part)


@pytest.mark.parametrize(
    ("unit", "message"),
    [
        ("__import__('os').system('touch hacked')", "is no name|unknown unit"),
        ("tupperware", "unknown unit"),
        ("block(1000000000, 1)", "needs"),
        ("block(0, 1)", "block"),
        ("(" * 150, "is no name"),
        ("filter", "needs"),
    ],
)
def test_a_unit_that_is_not_one_is_refused_and_never_run(tmp_path: Path, unit: str, message: str) -> None:
    model = make_net()
    mask_net(model, "block(2, 3)")
    save(model, tmp_path / "m")
    (tmp_path / "f").write_bytes(edited((tmp_path / "m").read_bytes(), lambda record: record.update(unit=unit)))
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "f")
    assert str(caught.value).startswith(str(tmp_path / "f"))
    target = make_net(5)
    before = state_of(target)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "f", into=target)
    expect_state(target, before)
    assert not Path("hacked").exists()


def test_missing_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create it first"):
        save(nn.Linear(1, 1), tmp_path / "none" / "m")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load(tmp_path / "none", into=nn.Linear(1, 1))
    save(nn.Linear(1, 1), tmp_path / "there")
    with pytest.raises(ValueError, match="into= is a str; give a module"):
        load(tmp_path / "there", into="net")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="a list cannot be saved; give a module, or a mapping"):
        save([torch.zeros(1)], tmp_path / "m")  # type: ignore[arg-type]


def test_loading_imports_and_runs_nothing_that_the_file_names(tmp_path: Path) -> None:
    save(nn.Linear(2, 2), tmp_path / "m", plan={"criterion": "os:system", "schedule": "secret_module:run"})
    (tmp_path / "secret_module.py").write_text("raise SystemExit('it ran')")
    script = "import sys; sys.path.insert(0, sys.argv[1])\nfrom secateur.deploy import load\nload(sys.argv[1] + '/m')"
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
