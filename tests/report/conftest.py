"""The marker of the tests that need a browser, and one page for all that read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.report import to_html
from tests.report.fake import fake_masks, fake_report


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "browser: opens the page in headless Chromium")


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the fake report with its masks."""
    return to_html(fake_report(), tmp_path_factory.mktemp("page") / "deep" / "report.html", masks=fake_masks())
