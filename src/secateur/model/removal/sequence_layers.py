"""Attributes of recurrent and attention layers, from the shapes of their tensors."""

from __future__ import annotations

from collections import defaultdict

from torch import nn

from secateur.model.removal.plan import Value
from secateur.model.removal.resized import Resized

__all__ = ["attention", "cell", "flatten_again", "recurrent"]

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_CELLS: tuple[tuple[type[nn.Module], int], ...] = ((nn.LSTMCell, 4), (nn.GRUCell, 3), (nn.RNNCell, 1))
_READ, _ABOVE = "the width of weight_hh", "the input width above the first layer"


class _Facts:
    """What each tensor says about each size; they have to agree."""

    def __init__(self, layer: Resized) -> None:
        self._layer = layer
        self._said: dict[str, dict[int, str]] = defaultdict(dict)

    def says(self, size: str, value: int, tensor: str) -> None:
        self._said[size].setdefault(value, tensor)

    def agreed(self, size: str) -> int:
        values = self._said[size]
        if len(values) != 1:
            told = ", ".join(f"{tensor} says {value}" for value, tensor in values.items())
            raise ValueError(
                f"{self._layer.where}: {size} would not be one number: {told}; "
                "torch has one for all layers and directions, so remove equally many units of each"
            )
        return next(iter(values))

    def gates(self, tensor: str, gates: int, rows: int) -> None:
        """Rows of a tensor that has all gates one below the other, each keeping the same units."""
        layer = self._layer
        if rows % gates:
            raise ValueError(f"{layer.where}: {tensor} would have {rows} rows, which are no {gates} equal gates")
        self.says("hidden_size", rows // gates, tensor)
        kept = layer.positions(tensor, 0)
        old, new = layer.whole("hidden_size"), rows // gates
        if kept is not None and any(kept[g * new + k] != g * old + kept[k] for g in range(gates) for k in range(new)):
            raise ValueError(
                f"{layer.where}: the rows that stay of {tensor} are not the same units in each of its {gates} gates; "
                f"unit j has the rows j, j + {old}, ..., j + {(gates - 1) * old}"
            )


def recurrent(layer: Resized) -> dict[str, Value]:
    """LSTM, GRU and RNN: all layers and directions say the same sizes, or the plan is refused."""
    module = layer.module
    assert isinstance(module, nn.RNNBase), "the table's row"
    facts, gates = _Facts(layer), _GATES[module.mode]
    for depth in range(module.num_layers):
        for direction in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            end = f"_l{depth}{direction}"
            inputs, states = layer.shape(f"weight_ih{end}", 2), layer.shape(f"weight_hh{end}", 2)
            if inputs is None or states is None:
                return {}
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                shape = layer.shape(name + end)
                if shape is not None:
                    facts.gates(name + end, gates, shape[0])
            facts.says("input_size" if depth == 0 else _ABOVE, inputs[1], f"weight_ih{end}")
            facts.says(_READ, states[1], f"weight_hh{end}")
            projection = layer.shape(f"weight_hr{end}", 2)
            if projection is not None:
                facts.says("hidden_size", projection[1], f"weight_hr{end}")
                facts.says(_READ, projection[0], f"weight_hr{end}")
    hidden, state = facts.agreed("hidden_size"), facts.agreed(_READ)
    if module.proj_size == 0:
        facts.says("hidden_size", state, "weight_hh")
        facts.agreed("hidden_size")
    elif state >= hidden:
        raise ValueError(f"{layer.where}: proj_size {state} must stay smaller than hidden_size {hidden}")
    if module.num_layers > 1:
        facts.says(_ABOVE, state * (2 if module.bidirectional else 1), "the outputs of the layer below")
        facts.agreed(_ABOVE)
    sizes: dict[str, Value] = {"input_size": facts.agreed("input_size"), "hidden_size": hidden}
    return {**sizes, "proj_size": state} if module.proj_size else sizes


def cell(layer: Resized) -> dict[str, Value]:
    """LSTMCell, GRUCell and RNNCell."""
    inputs, states = layer.shape("weight_ih", 2), layer.shape("weight_hh", 2)
    gates = next((count for kind, count in _CELLS if isinstance(layer.module, kind)), None)
    if inputs is None or states is None or gates is None:
        return {}
    facts = _Facts(layer)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        shape = layer.shape(name)
        if shape is not None:
            facts.gates(name, gates, shape[0])
    facts.says("hidden_size", states[1], "weight_hh")
    return {"input_size": inputs[1], "hidden_size": facts.agreed("hidden_size")}


def flatten_again(root: nn.Module, changed: set[int]) -> None:
    """Let every recurrent layer whose weights moved lay them next to each other again, as cuDNN wants them."""
    for module in root.modules():
        if isinstance(module, nn.RNNBase) and any(id(tensor) in changed for tensor in module.parameters()):
            module.flatten_parameters()


def attention(layer: Resized) -> dict[str, Value]:
    """``nn.MultiheadAttention``, which has one width for queries, heads and output."""
    output, packed = layer.shape("out_proj.weight", 2), layer.shape("in_proj_weight", 2)
    if output is None:
        return {}
    embed = output[0]
    keys = values = (embed, embed)
    if packed is None:
        keys, values = layer.shape("k_proj_weight", 2) or keys, layer.shape("v_proj_weight", 2) or values
    needed = {
        "out_proj.weight": (embed, embed),
        "in_proj_weight": (3 * embed, embed),
        "q_proj_weight": (embed, embed),
        "k_proj_weight": (embed, keys[1]),
        "v_proj_weight": (embed, values[1]),
        "in_proj_bias": (3 * embed,),
        "out_proj.bias": (embed,),
        "bias_k": (1, 1, embed),
        "bias_v": (1, 1, embed),
    }
    for name, shape in needed.items():
        found = layer.shape(name)
        if found is not None and found != shape:
            raise ValueError(
                f"{layer.where}: {name} would be {found}, and torch asks for {shape}: its heads together are as wide "
                "as its output. To remove heads alone, put an attention module of your own in its place first"
            )
    heads = layer.whole("num_heads")
    if heads < 1 or embed % heads:
        raise ValueError(
            f"{layer.where}: a width of {embed} is no {heads} equal heads; keep a multiple of {heads}, "
            "or give num_heads among the removal's attributes"
        )
    sizes: dict[str, Value] = {"embed_dim": embed, "num_heads": heads, "head_dim": embed // heads}
    return {**sizes, "kdim": keys[1], "vdim": values[1]}
