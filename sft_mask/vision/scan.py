"""Looks through the rows of a dataset with images, without decoding one of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.errors import DataError
from sft_mask.vision.conversations import VisionRow, read_row
from sft_mask.vision.rows import fault_of, typed_placeholder

_CONVERSATION = ("messages", "prompt", "completion")
_IMAGES = ("images", "image")
_ROWS_AT_ONCE = 1000


def check_rows(dataset: Any, name: str, placeholders: Sequence[str]) -> None:
    """Refuses rows that no collator can read, or that hold a placeholder as text; of a stream, none is read.

    Raises:
        DataError: that, with the number of the row and what to do.
    """
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "__len__") or _is_made_on_the_fly(dataset):
        return
    there = [column for column in _CONVERSATION if column in dataset.column_names]
    if "conversations" in dataset.column_names and not there:
        raise DataError(
            f"The {name} dataset has conversations, which TRL does not convert for rows with images. Rename them: "
            'dataset.rename_column("conversations", "messages"), with messages of "role" and "content".'
        )
    if not any(column in dataset.column_names for column in _IMAGES):
        raise DataError(
            f"The {name} dataset has no column images or image (it has {', '.join(dataset.column_names)}), but the "
            "trainer collates rows with images. Add one; of rows without images it is an empty list."
        )
    for number, (row, images) in enumerate(_rows(dataset, there)):
        fault = fault_of(row, images)
        if fault is None:
            fault = typed_placeholder(_without_images(row), placeholders)
        if fault is not None:
            raise DataError(f"Row {number} of the {name} dataset: {fault}")


def _is_made_on_the_fly(dataset: Any) -> bool:
    return bool(dataset.format["type"] == "custom")


def _without_images(row: Mapping[str, Any]) -> VisionRow:
    return read_row({key: value for key, value in row.items() if value is not None})


def _rows(dataset: Any, columns: Sequence[str]) -> Iterator[tuple[Mapping[str, Any], int | None]]:
    """Each row's conversation, and how many images it has."""
    column = next(each for each in _IMAGES if each in dataset.column_names)
    counted = dataset.select_columns([column]).with_format("arrow")
    read = dataset.select_columns(list(columns)).with_format(None) if columns else None
    for first in range(0, len(dataset), _ROWS_AT_ONCE):
        numbers = list(range(first, min(first + _ROWS_AT_ONCE, len(dataset))))
        for at, images in zip(numbers, _counts(counted[numbers][column]), strict=True):
            yield (read[at] if read is not None else {}), images


def _counts(column: pa.ChunkedArray) -> list[int | None]:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths: list[int | None] = pc.list_value_length(column).to_pylist()
        return lengths
    return [1 if there else None for there in column.is_valid().to_pylist()]
