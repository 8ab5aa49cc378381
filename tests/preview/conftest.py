"""One browser for all tests of the page.

Without Chromium these tests are skipped with a reason on a person's machine, and fail in CI.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser, chromium_or_skip
from support.example_page import EVIL, example_rows

from sft_mask.preview import write_html


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html(example_rows(), tmp_path_factory.mktemp("page") / "page.html", title=f"Rows {EVIL}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    browser = Browser(chromium_or_skip())
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    yield chromium.open(page)
    assert chromium.problems() == []
