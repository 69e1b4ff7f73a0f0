"""Fewer tokens: rows of the embedding and of the head that go with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from secateur.integrations.configs import number, rebuilt
from secateur.model.graph.examples import Example, as_examples, tensors_in
from secateur.model.graph.probe import difference, outputs_of
from secateur.model.names import unwrap
from secateur.model.removal import Removal, remove
from secateur.model.removal.named import other_names, tensors_by_name

__all__ = ["shrink_vocabulary"]

_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def shrink_vocabulary(
    model: nn.Module,
    keep_ids: Sequence[int] | Tensor,
    *,
    embedding: str | None = None,
    head: str | None = None,
    example_inputs: Any = None,
) -> tuple[Any, Tensor]:
    """Keep some tokens only: rows of the embedding and of the head, tied or not, with its bias.

    The smaller model's logits are the old model's at ``keep_ids``, for inputs of those tokens:
    ``small(id_map[ids]).logits == model(ids).logits[..., keep_ids]`` with ``keep_ids`` in rising order. Of a
    ``transformers`` model the configuration follows: the size, and the numbers of special tokens, also those of
    generation. The tokenizer has to follow as well; ``id_map`` says how.

    Args:
        model: any module; it is not changed.
        keep_ids: the tokens that stay, in any order.
        embedding: name of the embedding; None: that of a ``transformers`` model.
        head: name of the linear layer that makes logits; None: that of a ``transformers`` model, else there is none.
        example_inputs: whose integers are tokens that stay; what the models are compared on. None: random tokens for
            a ``transformers`` model; of any other only the two layers are compared.

    Returns:
        ``(smaller model, id_map)``; ``id_map [vocabulary]`` int64: new number of a token, -1 for one that is gone.

    Raises:
        ValueError: for unknown tokens or layers, if a special token would go, or if the models disagree.

    Example:
        >>> net = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5))
        >>> small, id_map = shrink_vocabulary(net, [0, 2, 4], embedding="0", head="1")
        >>> ids = torch.tensor([[4, 2]])
        >>> torch.equal(small(id_map[ids]), net(ids)[..., [0, 2, 4]]), id_map.tolist()
        (True, [0, -1, 1, -1, 2])
    """
    root = unwrap(model)
    pretrained = hasattr(root, "config") and hasattr(root, "get_input_embeddings")
    first, last = _layers(root, embedding, head, pretrained)
    size = _rows(root, first)
    kept = _kept(keep_ids, size)
    id_map = torch.full((size,), -1, dtype=torch.int64)
    id_map[kept] = torch.arange(len(kept))
    special = _special(root, id_map) if pretrained else {}
    small = copy.deepcopy(root)
    remove(small, _removal(root, first, last, kept, size))
    examples = _examples(root, example_inputs, kept, pretrained)
    if pretrained:
        old = number(root.config, "vocabulary")
        assert old is not None
        _set_special(small, special)
        small = rebuilt(small, "vocabulary", old, len(kept), _mapped(examples, id_map))
    problem = _disagree(root, small, examples, id_map, kept) or _layers_disagree(root, small, (first, last), kept)
    if problem:
        raise ValueError(f"nothing was changed: with {len(kept)} of {size} tokens {problem}")
    return small, id_map


def _layers(root: nn.Module, embedding: str | None, head: str | None, pretrained: bool) -> tuple[str, str | None]:
    names = {id(module): name for name, module in root.named_modules()}
    if embedding is None:
        if not pretrained:
            raise ValueError(
                "embedding=None: of a model that is not of the transformers package, give the names of the embedding "
                "and of the head, as in embedding='encoder.embedding', head='decoder'"
            )
        embedding = names[id(root.get_input_embeddings())]  # pyright: ignore[reportCallIssue]
        found = root.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        head = names[id(found)] if found is not None and head is None else head
    modules = dict(root.named_modules())
    for given, name, kind in (("embedding", embedding, nn.Embedding), ("head", head, nn.Linear)):
        if name is not None and not isinstance(modules.get(name), kind):
            known = [other for other, module in modules.items() if isinstance(module, kind)]
            raise ValueError(f"{given}={name!r} is no {kind.__name__} of the model; there are {known[:12]}")
    return embedding, head


def _rows(root: nn.Module, layer: str) -> int:
    return root.get_parameter(f"{layer}.weight").shape[0]


def _kept(keep_ids: Sequence[int] | Tensor, size: int) -> list[int]:
    kept = sorted({int(one) for one in keep_ids})
    if not kept or kept[0] < 0 or kept[-1] >= size:
        raise ValueError(f"keep_ids names {len(kept)} tokens from {kept[:1]} to {kept[-1:]}; there are 0 to {size - 1}")
    return kept


def _removal(root: nn.Module, first: str, last: str | None, kept: list[int], size: int) -> Removal:
    """Rows of the embedding and of the head, and of biases that the model keeps beside them."""
    tensors, others = tensors_by_name(root), other_names(root)
    names = [f"{first}.weight"]
    if last is not None:
        names += [f"{last}.weight", f"{last}.bias"]
        if _rows(root, last) != size:
            raise ValueError(f"head={last!r} makes {_rows(root, last)} logits for {size} tokens")
    rows = {others.get(name, name): {0: tuple(kept)} for name in names if others.get(name, name) in tensors}
    if "final_logits_bias" in tensors:
        rows["final_logits_bias"] = {1: tuple(kept)}
    return Removal(rows)


def _special(root: Any, id_map: Tensor) -> dict[str, Any]:
    """Every number of a special token of the configurations, as it will be: ``"config.eos_token_id"`` -> 1."""
    found: dict[str, Any] = {}
    for owner in ("config", "generation_config"):
        for name, value in vars(getattr(root, owner, None) or root.config).items():
            if name in _LISTS and isinstance(value, (list, tuple)):
                found[f"{owner}.{name}"] = [int(id_map[one]) for one in value if int(id_map[one]) >= 0]
            elif name.endswith("_token_id") and value is not None:
                found[f"{owner}.{name}"] = _moved(value, id_map, f"{owner}.{name}")
    return found


def _moved(value: Any, id_map: Tensor, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return [_moved(one, id_map, where) for one in value]
    if not 0 <= value < len(id_map):  # -1 and the like stand for "none"
        return value
    if int(id_map[value]) < 0:
        raise ValueError(f"keep_ids leaves out token {value}, which is {where}; add it, or set that to None first")
    return int(id_map[value])


def _set_special(small: Any, special: Mapping[str, Any]) -> None:
    configs = {id(c): c for m in small.modules() if (c := getattr(m, "config", None)) is not None}
    for key, value in special.items():
        owner, _, name = key.partition(".")
        if owner == "config":
            for config in configs.values():
                setattr(config, name, value)
        elif getattr(small, owner, None) is not None:
            setattr(getattr(small, owner), name, value)


def _examples(root: Any, given: Any, kept: list[int], pretrained: bool) -> list[Example]:
    if given is not None:
        examples = as_examples(given)
        tokens = [t for e in examples for t in tensors_in((e.args, e.kwargs)) if _is_ids(t)]
        gone = sorted({int(one) for t in tokens for one in t.unique()} - set(kept))
        if gone:
            raise ValueError(f"example_inputs= holds tokens {gone[:8]} that keep_ids leaves out; use tokens that stay")
        return examples
    if not pretrained:
        return []
    chosen = torch.randint(len(kept), (2, 8), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(kept)[chosen].to(root.device)
    more = {"decoder_input_ids": ids.flip(1)} if root.config.is_encoder_decoder else {}
    return [Example((), {"input_ids": ids, **more})]


def _is_ids(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.int64, torch.int32)


def _mapped(examples: Sequence[Example], id_map: Tensor) -> list[Example]:
    """The same inputs by the new numbers; masks of integers are not tokens."""

    def one(value: Any, name: str = "") -> Any:
        if isinstance(value, Tensor):
            return id_map.to(value.device)[value.long()] if _is_ids(value) and "mask" not in name else value
        if isinstance(value, Mapping):
            return {key: one(item, str(key)) for key, item in value.items()}
        return type(value)(one(item) for item in value) if isinstance(value, (tuple, list)) else value

    return [Example(one(tuple(example.args)), one(dict(example.kwargs))) for example in examples]


def _disagree(root: nn.Module, small: nn.Module, examples: Sequence[Example], id_map: Tensor, kept: list[int]) -> str:
    for example, mapped in zip(examples, _mapped(examples, id_map), strict=True):
        expected, got = outputs_of(root, example), outputs_of(small, mapped)
        picked = [
            a[..., kept] if a.dim() and a.shape[-1] == len(id_map) and b.shape[-1:] == (len(kept),) else a
            for a, b in zip(expected, got, strict=False)
        ]
        problem = difference(picked, got, exact=True)
        if problem:
            return problem
    return ""


def _layers_disagree(root: nn.Module, small: nn.Module, names: tuple[str, str | None], kept: list[int]) -> str:
    """The rows of both layers, one by one."""
    for name in names:
        if name is not None:
            old, new = root.get_submodule(name), small.get_submodule(name)
            for leaf in ("weight", "bias"):
                rows = getattr(old, leaf, None)
                if rows is not None and not torch.equal(rows[kept], getattr(new, leaf)):
                    return f"{name}.{leaf} holds other rows"
    return ""
