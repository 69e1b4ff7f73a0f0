"""Attention that can lose heads: a module of our own in the place of torch's, with the same parameters."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn

from secateur.deploy.standalone.attention import Attention, replace_attention
from secateur.model.names import unwrap
from secateur.model.removal import carry_mark

__all__ = ["Attention", "attentions", "fold_value_bias", "open_as", "open_attention"]

_PARAMETERS = {
    "in_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
}


def open_attention(
    model: nn.Module,
    *,
    targets: str | Sequence[str] | None = None,
    inplace: bool = False,
    fold: bool = False,
) -> nn.Module:
    """Put attention whose heads can be removed in the place of every ``nn.MultiheadAttention``.

    Torch's module has one width for its input and for all heads together, so it cannot lose a head, or a part of
    each. ``Attention`` computes the same (within rounding) and keeps the number of heads, their widths and the scale
    ``1 / sqrt(head_dim)`` as numbers of its own. Names in ``state_dict()`` stay, and parameters stay the objects they
    are, so that ties, optimizers, tensor hooks and masks live on.

    Torch's fused inference kernels are not used afterwards. With padding, ``nn.TransformerEncoder`` may use them on
    nested tensors and return zeros at padded places: those places hold other values then.

    Args:
        model: any module; wrappers are looked through.
        targets: names of modules, or globs over them; None: all.
        inplace: change ``model`` itself; False: a copy without wrappers, the original stays as it is.
        fold: add what the bias of the values contributes to the bias of the output, see ``fold_value_bias``.

    Returns:
        The model, or its copy; where the model itself is the attention, what takes its place.

    Raises:
        ValueError: if there is no such module, a target matches none, one computes in its own way (a subclass,
            parametrized weights), or its bias cannot be folded. Nothing is changed then.

    Example:
        >>> import secateur as sc
        >>> net = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True).eval()
        >>> opened, x = open_attention(net), torch.randn(2, 5, 8)
        >>> torch.allclose(opened(x), net(x), atol=1e-6)
        True
        >>> small = sc.shrink(opened, example_inputs=x, unit="head", units={"self_attn.in_proj_weight": [1]})
        >>> small.self_attn
        Attention(
          8, num_heads=3, head_dim=2, v_head_dim=2
          (out_proj): NonDynamicallyQuantizableLinear(in_features=6, out_features=8, bias=True)
        )
    """
    root = unwrap(model)
    chosen = _chosen(root, targets)
    for name, module in chosen.items():
        if isinstance(module, nn.MultiheadAttention):
            _check_plain(name, module)
        if fold:
            _check_foldable(root, name, module)
    if inplace and "" in chosen and not _is_open(root):
        raise ValueError(
            "inplace=True: the model itself is the attention, which cannot become another; take the result"
        )
    opened = root if inplace else copy.deepcopy(root)
    opened = replace_attention(opened, {name: {} for name in chosen})
    _bind_hooks(opened, chosen)
    if fold:
        for module in {id(m): m for m in map(opened.get_submodule, chosen)}.values():
            fold_value_bias(cast(Attention, module))
    if inplace:
        return model
    carry_mark(root, opened)
    return opened


def attentions(root: nn.Module) -> dict[str, Attention]:
    """The modules of a model that are open, under all their names."""
    return {
        name: cast(Attention, module) for name, module in root.named_modules(remove_duplicate=False) if _is_open(module)
    }


def fold_value_bias(module: Attention) -> None:
    """Move what the bias of the values contributes into the bias of the output, in place.

    The weights of a softmax sum to one, so with ``A`` the attention weights of a head
    ``W_o A (V + 1 b^T) = W_o A V + W_o b``: the same for every token. A head that is masked or removed afterwards
    leaves that constant behind; without folding it takes it along. Exact in eval mode; not for a token that may
    attend to nothing, nor under dropout.

    Args:
        module: an ``Attention``.

    Raises:
        ValueError: if the module has no bias, or keys and values of its own, which have none.

    Example:
        >>> attention, x = Attention(8, 4, batch_first=True), torch.randn(2, 5, 8)
        >>> _ = nn.init.normal_(attention.in_proj_bias)
        >>> before = attention(x, x, x)[0]
        >>> fold_value_bias(attention)
        >>> attention.in_proj_bias[-8:].abs().max().item(), torch.allclose(attention(x, x, x)[0], before, atol=1e-6)
        (0.0, True)
    """
    _check_foldable(module, "", module)
    assert module.in_proj_bias is not None, "checked"
    with torch.no_grad():
        values = module.in_proj_bias[-module.num_heads * module.v_head_dim :]
        module.out_proj.bias.add_(module.out_proj.weight @ values)
        values.zero_()


def open_as(root: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> Callable[[], None]:
    """Open the named modules in place and set their numbers; no tensor is touched.

    Args:
        root: an unwrapped module.
        sizes: module name -> numbers.

    Returns:
        What takes all of it back.

    Raises:
        ValueError: if a name is not that of an attention that can be opened; nothing is changed then.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    for name in sizes:
        module = modules.get(name)
        if module is None:
            raise ValueError(f"the file holds an attention {name!r}, and the module has none of that name")
        if isinstance(module, nn.MultiheadAttention):
            _check_plain(name, module)
            if not name:
                raise ValueError("the file holds an opened attention: load it into sc.open_attention(module)")
        elif not _is_open(module):
            raise ValueError(f"{name} is a {type(module).__name__}, and an attention in the file")
    numbers = [(m, key, getattr(m, key)) for n in sizes if _is_open(m := modules[n]) for key in sizes[n]]
    places = [(modules[name.rpartition(".")[0]], name.rpartition(".")[2], modules[name]) for name in sizes if name]
    flags = [(m, m.use_nested_tensor) for m in modules.values() if isinstance(m, nn.TransformerEncoder)]
    replace_attention(root, sizes)
    _bind_hooks(root, sizes)

    def undo() -> None:
        for parent, leaf, child in places:
            setattr(parent, leaf, child)
        for module, key, value in numbers:
            setattr(module, key, value)
        for module, flag in flags:
            module.use_nested_tensor = flag
        _bind_hooks(root, sizes)

    return undo


def _is_open(module: nn.Module) -> bool:
    """Ours, or the same class from a file that was written beside some weights."""
    return getattr(type(module), "kind", None) == Attention.kind


def _chosen(root: nn.Module, targets: str | Sequence[str] | None) -> dict[str, nn.Module]:
    known = {
        name: module
        for name, module in root.named_modules(remove_duplicate=False)
        if isinstance(module, nn.MultiheadAttention) or _is_open(module)
    }
    if not known:
        raise ValueError("the model has no nn.MultiheadAttention; other attention is traced as it is: sc.groups(...)")
    if targets is None:
        return known
    chosen: set[int] = set()
    for item in [targets] if isinstance(targets, str) else targets:
        found = {id(module) for name, module in known.items() if fnmatchcase(name, item)}
        if not found:
            raise ValueError(f"targets={item!r} matches no attention; there are {sorted(known)}")
        chosen |= found
    return {name: module for name, module in known.items() if id(module) in chosen}


def _check_plain(name: str, module: nn.MultiheadAttention) -> None:
    """Refuse what would not compute the same with another forward."""
    where = f"{name or 'the model'} ({type(module).__name__})"
    if type(module) is not nn.MultiheadAttention or "forward" in vars(module):
        raise ValueError(
            f"{where} computes in its own way, not as nn.MultiheadAttention does; leave it out by targets="
        )
    extra = sorted({*module._parameters, *module._buffers, *module._modules} - _PARAMETERS - {"out_proj"})
    if extra:
        raise ValueError(f"{where} has {extra} beside torch's own tensors; bake in what makes its weights first")


def _check_foldable(root: nn.Module, name: str, module: Any) -> None:
    where = name or "the attention"
    if module.in_proj_bias is None or module.out_proj.bias is None:
        raise ValueError(f"{where} has no bias to fold, or none to fold it into")
    if module.bias_v is not None or module.add_zero_attn:
        raise ValueError(
            f"{where} has a key and value of its own, which the bias is not added to: nothing can be folded"
        )
    for tensor in (module.in_proj_bias, module.out_proj.bias):
        if sum(one is tensor for part in root.modules() for one in part._parameters.values()) > 1:
            raise ValueError(f"{where} shares a bias with another layer, which folding would change")


def _bind_hooks(root: nn.Module, names: Mapping[str, Any]) -> None:
    """Load hooks that know their module have to know the one that is there now."""
    for module in map(root.get_submodule, names):
        for hook in _bound(module):
            hook.module = weakref.ref(module)


def _bound(module: nn.Module) -> Iterator[Any]:
    return (hook for hook in module._load_state_dict_pre_hooks.values() if getattr(hook, "with_module", False))
