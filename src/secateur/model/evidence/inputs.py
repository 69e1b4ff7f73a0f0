"""What goes into layers: norms of input columns and grams, over all tokens, samples and windows, in float64.

Layers that read the same input share one sum (q, k, v). Padding is left out where a batch's ``attention_mask`` says so
and the input has the shape of its tokens; a convolution over tokens counts all of its windows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor

from secateur.model.evidence.input_sums import InputSums, refuse_unread, warn_of_idle
from secateur.model.evidence.passes import Found, Pass, Streamable
from secateur.model.evidence.products import ProductWatch, multiplied
from secateur.model.evidence.source import Request
from secateur.model.evidence.watching import token_mask
from secateur.model.evidence.weight_sums import SUM_KINDS
from secateur.model.graph.trace import slow_paths
from secateur.model.ranks import Ranks
from secateur.model.targets import known_weights

__all__ = ["INPUT_KINDS", "Inputs"]

INPUT_KINDS: Mapping[str, str] = {
    "input_norm": "per weight: root of the sum of squares of the inputs that it multiplies",
    "gram": "per layer: sum of x x^T over its inputs, [groups, columns, columns]",
    **SUM_KINDS,
}


@final
class Inputs(Streamable):
    """Sums up the inputs of the targets over the passes.

    Experts that no token reached count as if all their inputs were equally large, with one warning that names them.

    Raises:
        ValueError: for embeddings, sharded weights, and weights that go into the network by another way than products
            of whole rows with inputs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.evidence import Source, collect
        >>> from secateur.model.targets import find_targets
        >>> net = nn.Linear(2, 1)
        >>> source = Source(torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
        >>> collect(net, ["input_norm"], find_targets(net), parse_unit("weight")[0], source)["input_norm"]["weight"]
        tensor([[5., 1.]], dtype=torch.float64)
    """

    def __init__(self, request: Request) -> None:
        self._root, self._kinds, known = request.root, request.kinds, known_weights(request.root)
        # Members of coupled groups are known by their shapes alone, which do not tell how a weight is read.
        self._layout = {name: known.get(name, key) for name, key in request.weights.items()}
        self._tensors = multiplied(request.root, self._layout, "inputs of layers are read")
        self._sums = InputSums(self._layout, "gram" in self._kinds)
        self._unread: dict[str, str] = {}
        self._misread: dict[str, str] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Fused operators hide what is inside them."""
        with slow_paths():
            yield

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Read what the pass multiplies."""
        self._sums.begin()
        with ProductWatch(self._root, frozenset(self._layout), token_mask(one.batch), self._sums.add) as watch:
            yield
        self._sums.commit()
        self._unread = {**watch.unread, **self._unread}
        self._misread = {**watch.misread, **self._misread}

    def combine(self, ranks: Ranks) -> None:
        """Sums, and what could not be read on any rank."""
        self._sums.combine(ranks)
        for unread, misread in ranks.gathered((self._unread, self._misread)):
            self._unread, self._misread = {**unread, **self._unread}, {**misread, **self._misread}

    def result(self) -> Found:
        """Per weight."""
        refuse_unread(self._sums, self._layout, self._unread, self._misread)
        warn_of_idle(self._sums, self._layout)
        return {kind: {name: self._found(kind, name) for name in self._layout} for kind in self._kinds}

    def _found(self, kind: str, name: str) -> Tensor:
        tensor = self._tensors[name]
        if kind in SUM_KINDS:
            return self._sums.weight_sum(kind, name, tensor)
        return self._sums.evidence(kind, name, tensor.device)

    def state_dict(self) -> dict[str, Any]:
        """The sums, and what could not be read."""
        return {"sums": self._sums.state_dict(), "unread": dict(self._unread), "misread": dict(self._misread)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of ``state_dict``."""
        self._sums.load_state_dict(state["sums"])
        self._unread, self._misread = dict(state["unread"]), dict(state["misread"])
