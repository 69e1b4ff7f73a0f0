"""Where the masked parameters stand, looked up anew at every use, fast enough for every step."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from secateur.model.names import find_parameter
from secateur.model.sharding import reshard
from secateur.types import Layout

__all__ = ["Places"]


@final
class Places:
    """The names of a layout, taken apart once.

    Args:
        layout: parameter name -> layout, of the parameters themselves.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._paths = [(name, tuple(name.split(".")[:-1]), name.rpartition(".")[2]) for name in layout]

    def find(self, root: nn.Module) -> list[Tensor]:
        """The parameters that stand under the names now, as shards where the model is sharded.

        Raises:
            ValueError: if one is gone.
        """
        reshard(root)
        found: list[Tensor] = []
        for name, path, leaf in self._paths:
            owner: nn.Module | None = root
            for part in path:
                owner = owner._modules.get(part) if owner is not None else None
            parameter = None if owner is None else owner._parameters.get(leaf)
            found.append(find_parameter(root, name) if parameter is None else parameter)
        return found

    def check(self, root: nn.Module) -> dict[str, Tensor]:
        """Name -> parameter.

        Raises:
            ValueError: if one is gone or has another shape than its mask.
        """
        found = dict(zip(self._layout, self.find(root), strict=True))
        for name, parameter in found.items():
            if parameter.shape != self._layout[name].shape:
                raise ValueError(
                    f"{name!r} has shape {tuple(parameter.shape)}, its mask {self._layout[name].shape}: a module was "
                    "replaced after pruning. Replace it before, or put the old one back, call masks.undo() and prune "
                    "again"
                )
        return found
