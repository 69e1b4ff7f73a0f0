"""One library on one architecture, judged: the process that the table starts.

python -m benchmarks.removal.judged torch-pruning unet
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.removal.kept import removed_slices
from benchmarks.removal.libraries import LIBRARIES, PACKAGES
from benchmarks.removal.limited import say
from tests.oracles.removal import clean, flops, run, zeroed
from tests.removal.zoo.architecture import Architecture
from tests.removal.zoo.table import ARCHITECTURES

__all__ = ["judge", "main"]

SPARSITY = 0.5
BATCHES = (1, 3)


def judge(library: str, architecture: Architecture) -> dict[str, Any]:
    """Remove half the channels, and say what came of it: ``category``, ``detail``, shares kept."""
    original, model = architecture.make(), architecture.make()
    before = _state(model)
    start = time.perf_counter()
    try:
        small = LIBRARIES[library](model, architecture.inputs(1), SPARSITY).model
    except Exception as error:  # noqa: BLE001 - whatever a library raises is what the table reports
        untouched = _same(before, _state(model))
        when = "before" if untouched else "after"
        return {"category": f"error {when} change", "detail": _said(error)}
    took = {"removal_s": round(time.perf_counter() - start, 3)}
    kept = _count(small) / _count(original)
    if kept == 1.0:
        return {"category": "no-op", "kept": kept, **took}
    try:
        found = [run(small.eval(), architecture.inputs(batch)) for batch in BATCHES]
        macs = flops(small, architecture.inputs(1)) / flops(original, architecture.inputs(1))
    except Exception as error:  # noqa: BLE001 - the smaller model may fail in any way
        return {"category": "error after change", "detail": f"does not run: {_said(error)}", "kept": kept, **took}
    took |= {"kept": kept, "macs_kept": macs}
    wanted = [run(original, architecture.inputs(batch)) for batch in BATCHES]
    shapes = [[[tuple(t.shape) for t in outputs] for outputs in side] for side in (found, wanted)]
    if shapes[0] != shapes[1]:
        return {"category": "wrong shape", "detail": f"{shapes[0][0]} for {shapes[1][0]}", **took}
    return {**_values(original, small, found, architecture), **took}


def _values(
    original: nn.Module, small: nn.Module, found: list[list[Tensor]], architecture: Architecture
) -> dict[str, Any]:
    """Compare with the original with zeros in place of what was removed."""
    gone, changed = removed_slices(_parameters(original), _parameters(small))
    masked = zeroed(original, gone)
    apart = 0.0
    for batch, outputs in zip(BATCHES, found, strict=True):
        for a, b in zip(outputs, run(masked, architecture.inputs(batch)), strict=True):
            scale = float(b.double().abs().max().clamp(min=1.0)) if b.numel() else 1.0
            apart = max(apart, float((a.double() - b.double()).abs().max()) / scale if b.numel() else 0.0)
    if apart <= architecture.tolerance:
        return {"category": "pass", "apart": apart}
    norms = _narrowed_norms(original, small)
    detail = f"{apart:.2g} apart" + (f"; narrowed {norms[0]}" if norms else "")
    detail += f"; other values in {', '.join(changed[:3])}" if changed else ""
    return {"category": "norm" if norms else "wrong values", "detail": detail, "apart": apart}


def _narrowed_norms(original: nn.Module, small: nn.Module) -> list[str]:
    """Norms over channels (not batch or instance norms) whose parameters have other shapes now."""
    after = {clean(name): module for name, module in small.named_modules()}
    found: list[str] = []
    for name, module in original.named_modules():
        kind = type(module).__name__
        other = after.get(clean(name))
        if list(module.children()) or "Norm" not in kind or "Batch" in kind or "Instance" in kind or other is None:
            continue
        if [p.shape for p in module.parameters()] != [p.shape for p in other.parameters()]:
            found.append(clean(name))
    return found


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {clean(name): p.detach() for name, p in model.named_parameters()}


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _state(model: nn.Module) -> dict[str, Any]:
    """Values of all tensors, and plain attributes of all modules."""
    tensors: dict[str, Any] = {f"tensor {name}": t.detach().clone() for name, t in model.named_parameters()}
    tensors |= {f"tensor {name}": t.detach().clone() for name, t in model.named_buffers()}
    for name, module in model.named_modules():
        numbers = {key: v for key, v in vars(module).items() if isinstance(v, (int, float, str, tuple))}
        tensors[f"module {name}"] = numbers
    return tensors


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    if before.keys() != after.keys():
        return False
    pairs = [(value, after[key]) for key, value in before.items()]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:240]}"


def main() -> None:
    library, name = sys.argv[1:]
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    importlib.import_module(PACKAGES[library])
    architecture = next(a for a in ARCHITECTURES if a.name == name)
    with tempfile.TemporaryDirectory() as folder:
        if name == "distributed":
            os.environ["GLOO_SOCKET_IFNAME"] = "lo"
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        say(judge(library, architecture))
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
