"""Renders records: a table in the terminal, one self-contained page, figures. Computes nothing that it shows."""

from __future__ import annotations

from secateur.report.figures import KINDS, figure
from secateur.report.headline import headline
from secateur.report.html import to_html
from secateur.report.table import print_table, table, text_summary

__all__ = ["KINDS", "figure", "headline", "print_table", "table", "text_summary", "to_html"]
