"""Optuna behind three calls: the one place that knows it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, final

__all__ = ["Sampler", "make_sampler"]


@final
class Sampler:
    """Proposes (family, index); told how good it was.

    Args:
        optuna: the module.
        spans: family -> first and last index.
        seed: of the sampler.
        trials: how many there will be; a third of them, at least one per family, are drawn before it learns.
    """

    def __init__(self, optuna: Any, spans: Mapping[str, tuple[int, int]], seed: int, trials: int) -> None:
        self._spans = dict(spans)
        optuna.logging.disable_default_handler()
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(len(spans), trials // 3))
        self._study = optuna.create_study(sampler=sampler)
        for name, (first, last) in self._spans.items():
            self._study.enqueue_trial({"family": name, f"index of {name}": min(last, first)})
        self._asked: Any = None

    def ask(self) -> tuple[str, int]:
        """The next family and index."""
        self._asked = self._study.ask()
        name = self._asked.suggest_categorical("family", list(self._spans))
        first, last = self._spans[name]
        return name, int(self._asked.suggest_int(f"index of {name}", first, last))

    def tell(self, value: float, constraints: Mapping[str, float]) -> None:
        """What came of the last one.

        Args:
            value: the smaller the better.
            constraints: name -> above 0 where it is missed; always the same names.
        """
        for name, missed in constraints.items():
            self._asked.set_constraint(name, missed)
        self._study.tell(self._asked, value)


def make_sampler(spans: Mapping[str, tuple[int, int]], *, seed: int, trials: int) -> Sampler:
    """A TPE sampler.

    Args:
        spans: family -> first and last index.
        seed: of the sampler.
        trials: how many there will be.

    Returns:
        The sampler.

    Raises:
        ImportError: where optuna is not installed.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ImportError(
            "search='optuna' needs optuna: pip install \"secateur[search]\"; search='bisect' needs nothing"
        ) from error
    return Sampler(optuna, spans, seed, trials)
