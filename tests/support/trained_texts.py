"""What a mask trains, as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from support import tiny

from sft_mask import IGNORE_INDEX


def trained_texts(rows: Iterable[Mapping[str, Any]], tokenizer: Any = None) -> list[list[str]]:
    """For each row the texts of its runs of trained tokens, whose labels are their ids (no weights).

    ``tokenizer`` is that of :mod:`support.tiny` unless it is given.
    """
    return [_runs(row, tokenizer or tiny.tokenizer()) for row in rows]


def _runs(row: Mapping[str, Any], tokenizer: Any) -> list[str]:
    pairs = list(zip(row["input_ids"], row["labels"], strict=True))
    assert all(label in (token, IGNORE_INDEX) for token, label in pairs), "a label is neither its token nor masked"
    runs = groupby(pairs, key=lambda pair: pair[1] != IGNORE_INDEX)
    return [str(tokenizer.decode([token for token, _ in run])) for is_trained, run in runs if is_trained]
