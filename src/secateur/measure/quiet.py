"""Looking at models without leaving a trace: eval mode, no gradients, every random state as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from secateur.model.quietly import quietly

__all__ = ["quiet"]


@contextmanager
def quiet(*models: Any, loader: Any = None) -> Iterator[None]:
    """Put models into eval mode without gradients; restore every flag and random state afterwards.

    Args:
        models: modules; other callables are left alone.
        loader: the data to be read; a ``generator`` it owns is restored too, so that reading a shuffled
            loader does not change the order of a training that goes on afterwards.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> with quiet(net):
        ...     net.training, torch.is_grad_enabled()
        (False, False)
        >>> net.training, net[1].training
        (True, True)
    """
    owned = getattr(loader, "generator", None)
    generator = owned if isinstance(owned, torch.Generator) else None
    order = None if generator is None else generator.get_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one is the user's
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        try:
            for model in models:
                if isinstance(model, nn.Module):
                    stack.enter_context(quietly(model))
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
            if generator is not None and order is not None:
                generator.set_state(order)
