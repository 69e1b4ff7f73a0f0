"""Masks: unit masks are the truth, parameter masks are derived, bit-packed, and kept beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final
from weakref import ref

from torch import Tensor, nn
from torch.optim import Optimizer

from secateur.core.bit_masks import BitMasks, all_kept
from secateur.core.unit_channel import parameter_layout, touching
from secateur.model.attach import Attachments
from secateur.model.edited import EditedValues
from secateur.model.mask_checks import check_members, check_shapes, check_zeros, untie
from secateur.model.names import unwrap
from secateur.model.packed import PackedMasks, expanded, pack_units, unpack_units
from secateur.model.places import Places
from secateur.model.registry import find_masks, forget_masks, register_masks
from secateur.model.removed import RemovedValues
from secateur.model.sharding import part_of, take
from secateur.model.summary import shares_of, summary
from secateur.records import Shares
from secateur.types import KeyLayout, Layout, Unit

__all__ = ["Masks", "find_masks", "register_masks"]


@final
class Masks(Mapping[str, Tensor]):
    """The masks of one model: a mapping from parameter name to bool mask (True: kept).

    They stand beside the model, packed to one bit per weight; the model's parameters stay plain
    ``nn.Parameter``. Build them with ``sc.prune`` or ``sc.load``.

    Args:
        model: the module whose parameters they mask (held weakly).
        unit_masks: parameter name -> bool mask in the unit's grid; for unit ``channel`` group name -> bool [units].
        unit: what is removed together.
        layout: the same keys -> layout; of a group every member has to be a parameter.
        undo: keep the removed values, so that ``undo()`` can restore them.

    Raises:
        ValueError: if two names of one tied parameter come with different masks, or a shape does not fit.

    Example:
        >>> import secateur as sc
        >>> net = nn.Linear(4, 2)
        >>> masks = sc.prune(net, sparsity=0.5)
        >>> masks["weight"].shape, masks.kept("weight")
        (torch.Size([2, 4]), 4)
        >>> masks.undo()
        >>> int((net.weight == 0).sum())
        0
    """

    def __init__(
        self, model: nn.Module, unit_masks: Mapping[str, Tensor], unit: Unit, layout: Layout, *, undo: bool = True
    ) -> None:
        root = unwrap(model)
        self._model: Callable[[], nn.Module | None] = ref(root)
        self._undone = False
        self.unit = unit
        self.unit_masks, self.layout = untie(root, unit_masks, layout)
        self.parameters = parameter_layout(self.layout)
        self._removed = RemovedValues() if undo else None
        self.edited = EditedValues() if undo else None
        self._optimizers = Attachments()
        self._packed = self._pack()
        self._remember()

    def __getitem__(self, name: str) -> Tensor:
        return self._packed.unpack(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed.bits)

    def __len__(self) -> int:
        return len(self._packed.bits)

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def model(self) -> nn.Module:
        """The model these masks belong to.

        Raises:
            ValueError: if it has been deleted (masks hold it weakly), or the masks were undone.
        """
        model = self._model()
        if model is None:
            raise ValueError(
                "these masks were undone: the model is dense again. Prune it again"
                if self._undone
                else "the model of these masks has been deleted; masks hold their model weakly"
            )
        return model

    def kept(self, name: str) -> int:
        """How many weights of a parameter are kept."""
        return self._packed.count(name)

    def shares(self) -> Shares:
        """The three sparsities: of units, of target weights, of all parameters."""
        return shares_of(self)

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        return f"<Masks of {len(self)} tensors by unit {self.unit.spec}>"

    def apply(self) -> None:
        """Set every removed weight to zero, in one native call."""
        self._zero(self._places.find(self.model))

    def mask_gradients(self) -> None:
        """Set the gradients of removed weights to zero; call it before clipping gradients yourself.

        ``attach`` does it before every optimizer step.
        """
        self._zero([parameter.grad for parameter in self._places.find(self.model)])

    def check(self) -> None:
        """Make sure that the removed weights are still zero.

        Raises:
            ValueError: if some have grown back, with the parameter and how many.
        """
        for name, parameter in self._parameters().items():
            check_zeros(name, parameter, self[name])

    def update(self, unit_masks: Mapping[str, Tensor]) -> None:
        """Replace the unit masks of some or all keys and apply them; values that return are restored.

        Args:
            unit_masks: key -> bool mask in the unit's grid; keys not given keep theirs.

        Raises:
            ValueError: for a key or a shape that does not belong to these masks.
        """
        parameters = self._parameters()
        check_shapes(unit_masks, self.unit, self.layout)
        changed, sharing = touching(self.layout, unit_masks)
        self.unit_masks = self.unit_masks.replaced(BitMasks((key, mask.cpu()) for key, mask in unit_masks.items()))
        new = expanded(self.unit, self.unit_masks.chosen(sharing), self.layout, changed)
        for name in changed:
            before, after, parameter = self[name], new[name], parameters[name]
            part = part_of(parameter)
            if self._removed is not None:
                if name in self._removed:
                    self._removed.put_back(name, parameter, before)
                self._removed.keep(name, parameter, take(after, part))
            self._optimizers.reset_state(parameter, take(before ^ after, part))
        self._packed = self._pack()
        self.apply()

    def add(self, layout: Layout) -> None:
        """Bring more parameters, or groups, under these masks, all kept so far.

        Raises:
            ValueError: for a group that has other members than under the same name here.
        """
        check_members(layout, self.layout)
        new = {name: key for name, key in layout.items() if name not in self.layout}
        self.layout = {**self.layout, **new}
        self.parameters = parameter_layout(self.layout)
        self.unit_masks = self.unit_masks.replaced(all_kept(self.unit, new))
        self._packed = self._pack()

    def restore_values(self, *, only_zeros: bool = False) -> None:
        """Put the removed values back for the moment; ``apply`` or ``update`` removes them again.

        Args:
            only_zeros: leave alone what was written to removed weights since (by loading without a hook).
        """
        for name, parameter in self._parameters().items():
            if self._removed is not None and name in self._removed:
                self._removed.put_back(name, parameter, self[name], only_zeros)

    def after_load(self) -> None:
        """Called after ``load_state_dict``: remember what was loaded under the masks, then mask it.

        A zero says nothing about the weight that was removed (a pruned checkpoint), so the old value is kept.
        """
        self._remember(zeros_too=False)
        self.apply()

    def attach(
        self,
        optimizer: Optimizer,
        *,
        before: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> None:
        """Keep removed weights at zero through training with this optimizer.

        Before a step (where it has a closure: after that) the gradients of removed weights are zeroed, after it
        the weights. Attach every optimizer that owns masked parameters; attaching one twice does nothing,
        unless ``before`` or ``after`` is given: those replace what was attached.

        Args:
            optimizer: any torch optimizer; FSDP2: made after ``fully_shard``.
            before: called before each step instead of ``mask_gradients``; it has to call that.
            after: called after each step instead of ``apply``; it has to call that.

        Raises:
            ValueError: if the optimizer holds none of the masked parameters.
        """
        first, last, own = before or self.mask_gradients, after or self.apply, bool(before or after)
        self._optimizers.attach(optimizer, self._parameters(), first, lambda *_: last(), replace=own)

    def detach(self) -> None:
        """Remove the hooks from all attached optimizers."""
        self._optimizers.detach()

    def undo(self) -> None:
        """Put the removed values back and forget the masks; the model is dense again.

        Kept weights stay as they are now, but for edits not trained since. Optimizers are detached.

        Raises:
            ValueError: if the values were given up by ``commit()`` or ``undo=False``.
        """
        if self._removed is None:
            raise ValueError("the removed values are gone (commit() was called, or prune(..., undo=False))")
        root = self.model
        self.restore_values()
        if self.edited is not None:
            self.edited.put_back(root)
        self._removed.forget()
        self.detach()
        if find_masks(root) is self:
            forget_masks(root)
        self._undone, self._model, self.edited = True, lambda: None, None

    def commit(self) -> None:
        """Give up the removed values and free their memory; the masks stay."""
        self._removed = self.edited = None

    @classmethod
    def from_units(
        cls, model: nn.Module, unit_masks: Mapping[str, Tensor], unit: Unit, layout: Mapping[str, KeyLayout]
    ) -> Masks:
        """Masks whose removed values are not known (read from a file, say); ``undo()`` is refused."""
        return cls(model, unit_masks, unit, layout, undo=False)

    def state_dict(self) -> dict[str, Any]:
        """Unit masks, packed, and the removed values: plain tensors, lists and strings for a checkpoint."""
        return {
            "unit": self.unit.spec,
            "units": pack_units(self.unit_masks),
            "removed": None if self._removed is None else self._removed.state_dict(),
            "edited": None if self.edited is None else self.edited.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the masks of a checkpoint over and apply them.

        Raises:
            ValueError: if unit or names differ from these masks.
        """
        if state["unit"] != self.unit.spec or set(state["units"]) != set(self.unit_masks):
            raise ValueError(
                f"this checkpoint masks {sorted(state['units'])} by unit {state['unit']!r}; "
                f"these masks are of {sorted(self.unit_masks)} by unit {self.unit.spec!r}"
            )
        masks = BitMasks(unpack_units(state["units"]).items())
        check_shapes(masks, self.unit, self.layout)
        self.restore_values(only_zeros=True)  # what the masks so far hide may be kept by the new ones
        self.unit_masks = masks
        self._packed = self._pack()
        self.apply()
        self._removed = RemovedValues.restored(state["removed"])
        self.edited = EditedValues.restored(state.get("edited", {} if state["removed"] is not None else None))

    def _parameters(self) -> dict[str, Tensor]:
        return self._places.check(self.model)

    def _zero(self, tensors: Sequence[Tensor | None]) -> None:
        try:
            self._packed.zero(tensors)
        except ValueError:
            self._parameters()  # says which parameter it is, where it is one
            raise

    def _remember(self, *, zeros_too: bool = True) -> None:
        if self._removed is not None:
            for name, parameter in self._parameters().items():
                self._removed.keep(name, parameter, take(self[name], part_of(parameter)), zeros_too)

    def _pack(self) -> PackedMasks:
        self._places = Places(self.parameters)  # in the same order
        return PackedMasks(expanded(self.unit, self.unit_masks, self.layout, self.parameters))
