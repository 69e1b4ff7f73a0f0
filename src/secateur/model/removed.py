"""The values that masks took away, kept so that nothing is destroyed silently."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from secateur.model.sharding import Part, local, part_of, take

__all__ = ["RemovedValues"]


@final
class RemovedValues:
    """Per parameter, the values at the masked positions, compact, in flat order.

    Memory: one element per removed weight. A store made before sharding also serves the shards.
    """

    def __init__(self) -> None:
        self._values: dict[str, tuple[Part, Tensor]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __copy__(self) -> RemovedValues:
        made = RemovedValues()
        made._values = dict(self._values)
        return made

    def keep(self, name: str, parameter: Tensor, mask: Tensor, zeros_too: bool = True) -> None:
        """Remember what stands at the masked positions of ``parameter``.

        Args:
            name: the parameter's name.
            parameter: as it is now.
            mask: of the local shape.
            zeros_too: False: where a zero stands, what was remembered before stays remembered.
        """
        values, part = local(parameter).detach(), part_of(parameter)
        found = values[~mask.to(values.device)]
        before, old = self._values.get(name, (part, found))
        if not zeros_too and before == part and old.shape == found.shape:
            found = torch.where(found == 0, old.to(found), found)
        self._values[name] = (part, found)

    def put_back(self, name: str, parameter: Tensor, full_mask: Tensor, only_zeros: bool = False) -> None:
        """Write the remembered values to the masked positions of ``parameter``.

        Args:
            name: the parameter's name.
            parameter: as it is now, perhaps sharded since.
            full_mask: the mask of the whole parameter under which the values were kept.
            only_zeros: leave alone what is not zero now.

        Raises:
            ValueError: if the parameter was sharded in another way when the values were kept.
        """
        part, values = self._values[name]
        now = part_of(parameter)
        target = local(parameter).detach()
        removed = ~take(full_mask, now)
        if part is None and now is not None:
            whole = torch.zeros(full_mask.shape, dtype=values.dtype)
            whole[~full_mask] = values.cpu()
            values = take(whole, now)[removed]
        elif part != now:
            raise ValueError(
                f"the removed values of {name!r} were kept under another sharding ({part} then, {now} now); "
                "undo the masks before the model is resharded"
            )
        removed, values = removed.to(target.device), values.to(target)  # its type may be another by now
        target[removed] = torch.where(target[removed] == 0, values, target[removed]) if only_zeros else values

    def forget(self) -> None:
        """Free the values."""
        self._values.clear()

    def state_dict(self) -> dict[str, Any]:
        """Name -> compact values, for a checkpoint."""
        return {name: {"part": part, "values": values} for name, (part, values) in self._values.items()}

    @classmethod
    def restored(cls, state: dict[str, Any] | None) -> RemovedValues | None:
        """The inverse of ``state_dict``; None where the values were given up."""
        if state is None:
            return None
        made = cls()
        made._values = {name: (entry["part"], entry["values"].clone()) for name, entry in state.items()}
        return made
