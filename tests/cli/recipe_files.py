"""A recipe on the modules of ``conftest``, and how to change it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

HELD = """
import torch

def out():
    x = torch.randn(60, 20, generator=torch.Generator().manual_seed(4))
    return x, x[:, :4].argmax(1)
"""

RECIPE = """\
[model]
factory = "nets:make"
checkpoint = "dense.safetensors"

[data]
train = "nets:batches"
valid = "nets:pair"
test = "held:out"

[[stage]]
unit = "channel"
criterion = "l2"

[[stage]]
when = "after"

[recover]
epochs = 2
loss = "cross_entropy"

[goal]
max_drop = 50.0
bytes = 0.5

[search]
trials = 2
rivals = false

[output]
folder = "runs"
"""


def written(folder: Path, *changes: tuple[str, str], name: str = "recipe.toml") -> Path:
    """The recipe with pieces of its text replaced, each of which has to be there, and ``held.py`` beside it."""
    text = RECIPE
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    sys.modules.pop("held", None)
    (folder / "held.py").write_text(HELD)
    importlib.invalidate_caches()
    path = folder / name
    path.write_text(text)
    return path
