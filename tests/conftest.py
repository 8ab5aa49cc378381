"""Fixtures that tests of several packages use."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """What was imported is no garbage: the collection at the end of each ``train()`` need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
