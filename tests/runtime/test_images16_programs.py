"""Programs in which some layers run image by image and others on 16 images side by side; and the path that chooses."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import Tensor

from secateur.native.loading import core
from secateur.runtime.choose import choose, fits, layouts_of, pack_layer
from secateur.runtime.conv_layouts import beside_of
from secateur.runtime.geometry import is_image
from secateur.runtime.graph import KINDS, Graph, Node, reference
from secateur.runtime.linear import ACTIVATIONS
from secateur.runtime.lineups import best_layouts, lineups, turn_times
from secateur.runtime.paths import Costs, cheapest
from secateur.runtime.program import Program
from tests.native.oracle import instruction_sets, needs_core

pytestmark = needs_core


def conv(
    output: str, source: str, channels: tuple[int, int, int], stride: int = 1, other: str = "", act: str = "relu"
) -> Node:
    """``channels``: in, out, size of the kernel."""
    inputs, outputs, kernel = channels
    weight = torch.randn(outputs, inputs, kernel, kernel) * (torch.rand(outputs, inputs, kernel, kernel) < 0.3)
    return Node(
        kind="conv", output=output, inputs=(source, other) if other else (source,), weight=weight,
        bias=torch.randn(outputs), activation=act or None, residual=bool(other), kernel=(kernel, kernel),
        stride=(stride, stride), padding=(kernel // 2, kernel // 2),
    )  # fmt: skip


def window(kind: str, output: str, source: str, kernel: int, padding: int) -> Node:
    return Node(
        kind=kind, output=output, inputs=(source,), kernel=(kernel, kernel), stride=(2, 2), padding=(padding, padding)
    )


@pytest.fixture(scope="module")
def network() -> Graph:
    """Stem, pools, two residual blocks, a sum, three heads; four outputs, of which two are images."""
    torch.manual_seed(0)
    nodes = (
        conv("a", "x", (3, 16, 7), 2),
        window("max_pool", "p", "a", 3, 1),
        conv("b", "p", (16, 6, 1)),
        conv("c", "b", (6, 6, 3)),
        conv("d", "c", (6, 16, 1), 1, "p"),
        conv("e", "d", (16, 20, 1), 2, act=""),
        conv("f", "d", (16, 5, 1)),
        conv("g", "f", (5, 5, 3), 2, act="gelu"),
        conv("h", "g", (5, 20, 1), 1, "e"),
        Node(kind="add", output="s", inputs=("h", "e"), residual=True, activation="relu"),
        window("average_pool", "q", "s", 2, 0),
        Node(kind="mean", output="m", inputs=("s",)),
        Node(kind="flatten", output="n", inputs=("m",)),
        Node(kind="linear", output="y", inputs=("n",), weight=torch.randn(7, 20), bias=torch.randn(7)),
        Node(kind="flatten", output="o", inputs=("s",)),
        Node(kind="linear", output="z", inputs=("o",), weight=torch.randn(4, 320), bias=torch.randn(4)),
    )
    shapes = {
        "x": (3, 31, 31), "a": (16, 16, 16), "p": (16, 8, 8), "b": (6, 8, 8), "c": (6, 8, 8), "d": (16, 8, 8),
        "e": (20, 4, 4), "f": (5, 8, 8), "g": (5, 4, 4), "h": (20, 4, 4), "s": (20, 4, 4), "q": (20, 2, 2),
        "m": (20, 1, 1), "n": (20,), "y": (7,), "o": (320,), "z": (4,),
    }  # fmt: skip
    return Graph(nodes, shapes, ("x",), ("y", "z", "q", "d"))


def exact(graph: Graph, x: Tensor) -> list[Tensor]:
    """The graph in float64."""
    values = {graph.inputs[0]: x.double()}
    for node in graph.nodes:
        copy = Node(**{name: getattr(node, name) for name in Node.__dataclass_fields__})
        for name in ("weight", "bias"):
            tensor = getattr(node, name)
            object.__setattr__(copy, name, None if tensor is None else tensor.double())
        y = KINDS[node.kind].run(copy, values[node.inputs[0]])
        y = y.reshape(len(y), *graph.shapes[node.output])
        y = y + values[node.inputs[-1]] if node.residual else y
        values[node.output] = ACTIVATIONS[node.activation][1](y)
    return [values[name] for name in graph.outputs]


def program_of(graph: Graph, ways: dict[str, int], isa: str, pick: random.Random) -> Program:
    """Convolutions with so many images side by side; which kernel is left to chance."""
    weights = {}
    for node in graph.nodes:
        if node.weight is not None:
            names = [name for name in layouts_of(graph, node, 16) if beside_of(name) == ways.get(node.output, 1)]
            weights[node.output] = pack_layer(graph, node, pick.choice(names))
    return Program(graph, weights, 16, core.table(isa), poison=True)


def test_what_a_span_reads_from_outside_stays_for_all_images() -> None:
    """`c` would be laid over `a`, which nobody reads after `b`, if that were free before the last image."""
    torch.manual_seed(1)
    channels = {"x": 1, "a": 1, "b": 1, "c": 24, "d": 1}
    nodes = tuple(conv(y, x, (channels[x], channels[y], 3)) for x, y in itertools.pairwise("xabcd"))
    graph = Graph(nodes, {name: (count, 9, 9) for name, count in channels.items()}, ("x",), ("d",))
    x = torch.randn(16, 1, 9, 9)
    program = program_of(graph, {"a": 16, "b": 1, "c": 1, "d": 1}, "portable", random.Random(0))
    torch.testing.assert_close(program.run([x])[0].double(), exact(graph, x)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", instruction_sets())
def test_any_mixture_gives_the_same(isa: str, network: Graph) -> None:
    pick = random.Random(1)
    convs = [node.output for node in network.nodes if node.kind == "conv"]
    mixtures = [dict.fromkeys(convs, 16), dict.fromkeys(convs, 1)]
    mixtures += [{name: pick.choice((1, 16)) for name in convs} for _ in range(20)]
    counts = itertools.cycle([16, 1, 40, 5, 17])
    for mixture, count in zip(mixtures, counts, strict=False):
        program = program_of(network, mixture, isa, pick)
        x = torch.randn(count, 3, 31, 31)
        for found, wanted in zip(program.run([x]), exact(network, x), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5 * float(wanted.abs().max()))


def test_threads_share_images_that_go_one_by_one(network: Graph) -> None:
    pick = random.Random(2)
    convs = [node.output for node in network.nodes if node.kind == "conv"]
    for count in (16, 40):
        program = program_of(network, {name: pick.choice((1, 16)) for name in convs}, "portable", pick)
        program.share(2, "own", [1000.0] * len(program.names))
        x = torch.randn(count, 3, 31, 31)
        for found, wanted in zip(program.run([x]), exact(network, x), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=2e-5 * float(wanted.abs().max()))


def test_an_image_of_nan_leaves_the_others_alone(network: Graph) -> None:
    pick = random.Random(3)
    convs = [node.output for node in network.nodes if node.kind == "conv"]
    x = torch.randn(16, 3, 31, 31)
    x[3], x[9] = float("nan"), float("inf")
    for ways in (dict.fromkeys(convs, 16), {name: pick.choice((1, 16)) for name in convs}):
        for found, wanted in zip(program_of(network, ways, "portable", pick).run([x]), exact(network, x), strict=True):
            rest = [i for i in range(16) if i not in (3, 9)]
            torch.testing.assert_close(found[rest].double(), wanted[rest], rtol=1e-5, atol=1e-3)
            assert not found[3].isfinite().all()


def test_every_candidate_is_timed_and_the_choice_runs(network: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    x = torch.randn(20, 3, 31, 31)
    chosen = choose(network, [x], 16)
    weighted = [node for node in network.nodes if node.weight is not None]
    for node, layer in zip(weighted, chosen.layers, strict=True):
        assert set(layer.tried) == set(layouts_of(network, node, 16))
        if node.kind == "conv":
            assert {beside_of(name) for name in layer.tried} == {1, 16}
            assert not any("images" in name for name in layouts_of(network, node, 1))
    assert fits(network, chosen.layouts, 16)
    assert not fits(network, dict.fromkeys(chosen.layouts, "images"), 1)
    for found, wanted in zip(chosen.program.run([x]), reference(network, [x]), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-3)


def cost_of(graph: Graph, made: dict[str, int], costs: Costs) -> float:
    """What a program of these layouts costs, by the plainest count."""
    lies: dict[str, set[int]] = {name: set() for name in graph.shapes}
    made = dict(made)
    total = 0.0
    for node in graph.nodes:
        image = is_image(graph, node.output)
        beside = made[node.output] if image else 16
        for name in dict.fromkeys(node.inputs):
            if is_image(graph, name) and beside not in lies[name]:
                total += costs.turns[name, beside] if lies[name] else costs.enters[beside]
                lies[name].add(beside)
        lies[node.output].add(beside)
        total += costs.steps.get((node.output, beside), 0.0)
    return total + sum(
        costs.turns[name, 16] for name in graph.outputs if is_image(graph, name) and 16 not in lies[name]
    )


def test_the_cheapest_path_is_the_cheapest_of_all(network: Graph) -> None:
    images = [name for name in network.shapes if is_image(network, name)]
    convs = [node.output for node in network.nodes if node.kind == "conv"]
    follows = {"p": "a", "s": "h", "q": "h"}  # what a pool or a sum takes after
    pick, seen = random.Random(4), set()
    for turn in (0.0, 1.0, 3.0, 30.0):
        for _ in range(5):
            steps = {(name, beside): pick.uniform(1, 10) for name in (*images, "m", "o") for beside in (1, 16)}
            turns = {(name, beside): turn * pick.random() for name in images for beside in (1, 16)}
            costs = Costs(steps, turns, {1: 1.0, 16: 2.0})
            found = cheapest(network, costs)
            every = []
            for ways in itertools.product((1, 16), repeat=len(convs)):
                made = dict(zip(convs, ways, strict=True))
                every.append(cost_of(network, made | {name: made[source] for name, source in follows.items()}, costs))
            assert cost_of(network, found, costs) == pytest.approx(min(every))
            assert all(found[name] == found[source] for name, source in follows.items())
            seen.add(tuple(found[name] for name in convs))
    assert len(seen) > 5


def test_a_layer_with_one_way_takes_it(network: Graph) -> None:
    images = [name for name in network.shapes if is_image(network, name)]
    steps = {(name, beside): 1.0 for name in images for beside in (1, 16) if (name, beside) != ("c", 16)}
    costs = Costs(steps, {(name, beside): 100.0 for name in images for beside in (1, 16)}, {1: 0.0, 16: 0.0})
    assert cheapest(network, costs)["c"] == 1


def test_turning_is_measured_for_every_image(network: Graph) -> None:
    found = turn_times(network, 16)
    assert set(found) == {(name, way) for name in network.shapes if is_image(network, name) for way in (1, 16)}
    assert all(us > 0 for us in found.values())


def test_layers_that_do_the_same_work_share_their_times() -> None:
    """`b` had a busy moment with what is best for `a`, which does the same; `c` does other work, `d` has more zeros."""
    torch.manual_seed(2)
    nodes = [conv(y, x, (4, 4, 3 if y != "c" else 1)) for x, y in itertools.pairwise("xabcd")]
    a, b, _, d = (node.weight for node in nodes)
    assert a is not None and b is not None and d is not None  # noqa: PT018
    b[:], d[:3] = a, 0
    graph = Graph(tuple(nodes), dict.fromkeys("xabcd", (4, 6, 6)), ("x",), ("d",))
    quiet = {"a": (2.0, 5.0), "b": (9.0, 6.0), "c": (9.0, 6.0), "d": (9.0, 6.0)}
    names = ("direct", "copied")
    runs = [(dict.fromkeys(quiet, layout), {n: us[i] for n, us in quiet.items()}) for i, layout in enumerate(names)]
    layouts, times = best_layouts(graph, runs, 16)
    assert layouts == {"a": "direct", "b": "direct", "c": "copied", "d": "copied"}
    assert times["b"] == {"direct": 2.0, "copied": 5.0}


def test_lineups_go_one_way_each(network: Graph) -> None:
    tries = {node.output: layouts_of(network, node, 16) for node in network.nodes if node.weight is not None}
    convs = [node.output for node in network.nodes if node.kind == "conv"]
    found = lineups(network, tries)
    assert all(len({beside_of(layouts[name]) for name in convs}) == 1 for layouts in found)
    for name, layouts in tries.items():
        assert {some[name] for some in found} == set(layouts)
