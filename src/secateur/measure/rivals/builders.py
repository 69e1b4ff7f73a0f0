"""How each runtime is made ready: from a case to a call without arguments that runs one inference.

A builder runs in a process of its own. Inputs and, where the runtime allows it, outputs are bound beforehand, so that
nobody pays for copies that a careful user would not make. The call returns the outputs, so that they can be checked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from secateur.measure.rivals.case import Case

__all__ = [
    "Call",
    "compiled",
    "compiled_frozen",
    "eager",
    "eager_bfloat16",
    "eager_bfloat16_weights",
    "onnxruntime",
    "openvino",
    "openvino_bfloat16",
    "packed",
]

Call: TypeAlias = Callable[[], Any]


def eager(case: Case) -> Call:
    """The module as it is."""
    model, (args, kwargs) = case.model, case.inputs
    return lambda: model(*args, **kwargs)


def eager_bfloat16(case: Case) -> Call:
    """The module under autocast, which casts the weights again in every call, as it does for its users."""
    model, (args, kwargs) = case.model, case.inputs

    def call() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(*args, **kwargs)

    return call


def eager_bfloat16_weights(case: Case) -> Call:
    """The module with weights and inputs turned into bfloat16 beforehand: less exact than autocast, no casts left."""
    model, (args, kwargs) = case.model.bfloat16(), case.inputs
    given = [_bfloat16(value) for value in args]
    named = {name: _bfloat16(value) for name, value in kwargs.items()}
    return lambda: model(*given, **named)


def compiled(case: Case) -> Call:
    """``torch.compile`` as it comes."""
    model, (args, kwargs) = torch.compile(case.model), case.inputs
    return lambda: model(*args, **kwargs)


def compiled_frozen(case: Case) -> Call:
    """``torch.compile`` with weights taken as constants and laid out for the processor beforehand."""
    import torch._inductor.config as inductor  # pyright: ignore[reportMissingImports]

    inductor.freezing = True
    return compiled(case)


def onnxruntime(case: Case) -> Call:
    """The ONNX file in onnxruntime, inputs and outputs bound."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = case.threads, 1
    session = ort.InferenceSession(str(case.onnx), options, providers=["CPUExecutionProvider"])
    feed = {port.name: case.tensors[port.name].numpy() for port in session.get_inputs()}
    outputs = [np.empty_like(output) for output in session.run(None, feed)]
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for port, array in zip(session.get_outputs(), outputs, strict=True):
        binding.bind_output(port.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    return _holding(feed, lambda: session.run_with_iobinding(binding), outputs)


def openvino(case: Case) -> Call:
    """The ONNX file in OpenVINO, told to compute in float32: left alone it takes bfloat16 where it can."""
    return _openvino(case, "f32")


def openvino_bfloat16(case: Case) -> Call:
    """The ONNX file in OpenVINO, told to compute in bfloat16."""
    return _openvino(case, "bf16")


def packed(case: Case) -> Call:
    """`secateur.pack`: the zeros of the module turned into time where that was measured."""
    from secateur.deploy.pack import pack

    args, kwargs = case.inputs
    model = pack(case.model, kwargs or args, threads=case.threads, cache=False)
    return lambda: model(*args, **kwargs)


def _bfloat16(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _openvino(case: Case, precision: str) -> Call:
    import openvino as ov

    core = ov.Core()
    hints = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    network = core.compile_model(core.read_model(str(case.onnx)), "CPU", hints)
    taken = network.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if taken != precision:
        raise RuntimeError(f"OpenVINO was asked for {precision} and takes {taken} on this processor")
    request = network.create_infer_request()
    feed = {_name(port): case.tensors[_name(port)].numpy() for port in network.inputs}
    for port in network.inputs:
        request.set_tensor(port, ov.Tensor(feed[_name(port)], shared_memory=True))
    request.infer()
    outputs = [request.get_output_tensor(place).data for place in range(len(network.outputs))]

    return _holding(feed, lambda: request.infer(share_outputs=True), outputs)


def _holding(feed: dict[str, Any], run: Call, outputs: Any) -> Call:
    """A call that keeps the memory of its inputs: a runtime does not keep what is bound to it by address."""
    held = feed, outputs

    def call() -> Any:
        run()
        return held[1]

    return call


def _name(port: Any) -> str:
    """The name from the file; OpenVINO may add others of its own."""
    return next(name for name in port.get_names() if name.startswith("input_"))
