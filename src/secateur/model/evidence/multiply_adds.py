"""Multiply-adds that weights take part in, counted while the passes run: what a cost-aware criterion reads.

As in every record, bias, norms and activations are left out, and a transposed convolution counts every input element
times its kernel. Padding tokens count: they are computed. ``measure.macs`` counts whole models from shapes; here the
weights are followed from below, however they are called, at the size of the user's own data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import final

import torch
from torch import Tensor

from secateur.core.canonical import grouped_shape, to_parameter
from secateur.model.evidence.example_axis import count_examples
from secateur.model.evidence.gate_places import gate_layout
from secateur.model.evidence.passes import Found, Observer, Pass
from secateur.model.evidence.products import Product, ProductWatch, multiplied
from secateur.model.evidence.source import Request
from secateur.model.graph.trace import slow_paths
from secateur.model.ranks import Ranks
from secateur.model.targets import known_weights
from secateur.types import KeyLayout

__all__ = ["MAC_KINDS", "MultiplyAdds"]

_WEIGHT, _UNIT = "macs", "unit_macs"

MAC_KINDS: Mapping[str, str] = {
    _WEIGHT: "per weight: multiply-adds of one example that it takes part in",
    _UNIT: "per unit: multiply-adds of one example that its layer spends on it",
}


@final
class MultiplyAdds(Observer):
    """How often one example uses each row of a weight, a mean over all examples of the passes.

    Raises:
        ValueError: for embeddings, sharded weights, and weights that go into the network by another way than products
            of whole rows with inputs.

    Example:
        >>> from torch import nn
        >>> from secateur.core.units import parse_unit
        >>> from secateur.model.evidence import Source, collect
        >>> from secateur.model.targets import find_targets
        >>> net, unit = nn.Conv2d(1, 2, 3), parse_unit("filter")[0]
        >>> collect(net, ["unit_macs"], find_targets(net), unit, Source(torch.zeros(4, 1, 5, 5)))["unit_macs"]["weight"]
        tensor([81., 81.], dtype=torch.float64)
    """

    def __init__(self, request: Request) -> None:
        self._root, self._kinds, self._known = request.root, request.kinds, known_weights(request.root)
        self._layout = {name: self._known.get(name, key) for name, key in request.weights.items()}
        self._units = gate_layout(request.root, request.layout) if _UNIT in request.kinds else {}
        watched = (dict(self._layout) if _WEIGHT in request.kinds else {}) | self._units
        self._tensors = multiplied(request.root, watched, "multiply-adds are counted")
        self._uses = {name: torch.zeros(_rows(key), dtype=torch.float64) for name, key in watched.items()}
        self._examples = 0
        self._missed: dict[str, str] = {}

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Fused operators hide what is inside them."""
        with slow_paths():
            yield

    @contextmanager
    def around(self, one: Pass) -> Iterator[None]:
        """Count what the pass multiplies."""
        self._examples += count_examples(one.batch)
        with ProductWatch(self._root, frozenset(self._uses), None, self._add) as watch:
            yield
        # What is no weight of a layer, as a parameter added to a stream, takes part in no product, and costs nothing.
        unread = {name: how for name, how in watch.unread.items() if name in self._known}
        idle = {name: how for name, how in unread.items() if not float(self._uses[name].sum())}
        self._missed = {**idle, **watch.misread, **self._missed}

    def combine(self, ranks: Ranks) -> None:
        """Uses and examples add up; what one rank could not see is refused on all."""
        self._uses, self._examples = ranks.sums(self._uses), ranks.total(self._examples)
        self._missed = {name: how for missed in ranks.gathered(self._missed) for name, how in missed.items()}

    def result(self) -> Found:
        """Per weight, per output, or both."""
        for name, how in self._missed.items():
            raise ValueError(
                f"the multiply-adds of {name!r} were not seen: it goes into {how}, not whole rows of it into a product "
                f"with inputs. exclude=[{name!r}], or take a criterion that does not weigh costs"
            )
        each = {name: (uses / self._examples).to(self._tensors[name].device) for name, uses in self._uses.items()}
        found: Found = {}
        if _WEIGHT in self._kinds:
            found[_WEIGHT] = {name: _like_weight(each[name], key) for name, key in self._layout.items()}
        if _UNIT in self._kinds:
            found[_UNIT] = {name: each[name] * (math.prod(k.shape) // _rows(k)) for name, k in self._units.items()}
        return found

    def _add(self, product: Product) -> None:
        self._uses[product.name][product.start : product.stop] += _times(product)


def _times(product: Product) -> int:
    """How often each weight of the product's rows is multiplied."""
    shape, windows = product.values.shape, product.windows
    if windows is None:
        return shape[0]
    if windows.transposed:
        return shape[0] * math.prod(shape[2:])
    return shape[0] * math.prod(windows.outputs(shape[2:]))


def _rows(key: KeyLayout) -> int:
    if len(key.shape) < 2:
        return math.prod(key.shape)
    return math.prod(key.shape[:-1]) if key.kind == "linear" else math.prod(grouped_shape(key)[:2])


def _like_weight(uses: Tensor, key: KeyLayout) -> Tensor:
    if key.kind == "conv_transpose":
        groups, outputs, *rest = grouped_shape(key)
        return to_parameter(uses.view(groups, outputs, *[1] * len(rest)).expand(groups, outputs, *rest), key)
    return uses[:, None].expand(-1, math.prod(key.shape) // len(uses)).reshape(key.shape)
