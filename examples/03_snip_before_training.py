"""Before training: SNIP chooses which weights a network needs from a single batch, then only those are trained.

A connection's score is |w dL/dw|: how much the loss feels it. The rivals are the same share of weights
removed at random, and by the size of their first values. Each is trained alike, from the same start.

Run it:  python examples/03_snip_before_training.py   (some seconds; needs scikit-learn, brings its own data)
"""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import secateur as sc

torch.manual_seed(0)
torch.set_num_threads(1)
SPARSITIES = (0.9, 0.98)

# --- Data: 1,797 images of 8x8 pixels; every fifth is kept for testing -----------------------------
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
for_test = torch.arange(len(y)) % 5 == 0
x_train, y_train, test = x[~for_test], y[~for_test], (x[for_test], y[for_test])

# One batch with ten images of each class: what SNIP sees.
first_batch = torch.cat([(y_train == label).nonzero().flatten()[:10] for label in range(10)])


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


def train(model: nn.Module, masks: sc.Masks | None = None, epochs: int = 15) -> nn.Module:
    """An ordinary loop; attached masks keep removed weights at zero."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    if masks is not None:
        masks.attach(optimizer)
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        for index in torch.randperm(len(y_train), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x_train[index]), y_train[index]).backward()
            optimizer.step()
    return model.eval()


# --- The same start for all ----------------------------------------------------------------------------
start = make()
dense = train(copy.deepcopy(start))
fit = sc.evaluate(dense, test)
print(f"dense                       {100 * fit.top1:5.1f} +- {100 * fit.standard_error:.1f} %\n")

trained: dict[tuple[str, float], nn.Module] = {}
for sparsity in SPARSITIES:
    for criterion in ("snip", "magnitude", "random"):
        model = copy.deepcopy(start)
        masks = sc.prune(
            model,
            sparsity=sparsity,
            criterion=criterion,
            data=(x_train[first_batch], y_train[first_batch]),  # magnitude and random do not read it
            loss=F.cross_entropy,
        )
        train(model, masks)
        masks.check()  # raises if a removed weight had grown back
        trained[criterion, sparsity] = model
        fit = sc.evaluate(model, test)
        inputs = int((masks["0.weight"].any(0)).sum())
        print(
            f"{criterion:10} {100 * sparsity:3.0f} % removed  {100 * fit.top1:5.1f} +- {100 * fit.standard_error:.1f} %"
            f"   {inputs} of 64 pixels are read, {sc.effective(model).parameters} parameters lie on a path"
        )
    print()

# --- What the sparsest SNIP network is worth: its masks are found through the model ----------------------
sparsest = trained["snip", SPARSITIES[-1]]
record = sc.measure(dense, sparsest, test, batches=(1, 256))
for note in record.notes:
    print(f"- {note}")

with TemporaryDirectory() as folder:
    path = Path(folder) / "snip.safetensors"
    sc.save(sparsest, path)
    again = sc.load(path, into=make())
    size = path.stat().st_size
with torch.no_grad():
    assert torch.equal(again(test[0]), sparsest(test[0]))
smaller = record.dense.sizes.plain_bytes / size
print(
    f"\nfile: {record.dense.sizes.plain_bytes:,} -> {size:,} bytes, {smaller:.1f} x smaller; loaded back, outputs equal"
)
assert smaller > 1
