"""griffe extension: our docstrings say ``Example:``, which griffe would take for an admonition, not for code."""

from __future__ import annotations

import re
from typing import Any

import griffe

__all__ = ["ExampleSections"]


class ExampleSections(griffe.Extension):
    """Reads ``Example:`` as the section ``Examples:``, so that doctests are shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for every object that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.M)
