"""A model and its masks as one small file, and back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, overload

import torch
from torch import Tensor, nn

from secateur.core.units import parse_unit
from secateur.deploy.attention import attentions, open_as
from secateur.deploy.filling import check_contents, check_masks, check_ties, swap_in, target_tensors
from secateur.deploy.pack.loading import is_packed, load_packed
from secateur.deploy.pack.packed import PackedModel
from secateur.deploy.pack.saving import save_packed
from secateur.deploy.shrunk import structure_in, structure_to_save, with_structure
from secateur.deploy.standalone.written import attention_in, beside, put_beside, with_attention
from secateur.io import Bundle, Contents, read, write
from secateur.model.mask_checks import check_shapes, zeros_without_masks
from secateur.model.masks import Masks, find_masks, register_masks
from secateur.model.names import clean_name, unwrap
from secateur.model.removal.registry import find_mark, set_mark
from secateur.model.removal.restore import reshape
from secateur.types import Layout, Tensors

__all__ = ["load", "load_bundle", "save"]


class _HasRecord(Protocol):
    def to_record(self) -> dict[str, Any]: ...


Json: TypeAlias = "Mapping[str, Any] | _HasRecord"


def save(
    model: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    masks: Masks | None = None,
    plan: Json | None = None,
    record: Json | None = None,
    shrunk: bool | None = None,
    blobs: bool = False,
) -> int:
    """Save a model with its masks as one safetensors file; removed weights take no room.

    A float32 weight at sparsity S takes about ``4 (1 - S) + min(1/8, 1 - S)`` bytes: 12.5 % of the dense
    bytes at 90 %, 1.3 % at 99 %. Everything in ``state_dict()`` is stored exactly, buffers included, tied
    tensors once. The file is replaced in one step: a killed writer leaves the old one.

    Of a shrunk model the file also says which shapes its class had before and the numbers that no shape tells
    (groups, heads), so that ``load(path, into=TheClass())`` gives the small model back. Of a model with opened
    attention (``open_attention``) and no masks a second file is written, ``net_attention.py`` beside
    ``net.safetensors``: it needs PyTorch alone, and its ``load(TheClass(), tensors)`` gives the model to whoever does
    not have this library.

    Args:
        model: a module, or a mapping name -> tensor such as a state dict.
        path: file to make or replace; its folder must exist.
        masks: which weights are removed; None: the masks registered for ``model``, if any.
        plan: the choices that led here: a ``Plan`` or plain JSON.
        record: anything else to remember: a record or plain JSON.
        blobs: of a packed model, write the streams of its kernels too: beside the weights, which every machine reads,
            they save packing where the same kernels are the fastest.
        shrunk: whether the model is smaller than its class builds it; None: as far as known. Say True for a
            copy or an unpickled model, which nothing is known of.

    Returns:
        Bytes written.

    Raises:
        ValueError: if removed weights have grown back, a state dict holds more than tensors, a tensor is
            sharded or sparse, the unit of the masks has no name to load it by, ``shrunk=True`` comes
            with a mapping, another file has the name of the second one, or torch runs a part of a packed model.
        FileNotFoundError: if the folder does not exist.

    Example:
        >>> import tempfile
        >>> net = nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save(net, f"{folder}/net.safetensors")
        ...     again = load(f"{folder}/net.safetensors", into=nn.Linear(4, 2))
        >>> torch.equal(again.weight, net.weight)
        True
    """
    if isinstance(model, PackedModel):
        if masks is not None or shrunk is not None:
            raise ValueError("a packed model has no masks, and nothing to shrink: leave masks= and shrunk= out")
        return save_packed(model, path, _json(plan), _json(record), blobs)
    if blobs:
        raise ValueError("blobs=True is for packed models: sc.save(sc.pack(model, x), path, blobs=True)")
    if isinstance(model, nn.Module):
        root = unwrap(model)
        masks = find_masks(root) if masks is None else masks
        if masks is not None and masks.model is root:
            masks.check()
        unseen = zeros_without_masks(root) if masks is None else None
        if unseen:
            warnings.warn(f"the file will be as large as the dense one: {unseen}", stacklevel=2)
        tensors = _clean(root.state_dict())
        structure = structure_to_save(root, shrunk)
        remembered = with_attention(with_structure(_json(record), structure), root)
        extra = beside(path, root, structure) if masks is None else None  # what is packed, others cannot unpack
    elif isinstance(model, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        if shrunk:
            raise ValueError("shrunk=True needs the module itself: a mapping of tensors has no layers to describe")
        tensors, remembered, extra = dict(model), _json(record), None
    else:
        raise ValueError(f"a {type(model).__name__} cannot be saved; give a module, or a mapping of named tensors")
    bundle = Bundle(tensors, plan=_json(plan), record=remembered)
    if masks is not None:
        spec = masks.unit.spec
        parse_unit(spec)  # a unit that cannot be named again must fail here, not when the file is loaded
        bundle = Bundle(tensors, masks.unit_masks, spec, masks.layout, _json(plan), remembered)
    size = write(path, bundle, masks=masks)
    put_beside(extra)
    return size


@overload
def load(path: str | os.PathLike[str], into: None = None, *, max_bytes: int | None = None) -> Bundle | PackedModel: ...
@overload
def load(
    path: str | os.PathLike[str], into: nn.Module | Callable[[], nn.Module], *, max_bytes: int | None = None
) -> nn.Module: ...
def load(
    path: str | os.PathLike[str],
    into: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    max_bytes: int | None = None,
) -> Bundle | PackedModel | nn.Module:
    """Load a file made by ``save``; nothing in it is ever executed.

    With ``into`` the values are copied into the module's own parameters and buffers, exactly, and its masks
    are registered: train on with ``find_masks(model).attach(optimizer)``. On any error the module stays
    as it was, bit for bit. Load hooks of the module are not called; wrappers are looked through. If the file
    was saved from a shrunk model, a module with the shapes from before is shrunk to its shapes; attention that was
    opened in it is opened.

    A file of a packed model gives the packed model, without ``into``.

    Args:
        path: the file.
        into: a module, or a callable that makes one; None: return the contents.
        max_bytes: most bytes that the dense tensors and masks may take; None: 1 GiB, or 1000 times the
            file where that is more.

    Returns:
        The module, or a ``Bundle`` of tensors, unit masks, plan and record, or a ``PackedModel``.

    Raises:
        ValueError: if the file is foreign, truncated, altered or oversized; or if names, shapes, dtypes,
            ties or existing masks of the module do not fit. dtypes must be equal: a conversion would not be
            what was saved.
        FileNotFoundError: if there is no such file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save({"scale": torch.tensor([1.0, 2.0])}, f"{folder}/a.safetensors", record={"epoch": 3})
        ...     bundle = load(f"{folder}/a.safetensors")
        >>> bundle.tensors["scale"], bundle.record
        (tensor([1., 2.]), {'epoch': 3})
    """
    if is_packed(path):
        if into is not None:
            raise ValueError(
                f"{os.fspath(path)} is a packed model, which has no weights for a module: load it without into="
            )
        return load_packed(path, max_bytes)
    if into is None:
        return load_bundle(path, max_bytes)
    if not callable(into):  # modules are callable too
        raise ValueError(f"into= is a {type(into).__name__}; give a module, or a callable that makes one")
    target = into if isinstance(into, nn.Module) else into()
    if not isinstance(target, nn.Module):
        raise ValueError(f"into= made a {type(target).__name__}; give a module, or a callable that makes one")
    root = unwrap(target)
    try:
        slots = target_tensors(root)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error

    def check(contents: Contents) -> None:
        check_contents(contents, slots, type(root).__name__, structure_in(contents.record))

    bundle = read(path, expand=_expand, check=check, max_bytes=max_bytes)
    try:
        close = open_as(root, attention_in(bundle.record))
        try:
            _reshape_and_fill(root, slots, bundle)
        except BaseException:
            close()
            raise
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error
    return target


def load_bundle(path: str | os.PathLike[str], max_bytes: int | None = None) -> Bundle:
    """The contents of a file made by ``save``, whatever model they are for; see ``load``.

    Raises:
        ValueError: as of ``load``, or if the file is a packed model, which has no tensors of a model.
    """
    if is_packed(path):
        raise ValueError(
            f"{os.fspath(path)} is a packed model, which has no tensors by name: sc.load(path) gives the packed model; "
            "give the file that it was packed from"
        )
    return read(path, expand=_expand, max_bytes=max_bytes)


def _reshape_and_fill(root: nn.Module, slots: Mapping[str, Tensor], bundle: Bundle) -> None:
    """Bring the module to the shapes of a shrunk model first, and back if it cannot be filled then."""
    shrunk = structure_in(bundle.record)
    if shrunk is None:
        _fill(root, slots, bundle)
        return
    journal = reshape(root, {name: tuple(bundle.tensors[name].shape) for name in slots}, shrunk)
    try:
        _fill(root, slots, bundle)
    except BaseException:
        journal.undo()
        raise
    if journal.changed_shapes or find_mark(root) is None:
        set_mark(root, shrunk.mark())


def _fill(root: nn.Module, slots: Mapping[str, Tensor], bundle: Bundle) -> None:
    """Everything that can fail comes before the first change."""
    for attention in attentions(root).values():
        attention.check()
    present = find_masks(root)
    check_masks(present, bundle)
    pairs = check_ties(slots, bundle.tensors)
    masks = None
    if bundle.masks and present is None:
        assert bundle.unit is not None, "read refuses masks without a unit"
        missing = sorted(set(bundle.masks) - set(bundle.layout))
        if missing:
            raise ValueError(f"the masks of {missing} come without a layout; load without into= and use the tensors")
        check_shapes(bundle.masks, parse_unit(bundle.unit)[0], bundle.layout)
        masks = Masks.from_units(root, bundle.masks, parse_unit(bundle.unit)[0], bundle.layout)
    with torch.no_grad():
        swap_in(pairs)
    if masks is not None:
        register_masks(root, masks)


def _expand(unit_masks: Tensors, layout: Layout, spec: str) -> Tensors:
    unit, _ = parse_unit(spec)
    check_shapes(unit_masks, unit, layout)
    return unit.expand(unit_masks, layout)


def _clean(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {clean_name(name): tensor for name, tensor in state.items()}
    if len(tensors) != len(state):
        raise ValueError("two entries of state_dict() have the same name once the names of wrappers are left out")
    return tensors


def _json(value: Json | None) -> Mapping[str, Any] | None:
    return value if value is None or isinstance(value, Mapping) else value.to_record()
