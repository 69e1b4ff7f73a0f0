"""How much goes in each round: a share of what is left, for all units together or layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from torch import nn

from secateur.core.select import removed_count
from secateur.model.names import unwrap
from secateur.model.selectors import selected_by
from secateur.types import Layout

__all__ = ["Cut", "layer_rates", "next_cut", "sparsities_of"]


@dataclass(frozen=True)
class Cut:
    """What one round removes.

    Attributes:
        sparsity: share of all units that is gone after it.
        counts: units that each key keeps; None: the allocation says.
    """

    sparsity: float
    counts: Mapping[str, int] | None = None

    @property
    def allocation(self) -> Callable[..., dict[str, int]]:
        """The counts as an allocation."""
        counts = self.counts
        assert counts is not None, "asked for only where there are counts"

        def layer_by_layer(sizes: Mapping[str, int]) -> dict[str, int]:
            return {key: counts[key] for key in sizes}

        return layer_by_layer


def next_cut(
    sizes: Mapping[str, int],
    left: Mapping[str, int],
    rate: float | Mapping[str, float],
) -> Cut:
    """The next round of a fixed rate: of n units that are left ``floor(rate n + 0.5)`` go.

    Args:
        sizes: key -> units.
        left: key -> units that are left.
        rate: one number: of all units together; a mapping: of each key's own units.

    Returns:
        The share that is gone afterwards; with rates of their own the counts of each key.

    Raises:
        ValueError: where the rate is too small to remove a single unit of what is left, or takes the last one.

    Example:
        >>> sizes = {"fc1": 235200, "fc2": 30000, "fc3": 1000}
        >>> cut = next_cut(sizes, sizes, {"fc1": 0.2, "fc2": 0.2, "fc3": 0.1})
        >>> round(100 * (1 - cut.sparsity), 2), cut.counts
        (80.04, {'fc1': 188160, 'fc2': 24000, 'fc3': 900})
    """
    total, remaining = sum(sizes.values()), sum(left.values())
    if isinstance(rate, Mapping):
        counts = {key: n - removed_count(n, rate[key]) for key, n in left.items()}
        kept = sum(counts.values())
    else:
        counts, kept = None, remaining - removed_count(remaining, rate)
    if kept == 0:
        raise ValueError(f"rate={rate!r} of the {remaining} units that are left would leave nothing; take fewer rounds")
    if kept == remaining:
        raise ValueError(
            f"rate={rate!r} of the {remaining} units that are left is less than one unit, so this round would remove "
            "nothing; take fewer rounds or a larger rate"
        )
    return Cut(float(Fraction(total - kept, total)), counts)


def layer_rates(
    root: nn.Module, layout: Layout, rate: float, rates: Mapping[Any, float] | None
) -> float | dict[str, float]:
    """The rate of each key: ``rate``, or that of the last entry of ``rates`` that matches it.

    Args:
        root: the model.
        layout: the keys.
        rate: where no entry matches.
        rates: name, glob, type or module -> rate.

    Returns:
        ``rate`` itself where there are no rates of layers; else key -> rate.

    Raises:
        ValueError: for a rate that is not between 0 and 1, or an entry that matches nothing.

    Example:
        >>> from secateur.types import KeyLayout
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> keys = {"0.weight": KeyLayout((3, 4)), "1.weight": KeyLayout((2, 3))}
        >>> layer_rates(net, keys, 0.2, {"1": 0.1})
        {'0.weight': 0.2, '1.weight': 0.1}
    """
    _check_rate("rate", rate, at_least_some=rates is None)
    if rates is None:
        return rate
    found = dict.fromkeys(layout, rate)
    for item, own in rates.items():
        _check_rate(f"rates[{item!r}]", own, at_least_some=False)
        for _, names in selected_by(unwrap(root), item, _reached(layout), {}, "rates"):
            found.update({key: own for key in layout if names & _names(layout, key)})
    return found


def sparsities_of(sparsities: Sequence[float]) -> tuple[float, ...]:
    """Sparsities of rounds, checked: each a share, and they grow.

    Raises:
        ValueError: naming the first that is wrong.

    Example:
        >>> sparsities_of([0.5, 0.8])
        (0.5, 0.8)
    """
    asked = tuple(sparsities)
    if not asked:
        raise ValueError("sparsities is empty; give the share that is gone after each round, e.g. (0.2, 0.36, 0.488)")
    for index, sparsity in enumerate(asked):
        if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)) or not 0 < sparsity < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"sparsities[{index}]={sparsity!r}; each is the share gone after its round, from 0 to 1")
        if index and sparsity <= asked[index - 1]:
            raise ValueError(
                f"sparsities[{index}]={sparsity} comes after {asked[index - 1]}; what is removed stays removed, so "
                "they have to grow"
            )
    return asked


def _check_rate(name: str, rate: Any, *, at_least_some: bool) -> None:
    good = isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 <= rate < 1
    if not good or (at_least_some and rate == 0):
        raise ValueError(f"{name}={rate!r}: the share of what is left that goes in each round, from 0 to 1, e.g. 0.2")


def _names(layout: Layout, key: str) -> set[str]:
    """The parameters that stand for a key: itself, or what makes the units of a group."""
    members = layout[key].members
    return {member.name for member in members if member.part == "out"} or {key}


def _reached(layout: Layout) -> Layout:
    return {name: layout[key] for key in layout for name in _names(layout, key)}
