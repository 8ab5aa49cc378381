"""Response-only labels by a loop over the tokens of each row: how it is mostly done, and what it costs.

From each place at which the response marker's ids stand, to the next place at which the instruction marker's do; once
as it is written down first, with a comparison of both markers at every token, and once as fast as a loop gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

ScanRow = Callable[[list[int], list[int], list[int], int], list[int]]


def plain_scan(ids: list[int], instruction: list[int], response: list[int], ignored: int) -> list[int]:
    """Labels of one row, each token looked at in the same way.

    >>> plain_scan([7, 1, 8, 9, 2, 5, 1, 3], [2], [1], -1)
    [-1, -1, 8, 9, -1, -1, -1, 3]
    """
    labels, starts_at = [], len(ids)
    for at, token in enumerate(ids):
        if ids[at : at + len(instruction)] == instruction:
            starts_at = len(ids)
        elif ids[at : at + len(response)] == response:
            starts_at = at + len(response)
        labels.append(token if at >= starts_at else ignored)
    return labels


def scan(ids: list[int], instruction: list[int], response: list[int], ignored: int) -> list[int]:
    """Labels of one row, most tokens looked at once.

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
    batch: Mapping[str, Any], scan_row: ScanRow, instruction: list[int], response: list[int], ignored: int
) -> dict[str, list[list[int]]]:
    """Labels of a batch of ``datasets.map(batched=True)``, by one of the two loops."""
    return {"labels": [scan_row(ids, instruction, response, ignored) for ids in batch["input_ids"]]}


def trains_something(labels: Sequence[int], ignored: int) -> bool:
    """Whether a row has a label: for ``datasets.filter``."""
    return any(label != ignored for label in labels)
