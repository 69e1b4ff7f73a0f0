"""Dense linear layers in float32, bf16 and int8 in every runtime that is installed, for `runtime_lowbits.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["FORMATS", "Call", "dense_calls"]

Call = Callable[..., Any]
FORMATS = ("float32", "bf16", "int8")
_OPSET, _IR = 17, 9


def dense_calls(weight: Tensor, x: Tensor) -> dict[str, tuple[str, Call]]:
    """Name -> number format and a call, for one thread.

    Where a runtime quantises x beforehand, or takes it in bf16, that is left out of its time: it has the advantage.
    """
    half_weight, half = weight.bfloat16(), x.bfloat16()
    found: dict[str, tuple[str, Call]] = {
        "torch": ("float32", lambda _: F.linear(x, weight)),
        "torch bf16": ("bf16", lambda _: F.linear(half, half_weight)),
        "torch int8": ("int8", _torch_dynamic(weight)),
    }
    try:
        import onnx  # noqa: F401
    except ModuleNotFoundError:
        return found
    found["onnxruntime"] = ("float32", _onnxruntime(_plain(weight, x), x))
    found["onnxruntime int8"] = ("int8", _onnxruntime(_dynamic(weight, x), x))
    try:
        import openvino  # noqa: F401
    except ModuleNotFoundError:
        return found
    found["OpenVINO"] = ("float32", _openvino(_plain(weight, x), x, "f32"))
    found["OpenVINO bf16"] = ("bf16", _openvino(_plain(weight, x), x, "bf16"))
    found["OpenVINO int8"] = ("int8", _openvino(_static(weight, x), x, "f32"))
    return found


def _torch_dynamic(weight: Tensor) -> Call:
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is announced to move to another package
        return torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(layer), dtype=torch.qint8)


def _model(x: Tensor, rows: int, nodes: list[Any], constants: dict[str, Any]) -> bytes:
    import onnx
    from onnx import helper, numpy_helper

    real = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", real, list(x.shape))],
        [helper.make_tensor_value_info("y", real, [len(x), rows])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR).SerializeToString()


def _plain(weight: Tensor, x: Tensor) -> bytes:
    from onnx import helper

    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return _model(x, len(weight), [node], {"w": weight.t().contiguous().numpy()})


def _scaled(weight: Tensor) -> dict[str, Any]:
    """Transposed int8 weights and their scales per output."""
    scales = weight.abs().amax(1) / 127
    numbers = torch.round(weight / scales[:, None]).to(torch.int8)
    zeros = torch.zeros(len(weight), dtype=torch.int8)
    return {"w": numbers.t().contiguous().numpy(), "ws": scales.numpy(), "wz": zeros.numpy()}


def _dynamic(weight: Tensor, x: Tensor) -> bytes:
    """X is put on one grid in every call, as onnxruntime's own dynamic quantisation writes it."""
    from onnx import helper

    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "wz"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["real"], to=1),
        helper.make_node("Mul", ["s", "ws"], ["scales"]),
        helper.make_node("Mul", ["real", "scales"], ["y"]),
    ]
    return _model(x, len(weight), nodes, _scaled(weight))


def _static(weight: Tensor, x: Tensor) -> bytes:
    """X is put on a grid that is known beforehand."""
    import numpy as np
    from onnx import helper

    least, greatest = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    step = np.float32((greatest - least) / 255)
    grid = {"s": step, "z": np.uint8(round(-least / float(step)))}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    return _model(x, len(weight), nodes, _scaled(weight) | {name: np.array(value) for name, value in grid.items()})


def _onnxruntime(model: bytes, x: Tensor) -> Call:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    y = np.empty_like(session.run(None, {"x": x.numpy()})[0])
    binding = session.io_binding()
    binding.bind_cpu_input("x", x.numpy())
    binding.bind_output("y", "cpu", 0, y.dtype, y.shape, y.ctypes.data)

    def call(_: Any) -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(y)

    return call


def _openvino(model: bytes, x: Tensor, precision: str) -> Call:
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": 1,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    array = x.numpy()
    request.set_input_tensor(openvino.Tensor(array, shared_memory=True))
    request.infer()
    y = torch.from_numpy(request.get_output_tensor(0).data)

    def call(_: Any) -> Tensor:
        request.infer(share_outputs=True)
        return y

    call.held = array  # type: ignore[attr-defined]  # it is bound by its address
    return call
