"""What sparse linear layers gain on the CPU: microseconds beside torch, onnxruntime and OpenVINO, float32, one thread.

    python benchmarks/runtime_linear.py                            # about ten minutes; resumes where it stopped
    python benchmarks/runtime_linear.py --layers 768x768 --columns 64 --rounds 5 --output /tmp/quick.json

Dense (torch, torch again, onnxruntime, OpenVINO told to compute in float32) and every sparse candidate alternate in the
rounds of one process; figures are medians. Samples come and go row-major, so the conversions to panels are counted.
Random masks: synthetic, but the time of these kernels depends on the weights' places hardly at all.
Writes benchmarks/results/runtime_linear.json; what is done is kept beside it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import onnx
import onnxruntime
import openvino
import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.measure.environment import environment
from secateur.measure.latency import interleaved
from secateur.runtime import Packed, linear, pack

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "runtime_linear.json"
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
LAYERS = {"768x768": (1, 16, 64, 256), "3072x768": (1, 16, 64, 256), "4096x4096": (64,)}
HEIGHTS = {"blocks 4x1": 4, "blocks 8x1": 8, "blocks 16x1": 16}
GROUPS = {"1:4": (1, 4), "2:4": (2, 4), "4:8": (4, 8)}
UNITS: dict[str, tuple[float, ...]] = {
    "unstructured": SPARSITIES,
    **dict.fromkeys(HEIGHTS, SPARSITIES),
    **{name: (1 - n / m,) for name, (n, m) in GROUPS.items()},
}
"""Pattern of the mask -> sparsities."""
Goals = tuple[float | None, ...]
GOALS: dict[str, Goals] = {
    "unstructured 1": (1.2, 1.8, 2.6, 4.6, 7, 12),
    "unstructured 16": (1.2, 2.0, 2.9, 5.5, 9.5, 18),
    "unstructured 64": (1.5, 2.6, 3.6, 6.5, 11, 20),
    "unstructured 256": (1.5, 2.6, 3.6, 6.5, 11, 20),
    "4096x4096 unstructured 64": (1.3, 2.4, 3.4, 5.7, 9.5, None),
    "blocks 4x1 64": (1.9, 3.4, 4.9, 9.5, 17, 29),
}
DENSE = ("torch", "torch again", "onnxruntime", "openvino")
Call = Callable[..., Any]


def candidates(unit: str, columns: int) -> tuple[str, ...]:
    if unit in HEIGHTS:
        return (f"block{HEIGHTS[unit]}",)
    if columns == 1:
        return ("nm", "ell") if unit in GROUPS else ("ell", "ell-twin", "csr")
    return ("rows", "even", "even-wide", "csr")


def as_onnx(weight: Tensor, x: Tensor) -> bytes:
    helper, numpy_helper, real = onnx.helper, onnx.numpy_helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "layer",
        [helper.make_tensor_value_info("x", real, list(x.shape))],
        [helper.make_tensor_value_info("y", real, [len(x), len(weight)])],
        [numpy_helper.from_array(weight.t().contiguous().numpy(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString()


def in_onnxruntime(weight: Tensor, x: Tensor) -> Call:
    """The layer in onnxruntime, its input and output bound beforehand."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(as_onnx(weight, x), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x.numpy())
    binding.bind_output("y")
    return lambda _: session.run_with_iobinding(binding)


def in_openvino(weight: Tensor, x: Tensor) -> Call:
    """The layer in OpenVINO, its input bound beforehand."""
    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = core.compile_model(core.read_model(as_onnx(weight, x)), "CPU", hints).create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    return lambda _: request.infer(share_outputs=True)


def mask_of(unit: str, shape: tuple[int, int], sparsity: float) -> Tensor:
    """A random mask of this pattern, True is kept."""
    rows, cols = shape
    if unit in GROUPS:
        n, m = GROUPS[unit]
        return (torch.rand(rows, cols // m, m).argsort(2) < n).flatten(1)
    height = HEIGHTS.get(unit, 1)
    return (torch.rand(rows // height, cols) >= sparsity).repeat_interleave(height, 0)


def bare(packed: Packed, samples: int) -> Call:
    """The core without the checks of `linear`, into memory that is there already."""
    y = torch.empty(samples, packed.shape[0])
    return lambda x: packed.native.run(x.data_ptr(), len(x), y.data_ptr(), 0, 0)


def calls_of(shape: tuple[int, int], columns: int, unit: str, x: Tensor) -> tuple[dict[str, Call], dict[str, Packed]]:
    """Everything to compare on one layer: dense under the names of the runtimes, sparse under "sparsity layout"."""
    weight = torch.randn(shape) / shape[1] ** 0.5
    calls: dict[str, Call] = {"torch": lambda x: F.linear(x, weight), "torch again": lambda x: F.linear(x, weight)}
    calls |= {"onnxruntime": in_onnxruntime(weight, x), "openvino": in_openvino(weight, x)}
    packed: dict[str, Packed] = {}
    for sparsity in UNITS[unit]:
        mask = mask_of(unit, shape, sparsity)
        wanted = F.linear(x, weight * mask)
        for layout in candidates(unit, columns):
            name = f"{sparsity} {layout}"
            packed[name] = pack(weight, mask, layout)
            assert torch.allclose(linear(x, packed[name]), wanted, atol=1e-3)
            calls[name] = lambda x, found=packed[name]: linear(x, found)
            calls[f"{name} bare"] = bare(packed[name], columns)
    return calls, packed


def measure(layer: str, columns: int, unit: str, rounds: int) -> dict[str, Any]:
    """Microseconds of one layer at one number of samples: dense, and the best sparse candidate per sparsity."""
    torch.manual_seed(0)
    rows, cols = map(int, layer.split("x"))
    x = torch.randn(columns, cols)
    with torch.no_grad():
        calls, packed = calls_of((rows, cols), columns, unit, x)
        times = interleaved(calls, x, rounds=rounds, threads=1, budget_s=60.0)
    us = {name: 1e3 * median(found.ms) for name, found in times.items()}
    dense = {name: us[name] for name in DENSE}
    sparse: list[dict[str, Any]] = []
    for sparsity in UNITS[unit]:
        layouts = {name: us[f"{sparsity} {name}"] for name in candidates(unit, columns)}
        best = min(layouts, key=lambda name: layouts[name])
        bares = {name: us[f"{sparsity} {name} bare"] for name in layouts}
        sparse.append(
            {
                "sparsity": sparsity,
                "layout": best,
                "us": layouts[best],
                "bare_us": min(bares.values()),
                "overhead": packed[f"{sparsity} {best}"].overhead,
                "all_us": layouts,
            }
        )
    return {"layer": layer, "columns": columns, "unit": unit, "rounds": rounds, "dense": dense, "sparse": sparse}


def table_rows(run: dict[str, Any]) -> list[list[Any]]:
    dense = min(run["dense"], key=lambda name: run["dense"][name])
    key = f"{run['unit']} {run['columns']}"
    missing: Goals = (None,) * len(run["sparse"])
    goals = missing if run["unit"] in GROUPS else GOALS.get(f"{run['layer']} {key}", GOALS.get(key, missing))
    return [
        [
            run["layer"],
            run["columns"],
            run["unit"],
            f"{found['sparsity']:.0%}",
            f"{run['dense'][dense]:.1f} ({dense.removesuffix(' again')})",
            f"{found['us']:.1f} ({found['layout']})",
            run["dense"][dense] / found["us"],
            run["dense"][dense] / found["bare_us"],
            goal,
            found["overhead"],
        ]
        for found, goal in zip(run["sparse"], goals, strict=True)
    ]


def report(runs: list[dict[str, Any]]) -> dict[str, Any]:
    again = [run["dense"]["torch again"] / run["dense"]["torch"] for run in runs]
    return {
        "title": "Sparse linear layers against the best dense runtime, float32, one thread",
        "columns": [
            "layer",
            "samples",
            "unit",
            "sparsity",
            "best dense, us",
            "sparse, us",
            "gain",
            "gain of the core alone",
            "goal",
            "bytes / (5 per weight)",
        ],
        "rows": [row for run in runs for row in table_rows(run)],
        "runs": runs,
        "environment": asdict(environment()),
        "note": "Random masks (synthetic). Medians of interleaved rounds; row-major in and out. `gain` is of the "
        "checked Python function, `of the core alone` without its checks and allocation, as a program will call it. "
        f"torch against itself: {min(again):.3f} to {max(again):.3f}.",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--columns", nargs="+", type=int, default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=30, help="interleaved rounds (default 30)")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    log = options.output.with_suffix(".runs.jsonl")
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    done = [json.loads(line) for line in lines]
    ready = {(run["layer"], run["columns"], run["unit"], run["rounds"]): run for run in done}
    wanted = [
        (layer, columns, unit, options.rounds)
        for layer in options.layers
        for columns in LAYERS[layer]
        for unit in UNITS
        if columns in options.columns
    ]
    for case in wanted:
        if case not in ready:
            ready[case] = measure(*case)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(ready[case]) + "\n")
        for row in table_rows(ready[case]):
            print(*(f"{cell:.2f}" if isinstance(cell, float) else cell for cell in row), sep="  ", flush=True)
    result = report([ready[case] for case in wanted])
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
