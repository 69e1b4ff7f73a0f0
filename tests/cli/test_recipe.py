"""A recipe is checked as a whole: every mistake at once, with line, table, key, what is allowed and what is nearest."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

import secateur as sc
from secateur.cli.recipe.checks import read_recipe
from secateur.cli.recipe.mistakes import BadRecipe
from secateur.cli.recipe.reading import line_numbers, read_toml
from secateur.cli.recipe.resolve import prepare
from secateur.cli.recipe.schema import SINGLE, StageTable
from tests.cli.recipe_files import RECIPE, written


def mistakes(path: Path) -> str:
    with pytest.raises(BadRecipe) as error:
        prepare(read_recipe(path))
    return str(error.value)


def test_a_right_recipe_has_no_mistakes(nets: Path) -> None:
    recipe = read_recipe(written(nets))
    prepared = prepare(recipe)
    assert set(prepared.data) == {"train", "valid", "test"}
    assert recipe.checkpoint == nets / "dense.safetensors"
    assert not prepared.model.training


CHANNELS = 'criterion = "l2"'
TRAINING = 'epochs = 2\nloss = "cross_entropy"'


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            'factory = "nets:make"',
            'factory = "nets:mak"',
            "line 2: [model] factory = \"nets:mak\": module 'nets' has no",
        ),
        ('factory = "nets:make"', 'factory = "net:make"', "there is no module 'net'"),
        ('factory = "nets:make"', "factory = 3", 'line 2: [model] factory = 3: allowed: "package.module:function"'),
        ('factory = "nets:make"', 'factory = "nets:sized"', "needs arguments (width)"),
        ('factory = "nets:make"', "", "[model] factory: is missing"),
        (
            '"dense.safetensors"',
            '"dens.safetensors"',
            'line 3: [model] checkpoint = "dens.safetensors": there is no such',
        ),
        ('"dense.safetensors"', '"dens.safetensors"', "did you mean 'dense.safetensors'?"),
        ('"dense.safetensors"', '"no/such.safetensors"', "paths are relative to the recipe"),
        ('"nets:make"', '"nets:small"', '[model] checkpoint = "dense.safetensors": '),
        ("checkpoint =", "chekpoint =", "line 3: [model] chekpoint: there is no such key; did you mean 'checkpoint'?"),
        ('valid = "nets:pair"', "", "[data] valid: is missing"),
        (
            '"nets:batches"',
            '"nets:generator"',
            'line 6: [data] train = "nets:generator": returned what can be read once',
        ),
        ('"nets:batches"', '"nets:number"', '[data] train = "nets:number": returned a int'),
        (
            'criterion = "l2"',
            'criterion = "magnitud"',
            'line 12: [[stage]] 1 criterion = "magnitud": unknown criterion',
        ),
        ('criterion = "l2"', 'criterion = "nets:wurst"', "has no 'wurst'; did you mean 'worst'?"),
        ('criterion = "l2"', "kriterion = 1", "did you mean 'criterion'? Keys: when, criterion, unit"),
        (
            'unit = "channel"',
            'unit = "chanel"',
            "line 11: [[stage]] 1 unit = \"chanel\": unknown unit 'chanel': did you mean",
        ),
        ('unit = "channel"', 'unit = "row"\nround_to = 8', "[[stage]] 1 round_to: round"),
        (
            CHANNELS,
            'criterion = "apoz"\nround_to = "often"',
            'line 13: [[stage]] 1 round_to = "often": allowed is a whole',
        ),
        ('when = "after"', 'when = "aftr"', 'line 15: [[stage]] 2 when = "aftr": allowed: '),
        ('when = "after"', 'when = "aftr"', "did you mean 'after'?"),
        (
            'when = "after"',
            'criterion = "apoz"',
            'line 15: [[stage]] 2 criterion = "apoz": gives one score per channel or',
        ),
        ('when = "after"', 'criterion = "movement"', "compares with the weights before training"),
        ('when = "after"', 'criterion = "movement_sanh"', "watches a training"),
        (
            'when = "after"',
            "sparsity = 90",
            "[[stage]] 2 sparsity = 90: allowed: a share between 0 and 1, not per cent",
        ),
        ('when = "after"', 'schedule = "cubic"', "[[stage]] 2 schedule: schedule= says how masks grow"),
        ('when = "after"', 'schedule = "qubic"', "unknown schedule 'qubic': did you mean 'cubic'?"),
        ('when = "after"', 'when = "before"', "line 14: [[stage]] 2: when='before' begins with fresh weights"),
        ('when = "after"', 'targets = "9.weight"', "[[stage]] 2 targets: targets='9.weight' matches nothing"),
        ('when = "after"', 'unit = "2 of 4"\nsparsity = 0.9', "2 of 4 removes 0.5 of the weights"),
        (TRAINING, 'epochs = "two"', 'line 18: [recover] epochs = "two": allowed: a whole number from 1'),
        ("[recover]\n" + TRAINING, "", "[recover]: this table is needed, with epochs"),
        (TRAINING, "epochs = 2", "[recover] loss: batches are (inputs, labels) pairs, so a loss is needed"),
        (TRAINING, 'epochs = 2\nloss = "cross_entrop"', "unknown loss 'cross_entrop': did you mean 'cross_entropy'?"),
        (TRAINING, TRAINING + '\noptimizer = "adm"', "line 20: [recover] optimizer = \"adm\": unknown optimizer 'adm'"),
        (TRAINING, TRAINING + '\nlr_schedule = "cosin"', "unknown lr_schedule 'cosin': did you mean 'cosine'?"),
        (
            TRAINING,
            TRAINING + '\noptimizer = "nets:worst"\nlr = 0.1',
            "are of named optimizers; a function brings its own",
        ),
        (TRAINING, TRAINING + "\nlr = -1", "line 20: [recover] lr = -1: allowed: a number above 0"),
        (TRAINING, TRAINING + "\nlr = nan", "[recover] lr = NaN: allowed"),
        (TRAINING, TRAINING + '\namp = "fp8"', 'allowed: "bf16" or "fp16"; did you mean'),
        (
            "max_drop = 50.0",
            "max_dorp = 1.0",
            "line 22: [goal] max_dorp: there is no such key; did you mean 'max_drop'?",
        ),
        ("max_drop = 50.0", "max_drop = -1", "[goal] max_drop = -1: allowed: points of the metric"),
        ("max_drop = 50.0", "speedup = 1.0", "[goal] speedup = 1.0: allowed: times as fast as dense"),
        ("max_drop = 50.0\nbytes = 0.5", "", "line 21: [goal]: asks for nothing"),
        ("bytes = 0.5", "bytes = true", "[goal] bytes = true: allowed: "),
        ("bytes = 0.5", "bytes = 1e9", "line 23: [goal] bytes = 1000000000.0: the dense model has a file of"),
        ("trials = 2", "trials = 0", "line 26: [search] trials = 0: allowed: a whole number from 1"),
        ("trials = 2", 'method = "bisekt"', 'allowed: "bisect" or "optuna"; did you mean \'bisect\'?'),
        ("[search]", "[serch]", "line 25: [serch]: there is no such table; did you mean 'search'?"),
        ("[search]", "[[search]]", "[search]: write [search], with one bracket, once"),
        (
            'folder = "runs"',
            'folder = "dense.safetensors"',
            'line 30: [output] folder = "dense.safetensors": this is a file',
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(nets: Path, old: str, new: str, says: str) -> None:
    told = mistakes(written(nets, (old, new)))
    assert says in told
    assert "recipe.toml has 1 mistake; nothing was done:" in told
    assert not (nets / "runs").exists()


def test_all_mistakes_come_at_once_in_the_order_of_lines(nets: Path) -> None:
    path = written(
        nets,
        ('"nets:make"', '"nets:mak"'),
        ("checkpoint", "chekpoint"),
        ('criterion = "l2"', 'criterion = "magnitud"'),
        ('when = "after"', "sparsity = 2"),
        ('"cross_entropy"', '"cross"'),
        ("max_drop", "max_dorp"),
        ("[search]", "[serch]"),
        ('folder = "runs"', "folder = 1"),
    )
    told = mistakes(path).splitlines()
    assert told[0].endswith("recipe.toml has 8 mistakes; nothing was done:")
    lines = [int(line.split()[1].rstrip(":")) for line in told[1:]]
    assert lines == [2, 3, 12, 15, 19, 22, 25, 30]


def test_what_was_trained_on_or_chosen_by_is_no_test(nets: Path) -> None:
    for old, new, says in (
        ('"held:out"', '"nets:pair"', 'line 8: [data] test = "nets:pair": is the same as valid'),
        ('"nets:pair"', '"nets:batches"', 'line 7: [data] valid = "nets:batches": is the same as train'),
    ):
        assert says in mistakes(written(nets, (old, new)))


def test_a_masked_checkpoint_is_refused(nets: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(20, 40), torch.nn.ReLU(), torch.nn.Linear(40, 4))
    sc.prune(net, 0.5)
    sc.save(net, nets / "dense.safetensors")
    assert "has masks, and a search begins with a dense model" in mistakes(written(nets))


def test_tables_that_are_missing_or_single(nets: Path) -> None:
    (nets / "empty.toml").write_text("")
    told = mistakes(nets / "empty.toml")
    assert all(f"[{name}]: this table is needed" in told for name in ("model", "data", "recover", "goal"))
    assert "4 mistakes" in told
    assert "write [[stage]], with two brackets each" in mistakes(
        written(nets, ('[[stage]]\nunit = "channel"\ncriterion = "l2"\n\n[[stage]]\nwhen', "[stage]\nwhen"))
    )


@pytest.mark.parametrize("unit", ["channel(all)", "channel(out, weights)"])
def test_channels_make_it_faster_however_they_are_scored(nets: Path, unit: str) -> None:
    stage = ('unit = "channel"\ncriterion = "l2"', f'unit = "{unit}"')
    assert prepare(read_recipe(written(nets, stage, ("bytes = 0.5", "macs = 0.5")))).data.keys() == {
        "train",
        "valid",
        "test",
    }


def test_masks_alone_make_nothing_faster(nets: Path) -> None:
    masks = ('unit = "channel"\ncriterion = "l2"', 'unit = "weight"')
    told = mistakes(written(nets, masks, ("bytes = 0.5", "speedup = 2\nmacs = 0.5")))
    assert "2 mistakes" in told
    assert "[goal] speedup = 2.0: only taking something out makes a model faster" in told


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import not_installed_anywhere\n", "raised ModuleNotFoundError: No module named 'not_installed_anywhere' ("),
        ("x = 1\nx +\n", "broken_module.py, line 2)"),
        ("\n\nraise ValueError('my own')\n", "raised ValueError: my own ("),
        ("raise SystemExit(1)\n", "raised SystemExit: 1 ("),
    ],
)
def test_what_an_import_raises_is_shown_as_the_users(nets: Path, code: str, says: str) -> None:
    (nets / "broken_module.py").write_text(code)
    importlib.invalidate_caches()
    sys.modules.pop("broken_module", None)
    told = mistakes(written(nets, ('"nets:make"', '"broken_module:make"'), ("trials = 2", "trials = 0")))
    assert "line 2: [model] factory = \"broken_module:make\": importing 'broken_module' raised" in told
    assert says in told
    assert "broken_module.py, line" in told
    assert "[search] trials" in told


def test_errors_of_a_called_function_keep_their_traceback(nets: Path) -> None:
    with pytest.raises(ValueError, match="inside the factory") as error:
        prepare(read_recipe(written(nets, ('"nets:make"', '"nets:broken"'))))
    assert not isinstance(error.value, BadRecipe)


def test_modules_beside_the_recipe_come_first(nets: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "only_there.py").write_text("from nets import make\n")
    path = written(nets, ('"nets:make"', '"only_there:make"'), ('"dense', '"../dense'))
    moved = other / "recipe.toml"
    path.replace(moved)
    assert read_recipe(moved).functions["model", "factory"].__module__ == "nets"
    sys.modules.pop("only_there")


def test_what_is_no_toml(nets: Path) -> None:
    for content, says in (
        (b"[goal\n", "not TOML"),
        (b"unit = weight\n", "at line 1, column 8"),
        (b"\xff\xfe", "UTF-8"),
    ):
        (nets / "bad.toml").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.toml") as error:
            read_toml(nets / "bad.toml")
        assert says in str(error.value)
    with pytest.raises(ValueError, match="there is no such file"):
        read_toml(nets / "none.toml")


def test_lines_of_keys_by_a_slow_reader() -> None:
    text = 'a = 1\n[x]  # c\nb = """\n[no]\nc = 1\n"""\n"d e" = 2\n[[y]]\nf = [\n  "g",\n]\n[[y]]\n[y.z]\nh.i = 3\n'
    found = line_numbers(text)
    assert found == {
        ("a",): 1,
        ("x",): 2,
        ("x", "b"): 3,
        ("x", "d e"): 7,
        ("y", 0): 8,
        ("y", 0, "f"): 9,
        ("y", 1): 12,
        ("y", 1, "z"): 13,
        ("y", 1, "z", "h"): 14,
    }
    for place, line in line_numbers(RECIPE).items():
        assert str(place[-1] if isinstance(place[-1], str) else place[0]) in RECIPE.split("\n")[line - 1]


def test_every_key_says_what_it_may_hold() -> None:
    for kind in [kind for kind, _ in SINGLE.values()] + [StageTable]:
        for name, field in kind.model_fields.items():
            assert field.description or name == "round_to", f"{kind.__name__}.{name}"
