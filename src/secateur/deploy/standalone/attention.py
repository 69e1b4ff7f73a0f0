"""Attention with fewer or narrower heads than ``torch.nn.MultiheadAttention`` can have; needs PyTorch alone.

Beside the weights of a model this file is all that it takes to get the model back::

    from safetensors.torch import load_file

    net = load(MyNet(), load_file("model.safetensors"))

``MyNet()`` is the model as its class builds it. ``SIZES``, ``ATTRIBUTES`` and ``BUFFERS`` say what became smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ATTRIBUTES", "BUFFERS", "SIZES", "Attention", "load", "replace_attention"]

# fmt: off
SIZES: dict[str, dict[str, Any]] = {}
ATTRIBUTES: dict[str, dict[str, Any]] = {}
BUFFERS: dict[str, dict[int, list[int]]] = {}
# fmt: on


class Attention(nn.Module):
    """``torch.nn.MultiheadAttention`` with the number of heads, their widths and the scale of their own.

    ``softmax(scale q_h k_h^T + mask) v_h`` per head ``h``, side by side, times the output projection. Called like
    torch's module, with the same names of parameters: ``in_proj_weight`` holds ``num_heads * head_dim`` rows of
    queries, as many of keys, then ``num_heads * v_head_dim`` of values.

    Args:
        embed_dim: width of the queries and of the output.
        num_heads: heads.
        head_dim: width of the queries and keys of a head; None: ``embed_dim // num_heads``.
        v_head_dim: width of the values of a head; None: ``head_dim``.
        scale: of the scores; None: ``1 / sqrt(head_dim)``.
        dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype: as torch's module has them.
    """

    kind = "secateur.attention"
    # Torch's encoder layer looks here before it hands its tensors to a fused kernel that knows one width only.
    _qkv_same_embed_dim = False
    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        v_head_dim: int | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads if head_dim is None else head_dim
        self.v_head_dim = self.head_dim if v_head_dim is None else v_head_dim
        self.scale = self.head_dim**-0.5 if scale is None else scale
        self.dropout, self.batch_first, self.add_zero_attn = dropout, batch_first, add_zero_attn
        rows, values = num_heads * self.head_dim, num_heads * self.v_head_dim
        apart = kdim not in (None, embed_dim) or vdim not in (None, embed_dim)
        shapes: dict[str, tuple[int, ...] | None] = {
            "in_proj_weight": None if apart else (2 * rows + values, embed_dim),
            "q_proj_weight": (rows, embed_dim) if apart else None,
            "k_proj_weight": (rows, kdim or embed_dim) if apart else None,
            "v_proj_weight": (values, vdim or embed_dim) if apart else None,
            "in_proj_bias": (2 * rows + values,) if bias else None,
            "bias_k": (1, 1, rows) if add_bias_kv else None,
            "bias_v": (1, 1, values) if add_bias_kv else None,
        }
        for name, shape in shapes.items():
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.out_proj = nn.Linear(values, embed_dim, bias=bias, device=device, dtype=dtype)
        if torch.device(device or "cpu").type != "meta":
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """New weights, drawn as torch draws them; biases of zero."""
        for name, parameter in self.named_parameters(recurse=False):
            if name in ("bias_k", "bias_v"):
                nn.init.xavier_normal_(parameter)
            elif parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
        if self.out_proj.bias is not None:
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def of(cls, module: nn.MultiheadAttention) -> Attention:
        """Take over the parameters, the output projection and the hooks of torch's module: the same objects."""
        new = cls(
            module.embed_dim,
            module.num_heads,
            dropout=module.dropout,
            kdim=module.kdim,
            vdim=module.vdim,
            add_zero_attn=module.add_zero_attn,
            batch_first=module.batch_first,
            device="meta",
        )
        for name in new._parameters:
            new._parameters[name] = getattr(module, name)
        new.out_proj = module.out_proj
        new.__dict__.update({name: value for name, value in vars(module).items() if "hook" in name})
        new.training = module.training
        return new

    def sizes(self) -> dict[str, int | float]:
        """The numbers that no shape of a tensor tells for sure."""
        return {name: getattr(self, name) for name in ("num_heads", "head_dim", "v_head_dim", "scale")}

    @property
    def embed_dim(self) -> int:
        """Width of the queries."""
        return self.get_parameter("q_proj_weight" if self.in_proj_weight is None else "in_proj_weight").shape[1]

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"{self.embed_dim}, num_heads={self.num_heads}, head_dim={self.head_dim}, v_head_dim={self.v_head_dim}"

    def check(self) -> None:
        """Raise ``ValueError`` where a tensor does not fit the number of heads and their widths."""
        rows, values = self.num_heads * self.head_dim, self.num_heads * self.v_head_dim
        needed = [(f"{part}_proj_weight", 0, size) for part, size in (("q", rows), ("k", rows), ("v", values))]
        needed += [(name, 0, 2 * rows + values) for name in ("in_proj_weight", "in_proj_bias")]
        needed += [("bias_k", 2, rows), ("bias_v", 2, values), ("out_proj.weight", 1, values)]
        tensors = {**self._parameters, "out_proj.weight": self.out_proj.weight}
        for name, dim, size in needed:
            tensor = tensors[name]
            if tensor is not None and tensor.shape[dim] != size:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}; {self.num_heads} heads of {self.head_dim} (values "
                    f"{self.v_head_dim}) need {size} along axis {dim}"
                )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``torch.nn.MultiheadAttention.forward``: the same arguments, the same two results."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("nested tensors are not attended to; give a padded tensor and key_padding_mask")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask, which has to be given beside it")
        batched = query.dim() == 3
        q, k, v = self._heads(query, key, value)
        mask = self._added(attn_mask, key_padding_mask, q, k.shape[2])
        rate = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * self.scale) @ k.transpose(-2, -1)
            weights = F.dropout(F.softmax(scores if mask is None else scores + mask, dim=-1), rate, self.training)
            mixed = weights @ v
        else:
            weights, hint = None, is_causal and key_padding_mask is None
            given = None if hint else mask
            mixed = F.scaled_dot_product_attention(q, k, v, given, rate, hint, scale=self.scale)
        out = self.out_proj(mixed.permute(2, 0, 1, 3).flatten(2))  # laid out as torch does: dropout draws in that order
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return out.squeeze(1), None if weights is None else weights.squeeze(0)
        return out.transpose(0, 1) if self.batch_first else out, weights

    def _in_weights(self, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        if self.in_proj_weight is None:
            return tuple(self.get_parameter(f"{part}_proj_weight") for part in "qkv")
        return self.in_proj_weight.split(sizes)

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        rows, values = self.num_heads * self.head_dim, self.num_heads * self.v_head_dim
        sizes = (rows, rows, values)
        if self.in_proj_weight is not None and query is key and key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, dim=-1)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        given = zip((query, key, value), self._in_weights(sizes), biases, strict=True)
        return tuple(F.linear(x, w, b) for x, w, b in given)

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``[batch, heads, length, width]``."""
        parts = self._project(query, key, value)
        if query.dim() == 2:
            parts = tuple(part.unsqueeze(0) for part in parts)
        elif not self.batch_first:
            parts = tuple(part.transpose(0, 1) for part in parts)
        q, k, v = parts
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
        q, k = (x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for x in (q, k))
        v = v.unflatten(-1, (self.num_heads, self.v_head_dim)).transpose(1, 2)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _added(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, length: int) -> Tensor | None:
        """What is added to the scores, ``[1 or batch, 1 or heads, 1 or queries, keys]``."""
        batch, heads, queries, _ = q.shape
        own = int(self.bias_k is not None) + int(self.add_zero_attn)
        keys = length - own
        found: Tensor | None = None
        if attn_mask is not None:
            shape = (queries, keys) if attn_mask.dim() == 2 else (batch * heads, queries, keys)
            if attn_mask.shape != shape:
                raise ValueError(f"attn_mask has shape {tuple(attn_mask.shape)}; with {heads} heads it is {shape}")
            found = _as_numbers(attn_mask, q)
            found = found[None, None] if found.dim() == 2 else found.unflatten(0, (batch, heads))
        if padding is not None:
            numbers = _as_numbers(padding, q)
            if numbers.shape != ((keys,) if numbers.dim() == 1 else (batch, keys)):
                raise ValueError(f"key_padding_mask has shape {tuple(padding.shape)}; it is {(batch, keys)}")
            numbers = numbers.view(batch, 1, 1, keys)
            found = numbers if found is None else found + numbers
        return found if found is None or not own else F.pad(found, (0, own))


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as what is added to scores: True of a boolean mask becomes minus infinity."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
    return mask.to(like.dtype)


def replace_attention(model: nn.Module, sizes: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    """Put ``Attention`` in the place of torch's modules; parameters stay the objects they are.

    Args:
        model: as its class builds it; may hold such modules already. Changed in place.
        sizes: name of a module -> numbers to set (``Attention.sizes``); no tensor is resized here.
    """
    made: dict[int, Attention] = {}
    old = {name: model.get_submodule(name) for name in sizes}
    for name, module in old.items():
        if isinstance(module, nn.MultiheadAttention):
            made.setdefault(id(module), Attention.of(module))
        elif getattr(module, "kind", None) != Attention.kind:
            raise ValueError(f"{name} is a {type(module).__name__}, where an nn.MultiheadAttention was expected")
    for name, module in old.items():
        new = made.get(id(module), module)
        for key, value in sizes[name].items():
            setattr(new, key, value)
        parent, _, leaf = name.rpartition(".")
        if new is not module and name:
            setattr(model.get_submodule(parent), leaf, new)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(part, Attention) for part in module.modules()):
            module.use_nested_tensor = False  # nested tensors go with the fused kernel
    return made.get(id(model), model)


def load(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a model, as its class builds it, the shapes and the values that this file was written for.

    Args:
        model: changed in place, and returned; nothing of it is worth keeping if this fails.
        state: tensor name -> value; of tensors that the model ties, one name is enough.
    """
    model = replace_attention(model, SIZES)
    found, own = dict(state), model.state_dict(keep_vars=True)
    known = {id(tensor): found[name] for name, tensor in own.items() if name in found}
    found |= {name: known[id(tensor)] for name, tensor in own.items() if name not in found and id(tensor) in known}
    for name, tensor in own.items():
        if name in found and found[name].shape != tensor.shape:
            tensor.data = tensor.data.new_empty(found[name].shape)
    for name, values in ATTRIBUTES.items():
        for key, value in values.items():
            setattr(model.get_submodule(name), key, value)
    for name, axes in BUFFERS.items():
        buffer = model.get_buffer(name)
        for dim, positions in axes.items():
            buffer.data = buffer.data.index_select(dim, torch.tensor(positions, device=buffer.device))
    model.load_state_dict(found)
    return model
