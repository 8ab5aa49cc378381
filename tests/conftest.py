"""Fixtures that tests of several packages use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
