"""What a trace of a model said, kept as long as the model lives and stays as it is.

``sc.prune`` and then ``sc.shrink`` ask the same questions. What was learned stands in a weak table beside the models;
it is asked for again when anything that a forward may look at has changed: modules, their numbers, shapes, ties,
integer buffers, or the shapes of the examples; and when a run shows that it calls anything else than it did. The
values of weights may change, as training does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from secateur.model.graph.examples import Example, resized
from secateur.model.graph.group import Groups
from secateur.model.graph.relations import Relations
from secateur.model.graph.smaller import Size, Steps, cut_down, smaller_size, steps_of
from secateur.model.graph.solve import Freedom
from secateur.model.graph.sorting import group_up
from secateur.model.graph.trace import trace
from secateur.model.graph.twins import copied, twin

__all__ = ["Learned", "learn"]


@dataclass(frozen=True)
class Learned:
    """What is known of a model.

    Attributes:
        relations: of its traces.
        size: at which images are traced and probed; None: as they are.
    """

    relations: Relations
    size: Size | None
    _grouped: dict[tuple[Any, ...], Groups] = field(default_factory=dict[tuple[Any, ...], Groups])

    @property
    def shares(self) -> bool:
        """Whether copies may lie in the memory of the model: its forward does not write into parameters."""
        return not self.relations.writes

    def refuse_unprovable(self) -> None:
        """Raise where copies, on which removals are tried, run the model itself."""
        if self.relations.original:
            raise ValueError(
                f"nothing was changed: a copy of this model runs layers of the model itself, at "
                f"{self.relations.original}, so that no copy can show what a removal does. A forward set by hand is "
                "copied along if it is given its model: model.forward = types.MethodType(function, model), or write "
                "it into the class"
            )

    def smaller(self, examples: Sequence[Example]) -> list[Example]:
        """Examples of the size at which was traced."""
        return list(examples) if self.size is None else [cut_down(example, self.size) for example in examples]

    def groups(self, root: nn.Module, unit: Freedom, *, exact: bool, one_width: bool = False) -> Groups:
        """The groups for one kind of unit, before any probe."""
        key = (unit, exact, one_width)
        if key not in self._grouped:
            self._grouped[key] = group_up(root, self.relations, unit, exact=exact, one_width=one_width)
        return self._grouped[key]


@dataclass(frozen=True)
class _Memory:
    """What was learned, and when it holds.

    Attributes:
        look: of the model and the examples.
        steps: what the model called; None: it is asked for in one call only.
        learned: what came of it.
    """

    look: tuple[Any, ...]
    steps: Steps | None
    learned: Learned


_LEARNED: WeakKeyDictionary[nn.Module, _Memory] = WeakKeyDictionary()


def learn(root: nn.Module, examples: list[Example], *, sure: bool = False, whole: bool = False) -> Learned:
    """Trace every example at batch size 2; or remember, where the model looks as it did and calls what it called.

    Args:
        root: an unwrapped module; it is left as it was.
        examples: as the user gave them.
        sure: it was asked for a moment ago, so that the model is not run to see whether it does what it did.
        whole: trace again, at the size of the examples.

    Returns:
        What the traces said.

    Raises:
        ValueError: if a branch depends on data and there is one example, and inside ``torch.inference_mode()``.

    Example:
        >>> import torch
        >>> net, x = nn.Linear(2, 3), Example((torch.zeros(1, 2),))
        >>> learn(net, [x]) is learn(net, [x])
        True
        >>> net.in_features = 4
        >>> learn(net, [x]).relations.slots == learn(net, [x]).relations.slots
        True
    """
    if torch.is_inference_mode_enabled():
        raise ValueError(
            "a trace does not see operators inside torch.inference_mode(); call this outside of it (torch.no_grad() is "
            "no hindrance)"
        )
    look = (_look_of(root), tuple(_inside((tuple(one.args), dict(one.kwargs)), 0) for one in examples))
    known = _LEARNED.get(root)
    if known is not None and known.look == look and not whole and (sure or _holds(known, root, examples)):
        return known.learned
    size, steps = (None, steps_of(root, examples)) if whole else smaller_size(root, examples)
    relations = _traced(root, examples if size is None else [cut_down(example, size) for example in examples])
    if relations.branches and len(examples) == 1:
        raise ValueError(
            f"the model decides by its data at {relations.branches[0]}: a trace sees one branch only. Give "
            "example_inputs= a list with one example for each branch"
        )
    found = Learned(relations, size)
    # Where the model decides by its data, other examples of these shapes would say something else.
    _LEARNED[root] = _Memory(look, None if relations.branches else steps, found)
    return found


def _holds(known: _Memory, root: nn.Module, examples: Sequence[Example]) -> bool:
    """Whether a run shows what it showed: the look of a model does not tell all that its forward reads."""
    return known.steps is not None and known.steps == steps_of(root, known.learned.smaller(examples))


def _traced(root: nn.Module, examples: Sequence[Example]) -> Relations:
    """Traces of a copy, which keeps what a forward writes; only what cannot be copied runs itself."""
    relations = Relations()
    try:
        model = twin(root)
    except Exception:  # noqa: BLE001 - weights that a hook made, with their gradients: gone after the run
        model = root
    try:
        _trace_all(model, examples, relations)
    except Exception:
        if not (relations.writes or relations.original):
            raise
    if relations.original:
        relations = Relations(original=relations.original)
        _trace_all(root, examples, relations)
    elif relations.writes:  # copies are of full value only with memory of their own
        relations = Relations(writes=True)
        _trace_all(copied(root), examples, relations)
    return relations


def _trace_all(model: nn.Module, examples: Sequence[Example], relations: Relations) -> None:
    for example in examples:
        trace(model, resized(example, 2), relations)


def _look_of(root: nn.Module) -> tuple[Any, ...]:
    """All of a model that a forward may decide by, but the values of floating-point tensors."""
    modules = tuple(
        (name, type(module), tuple(_numbers(vars(module))))
        for name, module in root.named_modules(remove_duplicate=False)
    )
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    first: dict[int, int] = {}
    return modules, tuple((name, first.setdefault(id(t), place), *_look(t)) for place, (name, t) in enumerate(named))


_ASIDE = frozenset(
    (
        "training",
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
        *("_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    )
)
"""Attributes of a module that no forward in eval mode looks at, and those that are looked at by themselves."""


def _numbers(values: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[Any, ...]]:
    """Attributes by value where they are plain, others by what they are; a config's own attributes too."""
    for name, value in values.items():
        if name not in _ASIDE:
            yield name, _inside(value, depth)


def _inside(value: Any, depth: int) -> Any:
    if isinstance(value, _PLAIN):
        return type(value), value
    if isinstance(value, Tensor):
        return _look(value)
    if isinstance(value, nn.Module):
        return type(value)
    if depth < _DEPTH and isinstance(value, Mapping):
        return type(value), tuple((str(name), _inside(item, depth + 1)) for name, item in value.items())
    if depth < _DEPTH and isinstance(value, (tuple, list)):
        return type(value), tuple(_inside(item, depth + 1) for item in value)
    own = vars(value) if depth < _DEPTH and hasattr(value, "__dict__") and not callable(value) else {}
    return id(value), tuple(_numbers(own, depth + 1))


_DEPTH = 3
_PLAIN = (int, float, bool, str, type(None))
_MOST = 1 << 20
"""Elements of an integer tensor whose values are kept."""


def _look(tensor: Tensor) -> tuple[Any, ...]:
    """Shape and kind; of integers the values, which may say where things are, or else where they lie."""
    shape = tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() < 2 or tensor.device.type == "meta":
        return shape
    if tensor.numel() > _MOST:
        return *shape, tensor.data_ptr(), tensor._version
    return *shape, tensor.detach().cpu().contiguous().numpy().tobytes()
