"""The golden folders: text, ids and mask of one conversation for each template, to the token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from support.conformance import tokenizers
from support.conformance.golden import (
    GOLDEN,
    golden_folders,
    independent_judgement,
    read_golden,
    record_of,
    token_diff,
    trained_lines,
)
from support.conformance.harness import mistakes

from sft_mask import mask_dataset
from sft_mask.data.tokenize import encode, words

FOLDERS = golden_folders()
SOURCES = {source.name: source for source in tokenizers.SOURCES}
BY_TOKENIZER = sorted(FOLDERS, key=lambda folder: read_golden(folder).tokenizer)


@pytest.fixture(scope="session")
def loaded() -> dict[str, Any]:
    """The tokenizer that was loaded last: folders come sorted by theirs, and large ones need not stay."""
    return {}


def tokenizer_of(name: str, loaded: dict[str, Any]) -> Any:
    if name not in loaded:
        loaded.clear()
        loaded[name] = tokenizers.load(tokenizers.fetch(SOURCES[name], tokenizers.cache_folder()))
    return loaded[name]


def test_every_folder_is_read() -> None:
    folders = [path for path in GOLDEN.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))]
    assert sorted(folders) == FOLDERS
    assert len(FOLDERS) >= 12
    assert all((folder / name).is_file() for folder in FOLDERS for name in ("text.txt", "ids.json", "trained.txt"))


@pytest.mark.parametrize("folder", BY_TOKENIZER, ids=lambda folder: folder.name)
def test_golden_mask_is_reproduced(folder: Path, loaded: dict[str, Any]) -> None:
    golden = read_golden(folder)
    tokenizer = tokenizer_of(golden.tokenizer, loaded)
    tokenizer.chat_template = golden.template_text()
    text, ids = (folder / "text.txt").read_bytes().decode(), json.loads((folder / "ids.json").read_text())
    expected = (folder / "trained.txt").read_text().splitlines()
    judgement = independent_judgement(golden, tokenizer)
    assert judgement.text == text, "the template renders something else than it did"
    assert judgement.ids == ids, "the tokenizer cuts the text unlike it did"

    dataset = Dataset.from_list([record_of(golden, ids)], on_mixed_types="use_json")
    for markers in ((None, None), (golden.instruction_part, golden.response_part)):
        labels = mask_dataset(dataset, tokenizer, *markers)["labels"][0]
        assert trained_lines(text, ids, labels, tokenizer) == expected, (
            f"{folder.name} with markers {markers}: a mask that changes is a breaking change\n"
            + token_diff(ids, labels, expected, tokenizer)
        )
        assert mistakes(judgement, labels) == ([], []), "the oracle contradicts"


@pytest.mark.parametrize("folder", BY_TOKENIZER, ids=lambda folder: folder.name)
def test_golden_mask_is_made_from_the_raw_chat(
    folder: Path, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_WORTH_CUTTING", 0)  # as in a large dataset
    monkeypatch.setattr(words, "_WORTH_LEARNING", 0)
    golden = read_golden(folder)
    tokenizer = tokenizer_of(golden.tokenizer, loaded)
    tokenizer.chat_template = golden.template_text()
    text, ids = (folder / "text.txt").read_bytes().decode(), json.loads((folder / "ids.json").read_text())
    dataset = Dataset.from_list([record_of(golden, ids)], on_mixed_types="use_json").remove_columns("input_ids")
    (row,) = mask_dataset(dataset, tokenizer)
    assert row["input_ids"] == ids
    assert trained_lines(text, ids, row["labels"], tokenizer) == (folder / "trained.txt").read_text().splitlines()


@pytest.mark.parametrize("folder", BY_TOKENIZER[:1], ids=lambda folder: folder.name)
def test_token_diff_shows_the_token_that_changed(folder: Path, loaded: dict[str, Any]) -> None:
    golden = read_golden(folder)
    tokenizer = tokenizer_of(golden.tokenizer, loaded)
    ids = json.loads((folder / "ids.json").read_text())
    expected = (folder / "trained.txt").read_text().splitlines()
    start, stop = map(int, expected[0].split(" ", 1)[0].split(":"))
    labels = [token if start < i < stop else -100 for i, token in enumerate(ids)]
    shown = token_diff(ids, labels, expected[:1], tokenizer).splitlines()
    assert [line for line in shown if line.startswith(("+", "-"))] == [
        f"- {start:5d} {ids[start]:7d} {tokenizer.decode([ids[start]])!r}"
    ]
