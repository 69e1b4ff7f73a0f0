"""Where other libraries meet this one. Each module imports its library when it is used, never before."""

from __future__ import annotations

__all__: list[str] = []
