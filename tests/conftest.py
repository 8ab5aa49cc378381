"""Fixtures that tests of several packages use."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def pytest_collection_finish() -> None:
    """What was imported is no garbage: the collection at the end of each ``train()`` need not look through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own folder, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerFast:
    """The tokenizer of SmolLM2-135M-Instruct, a real one that needs no hub. Tests must not change it."""
    from local_model import smollm2_folder
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_folder())


@pytest.fixture(autouse=True)
def _warnings_come_back() -> Iterator[None]:
    """The command line silences the library's warnings for its whole process."""
    logger = logging.getLogger("sft_mask")
    level = logger.level
    yield
    logger.setLevel(level)
