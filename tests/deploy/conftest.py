"""Fixtures of the tests of what leaves the house."""

from __future__ import annotations

import pytest

from secateur.deploy.pack import packed as packing


@pytest.fixture
def sparse_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models on a busy machine: who is faster is not what these tests ask."""
    monkeypatch.setattr("secateur.runtime.choose._ROUNDS", 1)
    monkeypatch.setattr("secateur.runtime.choose._TRIES", 1)
    monkeypatch.setattr("secateur.runtime.choose.interleaved", lambda calls: [1.0, *[2.0] * (len(calls) - 1)])
    monkeypatch.setattr(packing, "interleaved", lambda calls, seconds: [1.0, 2.0])
