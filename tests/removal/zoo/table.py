"""The one table of architectures."""

from __future__ import annotations

from tests.removal.zoo.architecture import Architecture
from tests.removal.zoo.first import FIRST, REFUSED
from tests.removal.zoo.then import THEN

__all__ = ["ARCHITECTURES", "REFUSED"]

ARCHITECTURES: tuple[Architecture, ...] = FIRST + THEN
