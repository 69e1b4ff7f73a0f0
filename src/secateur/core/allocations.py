"""How many units each key keeps: one function per rule.

Inputs are asked for by parameter name: ``scores`` (pooled; where units are gone already, those of the
others, flat), ``keep`` (units to keep in all), ``sizes`` (units per key), ``sparsity``, ``layout``,
``floors`` (units per key that layer-collapse protection keeps in any case), and any evidence.
A rule that does not read ``floors`` is corrected afterwards, its total preserved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.core import outliers
from secateur.core.apportion import apportion, water_fill
from secateur.core.names import resolve
from secateur.core.pooled import global_
from secateur.core.select import removed_count
from secateur.core.unit_channel import producer_shape
from secateur.types import AllocationEntry, KeyLayout, Layout, Tensors

__all__ = [
    "ALLOCATIONS",
    "er",
    "erk",
    "global_",
    "lamp",
    "lamp_scores",
    "resolve_allocation",
    "uniform",
    "uniform_plus",
]


def uniform(sizes: Mapping[str, int], sparsity: float) -> dict[str, int]:
    """The same sparsity everywhere: of N_l units of a key exactly ``floor(S N_l + 0.5)`` go.

    Rounding is per key, so the total may differ from the network's count by at most half a unit per key.

    Args:
        sizes: units per key.
        sparsity: share to remove.

    Returns:
        Units kept per key.

    Example:
        >>> uniform({"a": 10, "b": 3}, 0.5)
        {'a': 5, 'b': 1}

    Reference:
        Follows from the definition.
    """
    return {key: n - removed_count(n, sparsity) for key, n in sizes.items()}


def lamp(scores: Tensors, keep: int, floors: Mapping[str, int]) -> dict[str, int]:
    """Layer-adaptive magnitude: global top-k of ``s_u^2 / sum_{v: rank v >= rank u} s_v^2``, ranks within the key.

    The highest score of each key becomes 1, so no key empties before all are down to one unit.

    Args:
        scores: unit scores, not negative; their square takes the place of w^2.
        keep: units to keep in all.
        floors: units each key keeps in any case.

    Returns:
        Units kept per key, ``keep`` in all.

    Raises:
        ValueError: for negative scores.

    Example:
        >>> scores = {"a": torch.tensor([0.1, 0.2, 0.3, 0.4]), "b": torch.tensor([1.0, 3.0, 2.0])}
        >>> lamp(scores, 3, {"a": 0, "b": 0})
        {'a': 2, 'b': 1}

    Reference:
        Lee, Park, Mo, Ahn, Shin 2021, arXiv 2010.07611.
    """
    return global_({key: lamp_scores(score, key) for key, score in scores.items()}, keep, floors)


def lamp_scores(scores: Tensor, key: str = "scores") -> Tensor:
    """The scores of ``lamp`` for one key: square over the sum of the squares not below it, in float64.

    Args:
        scores: unit scores of one key, not negative.
        key: its name, for the message.

    Returns:
        float64, same shape, from 0 to 1.

    Raises:
        ValueError: for negative scores.

    Example:
        >>> [round(x, 6) for x in lamp_scores(torch.tensor([0.1, 0.2, 0.3, 0.4])).tolist()]
        [0.033333, 0.137931, 0.36, 1.0]
    """
    flat = scores.flatten().double()
    if flat.numel() == 0:
        return flat.reshape(scores.shape)
    if bool((flat < 0).any()):
        raise ValueError(
            f"lamp squares the scores, which loses the sign: {int((flat < 0).sum())} of the {flat.numel()} scores of "
            f"{key!r} are negative; take a criterion without a sign, such as 'l1', or allocation='global'"
        )
    largest = flat.max()
    if float(largest) == 0.0:
        return flat.reshape(scores.shape)  # an empty key: nothing in it is worth keeping
    ascending, order = (flat / largest).square().sort(stable=True)
    suffix = ascending.flip(0).cumsum(0).flip(0)
    ratio = torch.empty_like(flat)
    ratio[order] = ascending / suffix
    return ratio.reshape(scores.shape)


def erk(sizes: Mapping[str, int], layout: Layout, keep: int) -> dict[str, int]:
    """Erdos-Renyi-kernel: density of a key proportional to ``(O + I/g + kh + kw) / (O * I/g * kh * kw)``.

    Keys whose density would pass 1 are dense and the others share the rest, to a fixed point. Counts are rounded by
    largest remainder, so that the total is exact. A coupled group has the shape of its first producer.

    Args:
        sizes: units per key; the density applies to their number.
        layout: parameter shapes.
        keep: units to keep in all.

    Returns:
        Units kept per key, ``keep`` in all.

    Example:
        >>> from secateur.types import KeyLayout
        >>> shapes = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
        >>> layout = {key: KeyLayout(shape) for key, shape in shapes.items()}
        >>> erk({key: math.prod(shape) for key, shape in shapes.items()}, layout, 26620)
        {'fc1': 18714, 'fc2': 6906, 'fc3': 1000}

    Reference:
        Evci, Gale, Menick, Castro, Elsen 2020, arXiv 1911.11134.
    """
    raw = {key: sum(shape) / max(1, math.prod(shape)) for key, shape in _shapes(sizes, layout).items()}
    return apportion(water_fill(raw, sizes, keep), keep, sizes)


def er(sizes: Mapping[str, int], layout: Layout, keep: int) -> dict[str, int]:
    """Erdos-Renyi: density of a key proportional to ``(O + I/g) / (O * I/g)``, kernel sizes left out.

    Args:
        sizes: units per key; the density applies to their number.
        layout: parameter shapes.
        keep: units to keep in all.

    Returns:
        Units kept per key, ``keep`` in all.

    Example:
        >>> from secateur.types import KeyLayout
        >>> layout = {"a": KeyLayout((20, 1, 5, 5), kind="conv"), "b": KeyLayout((50, 20, 5, 5), kind="conv")}
        >>> er({"a": 500, "b": 25000}, layout, 5100)
        {'a': 500, 'b': 4600}

    Reference:
        Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta 2018, arXiv 1707.04780.
    """
    raw = {key: sum(shape[:2]) / max(1, math.prod(shape[:2])) for key, shape in _shapes(sizes, layout).items()}
    return apportion(water_fill(raw, sizes, keep), keep, sizes)


def uniform_plus(sizes: Mapping[str, int], layout: Layout, keep: int) -> dict[str, int]:
    """Uniform, but the first convolution stays dense and the output keeps at least 20 %.

    The first layer is the key of role "first", and only a convolution is spared; a network without one has no
    exception there. The total is exact.

    Args:
        sizes: units per key.
        layout: kinds and roles.
        keep: units to keep in all.

    Returns:
        Units kept per key, ``keep`` in all.

    Raises:
        ValueError: where ``keep`` is less than what the exceptions keep already.

    Example:
        >>> from secateur.types import KeyLayout
        >>> layout = {
        ...     "conv": KeyLayout((2, 1, 5, 5), "conv", role="first"),
        ...     "fc": KeyLayout((10, 20)),
        ...     "out": KeyLayout((10, 10), role="output"),
        ... }
        >>> uniform_plus({"conv": 50, "fc": 200, "out": 100}, layout, 80)
        {'conv': 50, 'fc': 10, 'out': 20}

    Reference:
        Gale, Elsen, Hooker 2019, arXiv 1902.09574 (from memory, not verified); as in the code of Lee et al. 2021,
        arXiv 2010.07611.
    """
    dense = {key: n for key, n in sizes.items() if layout[key].role == "first" and _is_conv(layout[key])}
    if dense:  # with its bias, where that is a target
        dense |= {key: n for key, n in sizes.items() if layout[key].role == "first" and layout[key].kind == "bias"}
    least = {key: -(-n // 5) for key, n in sizes.items() if layout[key].role == "output" and key not in dense}
    bound = sum(dense.values()) + sum(least.values())
    if keep < bound:
        raise ValueError(
            f"uniform_plus keeps the first convolution and 20 % of the output, {bound} of {sum(sizes.values())} units, "
            f"but only {keep} may stay: take a lower sparsity, or allocation='erk' or 'uniform'"
        )
    others = {key: n for key, n in sizes.items() if key not in dense}
    share = (keep - sum(dense.values())) / max(1, sum(others.values()))
    raised = {key: n for key, n in least.items() if share * others[key] < n}
    rest = {key: n for key, n in others.items() if key not in raised}
    left = keep - sum(dense.values()) - sum(raised.values())
    share = left / max(1, sum(rest.values()))  # raising only lowers it, so it stays below 1
    return {**sizes, **dense, **raised, **apportion({key: share * n for key, n in rest.items()}, left, rest)}


ALLOCATIONS: Mapping[str, AllocationEntry] = {
    "uniform": AllocationEntry(uniform, "the same sparsity in every layer", "definition"),
    "global": AllocationEntry(global_, "one pool: the highest scores of the whole network", "definition"),
    "erk": AllocationEntry(
        erk, "density ~ (O + I + kh + kw) / (O I kh kw): small layers denser", "Evci et al. 2020, arXiv 1911.11134"
    ),
    "er": AllocationEntry(er, "density ~ (O + I) / (O I): small layers denser", "Mocanu et al. 2018, arXiv 1707.04780"),
    "uniform_plus": AllocationEntry(
        uniform_plus, "uniform; first convolution dense, output at least 20 %", "Gale et al. 2019, arXiv 1902.09574"
    ),
    "lamp": AllocationEntry(
        lamp, "one pool of s^2 over the sum of the s^2 not below it", "Lee et al. 2021, arXiv 2010.07611"
    ),
    **outliers.ROWS,
}


def resolve_allocation(value: str | AllocationEntry | Callable[..., dict[str, int]]) -> AllocationEntry:
    """The row for a name, a spec, or a function of named inputs.

    Raises:
        ValueError: for an unknown name or hyper-parameter.

    Example:
        >>> resolve_allocation("erk").reference
        'Evci et al. 2020, arXiv 1911.11134'
    """
    if isinstance(value, str) and value.partition("(")[0] == "knapsack":
        raise ValueError(
            f"allocation {value!r}: a knapsack needs costs; give sc.knapsack(sc.costs(model, 'macs', ...))"
        )
    return resolve("allocation", ALLOCATIONS, value, _by_hand)


def _by_hand(function: Callable[..., dict[str, int]]) -> AllocationEntry:
    return AllocationEntry(function, "given by hand", "")


def _shapes(sizes: Mapping[str, int], layout: Layout) -> dict[str, tuple[int, ...]]:
    return {key: producer_shape(layout[key]) for key in sizes}


def _is_conv(layout: KeyLayout) -> bool:
    return layout.kind == "conv" or (layout.kind == "group" and len(producer_shape(layout)) > 2)
