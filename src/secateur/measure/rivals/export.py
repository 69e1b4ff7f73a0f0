"""The network as an ONNX file, made once, in a process of its own whose noise nobody hears."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from secateur.measure.rivals.builders import Call
from secateur.measure.rivals.case import Case, leaves

__all__ = ["export"]


class _Flat(nn.Module):
    """The network with tensors in and tensors out, whatever its own arguments and outputs look like."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.model = case.model
        self.args, self.kwargs = case.inputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Put the tensors where the arguments were."""
        given = iter(tensors)
        args = [next(given) if isinstance(value, Tensor) else value for value in self.args]
        kwargs: dict[str, Any] = {
            name: next(given) if isinstance(value, Tensor) else value for name, value in self.kwargs.items()
        }
        return tuple(leaves(self.model(*args, **kwargs)))


def export(case: Case) -> Call:
    """Write ``case.onnx``. A builder like the others, so that it runs and fails like them; there is nothing to call."""
    names = list(case.tensors)
    with torch.no_grad():
        torch.onnx.export(
            _Flat(case),
            tuple(case.tensors.values()),
            str(case.onnx),
            input_names=names,
            dynamo=True,
            verbose=False,
        )
    return tuple
