"""What the units that stay cost, as a function for knapsacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from secateur.core.knapsack import Cost
from secateur.deploy.pack import CostTable
from secateur.model.graph.groups import find_groups
from secateur.model.names import unwrap
from secateur.train.cost import CostModel

__all__ = ["costs"]

Figure = Literal["macs", "params", "bytes"]


def costs(model: nn.Module, figure: Figure | CostTable, example_inputs: Any = None, *, exact: bool = True) -> Cost:
    """What a model costs as a function of its units that stay, for ``sc.knapsack``.

    Args:
        model: the dense model.
        figure: of coupled channels ``"macs"`` (multiply-adds of one sample), ``"params"`` or ``"bytes"`` (of the
            file), which follow from shapes exactly; of single weights an ``sc.cost_table``: predicted milliseconds.
        example_inputs: what the model is traced on; a cost table needs none.
        exact: as for ``sc.prune``.

    Returns:
        Group, or parameter -> bool mask of the units that stay, in; the cost, out.

    Raises:
        ValueError: for another figure; when called, for masks that are not of the model's coupled channels.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4)
        >>> cost = costs(net, "macs", x)
        >>> cost({}), cost({"0.weight": torch.arange(8) < 3})
        (48.0, 18.0)
    """
    if isinstance(figure, CostTable):
        return _predicted(figure)
    if figure not in get_args(Figure):
        raise ValueError(f"costs({figure!r}): take 'macs', 'params', 'bytes', or an sc.cost_table(model, example)")
    if example_inputs is None:
        raise ValueError(f"costs({figure!r}) of coupled channels needs example_inputs=, to trace the model")
    root = unwrap(model)
    groups = find_groups(root, example_inputs, exact=exact)
    found = CostModel(root, groups, example_inputs)

    def cost(keep: Mapping[str, Tensor]) -> float:
        for name, mask in keep.items():
            if name not in groups or mask.shape != (groups[name].units,):
                raise ValueError(
                    f"costs({figure!r}) counts coupled channels, and {name!r} with units of shape {tuple(mask.shape)} "
                    "is no group of them: take unit='channel', or for single weights the cost of an sc.cost_table"
                )
        value = getattr(found(keep), figure)
        return float(value or 0)

    return cost


def _predicted(table: CostTable) -> Cost:
    layers = {layer.name for layer in table.layers}

    def cost(keep: Mapping[str, Tensor]) -> float:
        gone = {name.removesuffix(".weight"): 1 - float(mask.float().mean()) for name, mask in keep.items()}
        return table.total({name: share for name, share in gone.items() if name in layers})

    return cost
