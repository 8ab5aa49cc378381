"""Response-only labels by a loop over the tokens of each row: how it is mostly done, and what it costs.

From each place at which the response marker's ids stand, to the next place at which the instruction marker's do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def scan(ids: list[int], instruction: list[int], response: list[int], ignored: int) -> list[int]:
    """Labels of one row.

    >>> scan([7, 1, 8, 9, 2, 5, 1, 3], [2], [1], -1)
    [-1, -1, 8, 9, -1, -1, -1, 3]
    """
    labels = [ignored] * len(ids)
    first, width = response[0], len(response)
    at = 0
    while at < len(ids):
        if ids[at] == first and ids[at : at + width] == response:
            start = at + width
            at = _next(ids, start, instruction)
            labels[start:at] = ids[start:at]
        else:
            at += 1
    return labels


def _next(ids: list[int], at: int, marker: list[int]) -> int:
    first, width = marker[0], len(marker)
    while at < len(ids):
        if ids[at] == first and ids[at : at + width] == marker:
            return at
        at += 1
    return at


def scan_batch(
    batch: Mapping[str, Any], instruction: Sequence[int], response: Sequence[int], ignored: int
) -> dict[str, list[list[int]]]:
    """Labels of a batch of ``datasets.map(batched=True)``."""
    user, model = list(instruction), list(response)
    return {"labels": [scan(ids, user, model, ignored) for ids in batch["input_ids"]]}


def trains_something(labels: Sequence[int], ignored: int) -> bool:
    """Whether a row has a label: for ``datasets.filter``."""
    return any(label != ignored for label in labels)
