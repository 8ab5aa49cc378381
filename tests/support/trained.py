"""The trained runs of a row as text."""

from __future__ import annotations

from typing import Any


def trained(tokenizer: Any, row: dict[str, Any]) -> list[str]:
    """The runs of trained tokens of a row, as text."""
    assert all(label in (-100, token) for label, token in zip(row["labels"], row["input_ids"], strict=True))
    runs: list[list[int]] = [[]]
    for label in row["labels"]:
        runs[-1:] = [[*runs[-1], label]] if label != -100 else [runs[-1], []]
    return [tokenizer.decode(run) for run in runs if run]
