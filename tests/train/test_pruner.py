"""The pruner in training loops: when it prunes, what it reads, and that it resumes bit for bit."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.train import Plan, Pruner
from tests.train.loops import batch, mlp, steps, zeros


def test_masks_change_at_the_plan_s_steps_and_hold_in_between():
    net = mlp()
    pruner = Pruner(net, Plan(0.8, schedule="cubic", begin=3, end=12, every=4))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=0.1)
    pruner.attach(optimizer)
    seen = []
    for step in range(15):
        steps(net, optimizer, step, step + 1)
        seen.append(zeros(net))
    total = 12 * 16 + 16 * 3

    def due(step: int) -> int:
        progress = min(1.0, (step - 3) / 9)
        return int((0.8 - 0.8 * (1 - progress) ** 3) * total + 0.5)

    expected = [0, 0, 0, 0, 0, 0, *[due(7)] * 4, due(11), *[due(12)] * 4]
    assert seen == expected
    assert [(p.step, p.kept) for p in pruner.history] == [(s, total - due(s)) for s in (3, 7, 11, 12)]


def test_one_shot_at_zero_prunes_when_the_optimizer_is_attached():
    net = mlp()
    pruner = Pruner(net, Plan(0.5, criterion="snip"), data=batch(0), loss=F.cross_entropy)
    assert zeros(net) == 0
    pruner.attach(torch.optim.SGD(net.parameters(), 0.1))
    assert zeros(net) == 120
    assert pruner.clock == 0


def test_step_drives_rounds_without_an_optimizer():
    net = mlp()
    pruner = Pruner(net, Plan(0.9, schedule="geometric", begin=0, end=5))
    shares = []
    for _ in range(5):
        pruner.step()
        shares.append(round(pruner.masks.shares().units, 2))
    assert shares == [0.37, 0.60, 0.75, 0.84, 0.90]  # catalogue 6.2 [N, B3]
    pruner.step()
    assert round(pruner.masks.shares().units, 2) == 0.90


def test_gradients_are_read_from_training_where_no_data_is_given():
    """The streamed |g| is the mean over the steps since the last update, of gradients before masking."""
    net = mlp()
    plan = Plan(0.5, criterion="snip", schedule="linear", begin=0, end=6, every=3)
    pruner = Pruner(net, plan)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    pruner.attach(optimizer)
    sums: dict[str, Tensor] = {}
    for step in range(3):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        for name, p in net.named_parameters():
            if p.dim() > 1:
                sums[name] = sums.get(name, torch.zeros_like(p)) + p.grad.abs() / 3
        if step < 2:
            optimizer.step()
    oracle = copy.deepcopy(net)
    optimizer.step()
    with torch.no_grad():
        for p in oracle.parameters():
            p -= 0.1 * net.get_parameter(next(n for n, q in oracle.named_parameters() if q is p)).grad
    scores = {n: p.detach().abs() * sums[n] for n, p in oracle.named_parameters() if p.dim() > 1}
    flat = torch.cat([s.flatten() for s in scores.values()])
    removed = flat.argsort(stable=True)[: int(0.25 * flat.numel() + 0.5)]
    actual = (~torch.cat([pruner.masks[n].flatten() for n in scores])).nonzero().flatten()
    assert sorted(removed.tolist()) == sorted(actual.tolist())


def test_streaming_before_any_gradient_is_refused_with_advice():
    net = mlp()
    pruner = Pruner(net, Plan(0.5, criterion="snip"))
    with pytest.raises(ValueError, match="begin pruning after the first"):
        pruner.attach(torch.optim.SGD(net.parameters(), 0.1))


def test_movement_and_its_namesake_work_from_initial_weights_and_from_training():
    for criterion in ("movement", "movement_sanh", "magnitude_increase", "large_init"):
        net = mlp()
        first = {n: p.detach().clone() for n, p in net.named_parameters()}
        pruner = Pruner(net, Plan(0.5, criterion=criterion, begin=4))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        pruner.attach(optimizer)
        moved: dict[str, Tensor] = {n: torch.zeros_like(p) for n, p in first.items()}
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for n, p in net.named_parameters():
                moved[n] -= p.grad * p.detach()
            optimizer.step()
        final = mlp()
        plain = torch.optim.SGD(final.parameters(), 0.1)
        steps(final, plain, 0, 4)
        scores = {
            "movement": lambda n, w, first=first: (w - first[n]).abs(),
            "movement_sanh": lambda n, w, moved=moved: moved[n],
            "magnitude_increase": lambda n, w, first=first: w.abs() - first[n].abs(),
            "large_init": lambda n, w, first=first: first[n].abs(),
        }[criterion]
        flat = torch.cat([scores(n, p.detach()).flatten() for n, p in final.named_parameters() if p.dim() > 1])
        removed = flat.argsort(stable=True)[:120]
        actual = (~torch.cat([pruner.masks[n].flatten() for n in pruner.masks])).nonzero().flatten()
        assert sorted(removed.tolist()) == sorted(actual.tolist()), criterion


def test_soft_masks_let_values_come_back_and_hard_masks_do_not():
    def run(policy: str) -> tuple[Pruner, set[int], list[Tensor]]:
        net = mlp()
        plan = Plan(0.5, initial=0.5, criterion="random", schedule="linear", begin=0, end=8, every=4, policy=policy)  # type: ignore[arg-type]
        pruner = Pruner(net, plan)
        masks: list[Tensor] = []
        values: list[Tensor] = []
        for seed in range(3):
            object.__setattr__(pruner._source, "seed", seed)
            pruner._clock = 4 * seed
            pruner._update_if_due()
            masks.append(torch.cat([pruner.masks[n].flatten() for n in pruner.masks]))
            values.append(torch.cat([net.get_parameter(n).detach().flatten() for n in pruner.masks]))
        returned = {int(i) for i in (masks[2] & ~masks[0]).nonzero()}
        return pruner, returned, values

    _, returned, _ = run("hard")
    assert returned == set()
    _, returned, values = run("soft")
    assert returned
    dense = torch.cat([p.detach().flatten() for p in mlp().parameters() if p.dim() > 1])
    for i in returned:
        assert values[0][i] == 0
        assert values[2][i] == dense[i]


def test_movement_under_the_soft_policy_goes_on_with_the_value_kept_aside():
    """Sanh et al.: the score of a masked weight still moves by gradient times stored weight (straight through)."""
    net = mlp()
    plan = Plan(
        0.5, criterion="movement_sanh", policy="soft", begin=2, schedule="linear", end=50, every=48, initial=0.4
    )
    pruner = Pruner(net, plan)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    pruner.attach(optimizer)
    steps(net, optimizer, 0, 2)
    name = "0.weight"
    removed = ~pruner.masks[name]
    before = pruner._stream.evidence()["movement"][name].clone()
    pruner.masks.restore_values()
    stored = net[0].weight.detach().clone()
    pruner.masks.apply()
    x, y = batch(2)
    optimizer.zero_grad()
    F.cross_entropy(net(x), y).backward()
    gradient = net[0].weight.grad.clone()
    optimizer.step()
    after = pruner._stream.evidence()["movement"][name]
    torch.testing.assert_close(after - before, -gradient * stored)
    assert (after - before)[removed].abs().sum() > 0
    assert (net[0].weight[removed] == 0).all()


def test_what_is_no_plan_is_refused():
    with pytest.raises(ValueError, match=r"plan=0.9: give a Plan"):
        Pruner(mlp(), 0.9)  # type: ignore[arg-type]


def test_undoing_ends_the_pruner():
    pruner = Pruner(mlp(), Plan(0.5, schedule="linear", end=4))
    pruner.step()
    pruner.masks.undo()
    with pytest.raises(ValueError, match="these masks were undone"):
        pruner.step()


def test_only_one_clock():
    net = mlp()
    pruner = Pruner(net, Plan(0.5, begin=3))
    with pytest.raises(ValueError, match="already has masks"):
        Pruner(net, Plan(0.5))
    one = torch.optim.SGD(net[0].parameters(), 0.1)
    two = torch.optim.SGD(net[2].parameters(), 0.1)
    pruner.attach(one)
    with pytest.raises(ValueError, match="already drives"):
        pruner.attach(two)
    with pytest.raises(ValueError, match="drives this pruner"):
        pruner.step()
    pruner.masks.attach(two)
    for step in range(6):
        x, y = batch(step)
        F.cross_entropy(net(x), y).backward()
        one.step()
        two.step()
        assert pruner.clock == step + 1
    pruner.masks.check()
    assert zeros(net) == 120


def test_a_new_optimizer_may_take_over_where_the_old_one_is_gone_or_detached():
    net = mlp()
    pruner = Pruner(net, Plan(0.8, schedule="linear", end=6))
    one = torch.optim.SGD(net.parameters(), 0.1)
    pruner.attach(one)
    steps(net, one, 0, 2)
    two = torch.optim.SGD(net.parameters(), 0.1)
    with pytest.raises(ValueError, match=r"pruner\.detach\(\)"):
        pruner.attach(two)
    pruner.detach()
    pruner.attach(two)
    steps(net, two, 2, 4)
    steps(net, one, 4, 5)
    assert pruner.clock == 4, "the first optimizer is no clock any more"
    del one, two
    gc.collect()
    pruner.attach(torch.optim.SGD(net.parameters(), 0.1))


def test_a_step_with_a_closure_is_observed_and_masked_after_it():
    """LBFGS and Lightning make the gradients inside the step: what the pruner reads must be those."""

    def run(closure: bool) -> tuple[nn.Module, Pruner]:
        net = mlp()
        pruner = Pruner(net, Plan(0.5, criterion="snip", schedule="linear", begin=1, end=5))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        pruner.attach(optimizer)
        for at in range(6):
            x, y = batch(at)

            def evaluate(x: Tensor = x, y: Tensor = y) -> Tensor:
                optimizer.zero_grad()
                loss = F.cross_entropy(net(x), y)
                loss.backward()
                return loss

            if closure:
                optimizer.step(evaluate)
            else:
                evaluate()
                optimizer.step()
        return net, pruner

    (plain, one), (closed, two) = run(False), run(True)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), closed.parameters(), strict=True))
    assert one.history == two.history


def test_a_failed_update_leaves_the_masks_in_force():
    net = mlp()
    pruner = Pruner(net, Plan(0.5, initial=0.3, schedule="linear", begin=0, end=4, every=2, policy="soft"))
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    pruner.attach(optimizer)
    kept = {n: pruner.masks[n].clone() for n in pruner.masks}
    with torch.no_grad():
        net[0].weight[kept["0.weight"]] = float("nan")
    with pytest.raises(ValueError, match=r"0\.weight"):
        steps(net, optimizer, 0, 2)
    assert all(torch.equal(pruner.masks[n], kept[n]) for n in kept)
    assert all((net.get_parameter(n)[~kept[n]] == 0).all() for n in kept)


def test_the_public_names_are_documented():
    for name in sc.__all__:
        assert getattr(sc, name).__doc__, name
