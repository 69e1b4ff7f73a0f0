"""One shot: train a network on real digits, remove 70 % of its weights, save, load, and measure what that was worth.

Run it:  python examples/01_one_shot.py   (a few seconds; needs scikit-learn, brings its own data)
"""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import secateur as sc

torch.manual_seed(0)
torch.set_num_threads(1)  # one thread, so that the times below mean the same everywhere

# --- Data: 1,797 images of 8x8 pixels; every fifth is kept for testing -----------------------------
digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32) / 16
y = torch.tensor(digits.target)
for_test = torch.arange(len(y)) % 5 == 0
train, test = (x[~for_test], y[~for_test]), (x[for_test], y[for_test])


# --- A network, and a plain training loop ----------------------------------------------------------
def make() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


model = make()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(30):
    for index in torch.randperm(len(train[1])).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(train[0][index]), train[1][index]).backward()
        optimizer.step()
model.eval()
dense = copy.deepcopy(model)  # pruning changes the model itself, so keep one to compare with

# --- Look before you cut: scores are tensors, and low scores go first --------------------------------
scores = sc.score(model, criterion="magnitude")
print("weights scored:", {name: tuple(score.shape) for name, score in scores.items()})

# --- Cut: of N weights at sparsity S exactly floor(S N + 0.5) go, the smallest of the whole network ----
masks = sc.prune(model, sparsity=0.7)
print(masks)

# --- Save, and load into a fresh network: the file is really smaller, the outputs are equal ------------
with TemporaryDirectory() as folder:
    plain, sparse = Path(folder) / "dense.safetensors", Path(folder) / "sparse.safetensors"
    safetensors.torch.save_file(dense.state_dict(), plain)
    sc.save(model, sparse)
    before, after = plain.stat().st_size, sparse.stat().st_size
    again = sc.load(sparse, into=make())
with torch.no_grad():
    assert torch.equal(again(test[0]), model(test[0]))
print(f"\nfile: {before:,} -> {after:,} bytes, {before / after:.1f} x smaller; loaded back, outputs equal bit for bit")
assert after < before

# --- Measure: everything in one table, and why there is no gain where there is none ---------------------
record = sc.measure(dense, model, test, train=train, batches=(1, 256))
sc.print_table(record)

# --- How far can one go without training on? Each row starts from the same dense network -----------------
print("removed   accuracy on the test images")
for sparsity in (0.0, 0.5, 0.7, 0.8, 0.9, 0.95):
    pruned, _ = sc.prune(dense, sparsity=sparsity, inplace=False)
    fit = sc.evaluate(pruned, test)
    print(f"  {100 * sparsity:3.0f} %    {100 * fit.top1:5.1f} +- {100 * fit.standard_error:.1f} %")

# --- Not convinced? The removed values are still there ----------------------------------------------------
masks.undo()
assert all(torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))
print("\nundone: the model is the dense one again")
