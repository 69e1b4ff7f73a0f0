"""Experts out of mixture-of-experts layers: as if the router could not choose them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.integrations.experts import expert_usage, find_experts
from secateur.integrations.huggingface import remove_experts, shrink_pretrained
from tests.integrations.hf_models import auto_logits, inputs, logits, make


def without(model: Any, gone: dict[int, list[int]]) -> Any:
    """Mixtral whose routers choose among the others: written anew, token by token."""
    for layer, experts in gone.items():
        block = model.model.layers[layer].mlp

        def choose(
            hidden: Tensor, block: nn.Module = block, experts: list[int] = experts
        ) -> tuple[Tensor, Tensor, Tensor]:
            values = hidden.reshape(-1, hidden.shape[-1]) @ block.gate.weight.T
            shares, chosen = torch.zeros(len(values), 2), torch.zeros(len(values), 2, dtype=torch.int64)
            for token, row in enumerate(values):
                allowed = [one for one in range(len(row)) if one not in experts]
                best = sorted(allowed, key=lambda one: -float(row[one]))[:2]
                shares[token], chosen[token] = torch.softmax(row[best], 0), torch.tensor(best)
            return values, shares, chosen

        block.gate.forward = choose
    return model


def test_the_others_share_what_the_removed_ones_had(tmp_path: Path) -> None:
    given = inputs("mixtral")
    gone = {0: [1], 1: [3]}
    small = remove_experts(make("mixtral"), gone, example_inputs=given)
    expected = logits(without(make("mixtral"), gone), given)
    torch.testing.assert_close(logits(small, given), expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(auto_logits(small, given, tmp_path), expected, atol=1e-5, rtol=1e-4)
    assert small.config.num_local_experts == 3
    assert (expected - logits(make("mixtral"), given)).abs().max() > 0.01


def test_different_numbers_go_into_our_own_file(tmp_path: Path) -> None:
    given = inputs("mixtral")
    small = remove_experts(make("mixtral"), {1: [0, 2]}, example_inputs=given)
    torch.testing.assert_close(
        logits(small, given), logits(without(make("mixtral"), {1: [0, 2]}), given), atol=1e-5, rtol=1e-4
    )
    assert [layer.mlp.gate.num_experts for layer in small.model.layers] == [4, 2]
    sc.save(small, tmp_path / "small.safetensors")
    loaded = sc.load(tmp_path / "small.safetensors", into=make("mixtral"))
    torch.testing.assert_close(logits(loaded, given), logits(small, given))


def test_a_bias_of_the_router_goes_along(tmp_path: Path) -> None:
    model, given = make("deepseek"), inputs("deepseek")
    assert list(find_experts(model)) == [2]
    with torch.no_grad():
        model.model.layers[2].mlp.gate.e_score_correction_bias.normal_(std=0.05)
    small = remove_experts(model, {2: [1, 3]}, example_inputs=given)
    kept = [0, 2, 4]
    router, old = small.model.layers[2].mlp.gate, model.model.layers[2].mlp.gate
    assert torch.equal(router.e_score_correction_bias, old.e_score_correction_bias[kept])
    torch.testing.assert_close(auto_logits(small, given, tmp_path), logits(small, given), atol=1e-5, rtol=1e-5)


def test_usage_is_the_mean_share_of_the_router() -> None:
    model, given = make("mixtral"), inputs("mixtral")
    seen: list[Tensor] = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda _, args, out: seen.append(out[0].softmax(-1)))
    logits(model, given)
    torch.testing.assert_close(expert_usage(model, given)[1], seen[0].reshape(-1, 4).mean(0))


def test_the_experts_that_are_used_least_go() -> None:
    model, given = make("mixtral"), inputs("mixtral")
    usage = expert_usage(model, given)
    small = shrink_pretrained(model, example_inputs=given, experts=2)
    assert small.config.num_local_experts == 2
    for layer, share in usage.items():
        best = sorted(share.topk(2).indices.tolist())
        assert torch.equal(small.model.layers[layer].mlp.gate.weight, model.model.layers[layer].mlp.gate.weight[best])


@pytest.mark.parametrize(
    ("gone", "words"),
    [({0: [4]}, "experts 0 to 3"), ({5: [0]}, r"layers with experts: \[0, 1\]"), ({0: [0, 1, 2]}, "remove at most 2")],
)
def test_wrong_experts_are_named(gone: dict[int, list[int]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        remove_experts(make("mixtral"), gone, example_inputs=inputs("mixtral"))


def listed() -> Any:
    """Mixtral with its experts as modules in a list, as other packages and older releases have them."""

    class Expert(nn.Module):
        def __init__(self, up: Tensor, down: Tensor) -> None:
            super().__init__()
            self.up, self.down = nn.Parameter(up.clone()), nn.Parameter(down.clone())

        def forward(self, x: Tensor) -> Tensor:
            gate, up = (x @ self.up.T).chunk(2, dim=-1)
            return (nn.functional.silu(gate) * up) @ self.down.T

    class Experts(nn.ModuleList):
        def forward(self, x: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
            out = torch.zeros_like(x)
            for number, expert in enumerate(self):
                token, place = torch.where(chosen == number)
                out.index_add_(0, token, expert(x[token]) * shares[token, place, None])
            return out

    model = make("mixtral")
    for layer in model.model.layers:
        old = layer.mlp.experts
        layer.mlp.experts = Experts(Expert(up, down) for up, down in zip(old.gate_up_proj, old.down_proj, strict=True))
    return model


def test_experts_in_a_list_go_as_well() -> None:
    given = inputs("mixtral")
    torch.testing.assert_close(logits(listed(), given), logits(make("mixtral"), given), atol=1e-5, rtol=1e-4)
    small = remove_experts(listed(), {1: [0]}, example_inputs=given)
    torch.testing.assert_close(
        logits(small, given), logits(without(make("mixtral"), {1: [0]}), given), atol=1e-5, rtol=1e-4
    )
    assert [len(layer.mlp.experts) for layer in small.model.layers] == [4, 3]
