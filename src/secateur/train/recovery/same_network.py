"""Whether weights that were kept belong to a model, before anything is changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.model.names import unwrap
from secateur.train.loop.snapshot import Snapshot

__all__ = ["check_same_network", "tensors_of"]


def check_same_network(model: nn.Module, snapshot: Snapshot | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a snapshot, or of a state dict, if they are of this model.

    Args:
        model: wrapped or not.
        snapshot: what is to be put into it.

    Returns:
        Name -> tensor.

    Raises:
        ValueError: if names or shapes differ, with what to do after channels were removed.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> sorted(check_same_network(net, net.state_dict()))
        ['bias', 'weight']
    """
    root = unwrap(model)
    kept = dict(snapshot if isinstance(snapshot, Mapping) else snapshot.model)
    mine = root.state_dict() if isinstance(snapshot, Mapping) else tensors_of(root)
    there, here = _shapes(kept), _shapes(mine)
    wrong = sorted({name for name, _ in there.items() ^ here.items()})
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"snapshot is of another network than this {type(root).__name__}: {name!r} has shape "
            f"{there.get(name, 'nothing')} there and {here.get(name, 'nothing')} here"
            + (f", and {len(wrong) - 1} others differ" if len(wrong) > 1 else "")
            + ". Where channels were removed weights cannot be rewound: keep them under masks until training is done "
            "and shrink then, or take how='rewind_lr'"
        )
    return kept


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """As snapshots hold them: also buffers that a state dict leaves out."""
    root = unwrap(model)
    return dict([*root.named_parameters(), *root.named_buffers()])


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
