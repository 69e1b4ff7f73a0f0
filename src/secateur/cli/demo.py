"""``secateur demo``: the main job on real data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    data: Annotated[str, typer.Option(help="digits (comes with scikit-learn) or fashion-mnist")] = "digits",
    path: Annotated[
        Path | None,
        typer.Option(help="fashion-mnist: an npz, or a folder with it or the four idx files; default: download"),
    ] = None,
    folder: Annotated[Path | None, typer.Option("-o", "--output", help="default: runs/demo, runs/demo-fashion")] = None,
    sparsity: Annotated[float, typer.Option(help="share of the weights to remove")] = 0.9,
    epochs: Annotated[int | None, typer.Option(help="of the dense networks; default: 20 on digits, 3 else")] = None,
    rounds: Annotated[int, typer.Option(help="interleaved rounds of each latency measurement")] = 30,
) -> None:
    """Train two networks, make each sparse four ways and one really smaller, measure, save, load back, report.

    On the digits this takes under three minutes. Fashion-MNIST is much larger: the demo trains on its first 10,000
    images, says so, and takes five to ten minutes on two cores.
    """
    from secateur.benchmark.data import load_images
    from secateur.benchmark.demo import run_demo

    images = load_images(data, path)
    if data == "fashion-mnist":
        images = images.first(10_000, 2_000)
        typer.echo("Fashion-MNIST: the demo trains on the first 10,000 images and tests on the first 2,000.")
    target = folder or Path("runs") / ("demo" if data == "digits" else "demo-fashion")
    run_demo(images, target, sparsity=sparsity, epochs=epochs, rounds=rounds)
