from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _warnings_come_back() -> Iterator[None]:
    """The command line silences the library's warnings for its whole process."""
    logger = logging.getLogger("sft_mask")
    level = logger.level
    yield
    logger.setLevel(level)
