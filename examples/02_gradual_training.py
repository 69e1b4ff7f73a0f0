"""Gradual: let the sparsity grow while the network trains, and compare with cutting once at the end.

Both networks start from the same weights, see the same batches, and end at 90 %. The pruner needs one
line in the training loop's set-up and none inside the loop.

Run it:  python examples/02_gradual_training.py   (some seconds; needs scikit-learn, brings its own data)
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
EPOCHS, BATCH, SPARSITY = 20, 64, 0.9

# --- Data: 1,797 images of 8x8 pixels; every fifth is kept for testing -----------------------------
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
y = torch.tensor(digits.target)
for_test = torch.arange(len(y)) % 5 == 0
x_train, y_train, test = x[~for_test], y[~for_test], (x[for_test], y[for_test])
STEPS = EPOCHS * -(-len(y_train) // BATCH)


# --- A small convolutional network -------------------------------------------------------------------
def make() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)),
    )


def train(model: nn.Module, plan: sc.Plan | None = None) -> sc.Pruner | None:
    """An ordinary loop; with a plan, a pruner is attached to the optimizer."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    pruner = None
    if plan is not None:
        pruner = sc.Pruner(model, plan)
        pruner.attach(optimizer)  # that is all: masks change at the plan's steps and hold in between
    order = torch.Generator().manual_seed(1)
    model.train()
    for _ in range(EPOCHS):
        for index in torch.randperm(len(y_train), generator=order).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x_train[index]), y_train[index]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    return pruner


# --- Dense, and the same network cut once after training -----------------------------------------------
start = make()
dense = copy.deepcopy(start)
train(dense)
cut, _ = sc.prune(dense, sparsity=SPARSITY, inplace=False)

# --- Gradual: s(t) = s_f (1 - (1 - t)^3), fast while weights are plenty and slow at the end ---------------
plan = sc.Plan(
    sparsity=SPARSITY,
    allocation="erk",  # small layers stay denser
    schedule="cubic",
    begin=STEPS // 5,
    end=STEPS * 3 // 4,  # the last quarter of training is left to recover
    every=10,
)
gradual = copy.deepcopy(start)
pruner = train(gradual, plan)
assert pruner is not None

print(f"plan {plan.digest}: {len(plan.updates)} updates in {STEPS} steps")
for point in pruner.history[:: len(pruner.history) // 8]:
    print(f"  step {point.step:4d}  {'#' * round(40 * (1 - point.sparsity)):40}  {100 * point.sparsity:4.1f} % removed")
print(pruner.masks)


# --- What came of it -----------------------------------------------------------------------------------
print("\n                      accuracy on the test images")
for name, model in (("dense", dense), ("cut once, untrained", cut), ("gradual", gradual)):
    fit = sc.evaluate(model, test)
    print(f"  {name:20}  {100 * fit.top1:5.1f} +- {100 * fit.standard_error:.1f} %")

record = sc.measure(dense, gradual, test, batches=(1, 256), plan=plan, schedule=pruner.history)
print()
for note in record.notes:
    print(f"- {note}")

with TemporaryDirectory() as folder:
    path = Path(folder) / "gradual.safetensors"
    sc.save(gradual, path, plan=plan)
    again = sc.load(path, into=make()).eval()
    size = path.stat().st_size
with torch.no_grad():
    assert torch.equal(again(test[0]), gradual(test[0]))
smaller = record.dense.sizes.plain_bytes / size
print(
    f"\nfile: {record.dense.sizes.plain_bytes:,} -> {size:,} bytes, {smaller:.1f} x smaller; loaded back, outputs equal"
)
assert smaller > 1
