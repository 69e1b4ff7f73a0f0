"""What a packed model costs beside its kernels: calls, small chains, threads, and models that gain nothing.

    python -m benchmarks.runtime_overhead                           # about four minutes; wants two cores and quiet
    python -m benchmarks.runtime_overhead --parts calls threads --output /tmp/quick.json

Each part runs in a process of its own. Figures are medians of interleaved rounds; `itself` is the same call measured a
second time in the same rounds. Random masks: synthetic. Writes benchmarks/results/runtime_overhead.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import secateur as sc
from benchmarks.runtime_linear import in_onnxruntime, in_openvino
from secateur.measure.environment import environment
from secateur.measure.latency import interleaved
from secateur.native.loading import core

__all__ = ["main"]

RESULT = Path(__file__).parent / "results" / "runtime_overhead.json"
Row = list[Any]
COLUMNS = ["what", "measured", "beside", "ratio", "wanted"]


def chain(layers: int, width: int, sparsity: float) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    torch.manual_seed(0)
    net = nn.Sequential(*[part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < sparsity] = 0.0
    return net


def microseconds(calls: dict[str, Callable[..., Any]], x: Tensor, threads: int = 1) -> dict[str, float]:
    with torch.no_grad():
        found = interleaved(calls, x, rounds=40, threads=threads, budget_s=30.0)
    return {name: 1e3 * median(times.ms) for name, times in found.items()}


def calls() -> list[Row]:
    """The core alone, the module around it, and other runtimes, on ten layers of 64 x 64."""
    empty = core.Program(1, 0, [1], [1])
    net, x, y = chain(10, 64, 0.9), torch.randn(1, 64), torch.empty(1, 64)
    fast = sc.pack(net, x, threads=1, cache=False)
    native = fast.regions[0].chosen[1].program.native
    us = microseconds(
        {
            "empty": lambda x: empty.run_one(x.data_ptr(), x.data_ptr(), 1),
            "core": lambda x: native.run_one(x.data_ptr(), y.data_ptr(), 1),
            "module": fast,
            "again": fast,
            "onnxruntime": whole_in_onnxruntime(net, x),
            "torch": net,
        },
        x,
    )
    return [
        ["run of an empty program, us", us["empty"], None, None, "at most 1"],
        [
            "ten layers of 64 x 64, batch 1: module above the core, us",
            us["module"] - us["core"],
            f"core {us['core']:.2f}, module {us['module']:.2f}, again {us['again']:.2f}",
            None,
            "at most 5",
        ],
        versus("the same, module beside onnxruntime with io-binding, us", us["module"], us["onnxruntime"], "at most 1"),
        versus("the same, module beside eager torch, us", us["module"], us["torch"], None),
    ]


def versus(what: str, measured: float, beside: float, wanted: str | None) -> Row:
    return [what, measured, beside, measured / beside, wanted]


def whole_in_onnxruntime(net: nn.Module, x: Tensor) -> Callable[..., Any]:
    """A chain as one ONNX graph, its input and output bound beforehand."""
    import onnx
    import onnxruntime

    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    nodes, weights, value = [], [], "x"
    for i, layer in enumerate(net):  # type: ignore[arg-type]
        if isinstance(layer, nn.Linear):
            for name, tensor in (("w", layer.weight), ("b", layer.bias)):
                weights.append(onnx.numpy_helper.from_array(tensor.detach().numpy(), f"{name}{i}"))
            nodes.append(helper.make_node("Gemm", [value, f"w{i}", f"b{i}"], [f"v{i}"], transB=1))
        else:
            nodes.append(helper.make_node("Relu", [value], [f"v{i}"]))
        value = f"v{i}"
    shapes = [helper.make_tensor_value_info(name, real, list(x.shape)) for name in ("x", value)]
    graph = helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x.numpy())
    binding.bind_output(value)
    return lambda _: session.run_with_iobinding(binding)


def threads() -> list[Row]:
    """Two threads over one: alone, directly after a parallel operator of torch, and beside a busy stranger."""
    rows: list[Row] = []
    for layers, width in ((4, 512), (4, 1024), (6, 2048)):
        net, x = chain(layers, width, 0.9), torch.randn(64, width)
        one, two = (sc.pack(net, x, threads=n, cache=False) for n in (1, 2))
        backend = two.regions[0].chosen[64].backend
        found = both(one, two, x, lambda: None)
        what = f"program of {found[0]:.0f} us ({backend}): two threads over one"
        rows.append([what, found[1], found[0], found[0] / found[1], "at least 1.7 from 300 us on"])
        a = torch.randn(1024, 1024)
        found = both(one, two, x, lambda a=a: a @ a)
        rows.append([f"{what}, after a torch operator", found[1], found[0], found[0] / found[1], "at least 1.5"])
        with stranger():
            found = both(one, two, x, lambda: None)
        rows.append([f"{what}, beside a busy process", found[1], found[0], found[1] / found[0], "at most 1.15"])
    return rows


def both(one: nn.Module, two: nn.Module, x: Tensor, before: Callable[[], Any]) -> tuple[float, float]:
    """Microseconds of each, in turns, with something else just before."""
    torch.set_num_threads(2)
    times: dict[nn.Module, list[float]] = {one: [], two: []}
    until = time.perf_counter() + 4.0
    while time.perf_counter() < until:
        for model, found in times.items():
            for _ in range(5):
                before()
                begin = time.perf_counter()
                model(x)
                found.append(1e6 * (time.perf_counter() - begin))
    return median(times[one]), median(times[two])


@contextmanager
def stranger() -> Iterator[None]:
    """A process that never sleeps, on one of the processors."""
    place = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{place}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        time.sleep(0.5)
        try:
            yield
        finally:
            process.kill()


def convolutions(sparsity: float) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [nn.Sequential(nn.Conv2d(i, 32, 3, padding=1), nn.ReLU()) for i in (3, 32, 32)]
    net = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()
    for parameter in net.parameters():
        if parameter.ndim > 1:
            parameter.data[torch.rand_like(parameter) < sparsity] = 0.0
    return net


def never_slower() -> list[Row]:
    """Models with few zeros, small and large: packing must not cost anything."""
    rows: list[Row] = []
    cases: list[tuple[str, nn.Module, Tensor]] = []
    for sparsity in (0.0, 0.2, 0.4, 0.6):
        for width, samples in ((64, 1), (512, 1), (512, 64), (1024, 256)):
            name = f"4 linear layers of {width}, {samples} samples"
            cases.append((f"{name}, {sparsity:.0%} zeros", chain(4, width, sparsity), torch.randn(samples, width)))
        cases.append((f"3 convolutions, {sparsity:.0%} zeros", convolutions(sparsity), torch.randn(1, 3, 32, 32)))
    for name, net, x in cases:
        fast = sc.pack(net, x, threads=1, cache=False)
        us = microseconds({"torch": net, "packed": fast, "again": net}, x)
        rows.append(versus(f"{name}, beside torch", us["packed"], us["torch"], "at most 1.03"))
    for sparsity in (0.0, 0.3, 0.5):
        for samples in (1, 64):
            net, x = nn.Sequential(*list(chain(1, 768, sparsity))[:1]), torch.randn(samples, 768)
            fast = sc.pack(net, x, threads=1, cache=False)
            weight = next(net.parameters()).detach()
            rivals = {"onnxruntime": in_onnxruntime(weight, x), "openvino": in_openvino(weight, x), "torch": net}
            us = microseconds({**rivals, "packed": fast}, x)
            best = min(rivals, key=lambda name: us[name])
            what = f"one linear layer of 768, {samples} samples, {sparsity:.0%} zeros, beside {best}"
            rows.append(versus(what, us["packed"], us[best], "at most 1.10"))
    return rows


PARTS: dict[str, Callable[[], list[Row]]] = {"calls": calls, "threads": threads, "never slower": never_slower}


def alone(part: str) -> list[Row]:
    """A part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.runtime_overhead", "--inside", part]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--inside", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        torch.set_num_threads(1)
        print(json.dumps(PARTS[options.inside]()))
        return
    rows: list[Row] = []
    for part in options.parts:
        for row in alone(part):
            rows.append(row)
            print(*(f"{cell:.3f}" if isinstance(cell, float) else cell for cell in row), sep="  ", flush=True)
    result = {
        "title": "What packed models cost beside their kernels, microseconds",
        "columns": COLUMNS,
        "rows": rows,
        "environment": asdict(environment()),
        "note": "Medians of interleaved rounds; random masks at 90 % unless said otherwise (synthetic). Ratio: "
        "measured by what stands beside it; of threads, one thread's time by that of two.",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
