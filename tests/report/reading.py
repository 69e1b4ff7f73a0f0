"""Reads a written page as a browser would: elements, tables, scripts, without a browser."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

__all__ = ["Page", "read_page"]

VOID = {"meta", "link", "img", "br", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    text: str = field(default="", repr=False)  # the library alone is five megabytes
    path: tuple[str, ...] = ()


@dataclass
class Page:
    elements: list[Element] = field(default_factory=list, repr=False)

    def all(self, tag: str, **attributes: str) -> list[Element]:
        wanted = {key.replace("_", "-"): value for key, value in attributes.items()}
        return [e for e in self.elements if e.tag == tag and wanted.items() <= e.attributes.items()]

    def script_json(self, name: str) -> Any:
        (element,) = self.all("script", id=name)
        return json.loads(element.text)

    def tables(self, name: str) -> list[list[list[str]]]:
        """Per table its rows, per row its cells, the name first."""
        found: list[list[list[str]]] = []
        for element in self.elements:
            if element.tag == "table" and element.attributes.get("data-grid") == name:
                found.append([])
            elif "tbody" in element.path and found and f"table:{name}" in element.path:
                if element.tag == "tr":
                    found[-1].append([])
                elif element.tag in ("th", "td"):
                    found[-1][-1].append(element.text.strip())
        return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page, self.open = Page(), []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {key: value or "" for key, value in attrs}
        path = tuple(self._label(e) for e in self.open)
        element = Element(tag, attributes, path=(*path, *(e.tag for e in self.open)))
        self.page.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    @staticmethod
    def _label(element: Element) -> str:
        return f"{element.tag}:{element.attributes.get('data-grid') or element.attributes.get('id', '')}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1].tag == tag, f"</{tag}> closes <{self.open[-1].tag}>"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data


def read_page(path: Path) -> Page:
    """The page, with every element closed where it was opened."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == [], [e.tag for e in reader.open]
    return reader.page
