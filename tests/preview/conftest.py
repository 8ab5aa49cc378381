"""One browser for all tests of the page.

Without Chromium these tests are skipped with a reason on a person's machine, and fail in CI.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.browser import Browser
from support.example_page import EVIL, example_rows

from sft_mask.preview import write_html


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_html(example_rows(), tmp_path_factory.mktemp("page") / "page.html", title=f"Rows {EVIL}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium on PATH: apt-get install chromium")
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture
def browser(chromium: Browser, page: Path) -> Iterator[Browser]:
    yield chromium.open(page)
    assert chromium.problems() == []
