"""A run that ends itself by SIGKILL after so many optimizer steps: ``python killed.py FOLDER STEPS``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
import torch

from secateur.train.compress import Goal, compress, road
from tests.train.compress.nets import digits, no_clock, recovery, trained_mlp


def main(folder: str, steps: int | None) -> Any:
    """The run of the test; with ``steps`` it does not come back."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        no_clock(patch)
        left = [steps]
        real = road.fit

        def fit(*arguments: Any, **choices: Any) -> Any:
            def count(moment: Any) -> None:
                if left[0] is not None and moment.at == "step":
                    left[0] -= 1
                    if left[0] == 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            return real(*arguments, callbacks=(count,), every=3, **choices)

        patch.setattr(road, "fit", fit)
        data = digits()
        goal = Goal(max_drop=2.0, bytes=0.5)
        choices: dict[str, Any] = {"recovery": recovery, "trials": 3, "folder": folder, "progress": False}
        return compress(trained_mlp(), data.train, data.valid, data.test, goal=goal, **choices)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
