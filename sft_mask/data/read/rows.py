"""The columns of a batch that decide labels, as flat arrays; errors name the malformed row."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.core.arrays import Floats, Ids, Ints, greatest, offsets_of
from sft_mask.core.label_codec import PLAIN_BELOW, has_weights
from sft_mask.data.read.columns import list_values
from sft_mask.errors import DataError

LOSS_WEIGHTS: Final = "loss_weights"
"""A column of one weight a token."""


def token_ids(table: pa.Table) -> tuple[Ids, Ints]:
    """Flat ids, and ``(rows + 1,)`` offsets."""
    if "input_ids" not in table.column_names:
        raise DataError(
            f"The dataset has no input_ids column (it has {', '.join(table.column_names)}). Pass a tokenized dataset, "
            "or one with messages."
        )
    try:
        values, offsets = list_values(table["input_ids"])
    except ValueError as error:
        raise DataError(f"input_ids is malformed: {error}. Remove or repair the row.") from error
    if len(values) and values.dtype.kind not in "iu":
        raise DataError(f"input_ids holds {values.dtype}, not integers. Pass token ids.")
    return values, offsets


def existing_labels(table: pa.Table, offsets: Ints) -> Ids | None:
    """The flat labels that rows have already, if any of them is masked; ``offsets`` are those of the ids."""
    if "labels" not in table.column_names:
        return None
    column = table["labels"]
    _check_lengths(column, offsets)
    try:
        if all(greatest(list_values(chunk)[0]) < PLAIN_BELOW for chunk in column.chunks):
            return None
        labels, _ = list_values(column)
    except ValueError as error:
        raise DataError(f"labels is malformed: {error}. Repair the row, or remove the labels column.") from error
    if has_weights(labels):
        raise DataError("The labels carry weights: mask_dataset made them. Do not mask these rows a second time.")
    return labels


def _check_lengths(labels: pa.ChunkedArray, offsets: Ints) -> None:
    sizes = np.asarray(pc.fill_null(pc.list_value_length(labels), -1), np.int64)
    wrong = np.flatnonzero(sizes != np.diff(offsets))
    if len(wrong):
        row = int(wrong[0])
        count = "no labels" if sizes[row] < 0 else f"{sizes[row]} labels"
        raise DataError(
            f"there are {count} for {offsets[row + 1] - offsets[row]} input_ids. Give one label for each "
            "id, or remove the labels column."
        )


def loss_weights(table: pa.Table, offsets: Ints, first_row: int) -> Floats | None:
    """The ``loss_weights`` column, flat; ``None`` if there is none."""
    if LOSS_WEIGHTS not in table.column_names:
        return None
    try:
        values, ends = list_values(table[LOSS_WEIGHTS])
    except (ValueError, pa.ArrowInvalid) as error:
        raise DataError(f"loss_weights: {error}. Give one number a token, or leave the column out.") from error
    wrong = np.flatnonzero(ends != offsets)
    if len(wrong):
        row = int(wrong[0]) - 1
        raise DataError(
            f"Row {first_row + row} has {int(ends[row + 1] - ends[row])} loss_weights for "
            f"{int(offsets[row + 1] - offsets[row])} input_ids. Give one weight for each id; if the trainer truncated "
            "the ids, call mask_dataset(dataset, tokenizer) before it is built: then weights are truncated with them."
        )
    weights = values.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(weights) | (weights < 0))
    if len(bad):
        row = int(np.searchsorted(offsets, bad[0], side="right")) - 1
        raise DataError(
            f"Row {first_row + row} has the loss weight {weights[bad[0]]}: a weight must be finite and not negative, "
            "since the loss is divided by the sum of weights."
        )
    return weights


def rows_of(documents: Ints, offsets: Ints) -> Ints:
    """``(documents,)`` the row of each document; empty ones belong to a neighbouring row.

    >>> rows_of(np.array([0, 3, 3, 5]), np.array([0, 3, 3, 5])).tolist()
    [0, 1, 2]
    >>> rows_of(np.array([0, 2, 3, 5]), np.array([0, 3, 5])).tolist()
    [0, 0, 1]
    """
    if np.array_equal(documents, offsets):
        return np.arange(len(offsets) - 1)
    starting: Ints = np.searchsorted(offsets, documents[:-1], side="right") - 1
    return np.minimum(starting, len(offsets) - 2)


def documents_of(table: pa.Table, offsets: Ints, first_row: int) -> Ints:
    """Offsets of documents: of rows, or of the documents that ``seq_lengths`` cuts packed rows into."""
    if "seq_lengths" not in table.column_names:
        return offsets
    lengths, per_row = list_values(table["seq_lengths"])
    ends = offsets_of(lengths)
    wrong = np.flatnonzero(ends[per_row] != offsets)
    if len(wrong):
        row = int(wrong[0]) - 1
        raise DataError(
            f"seq_lengths of row {first_row + row} add up to {int(ends[per_row[row + 1]] - ends[per_row[row]])}, but "
            f"the row has {int(offsets[row + 1] - offsets[row])} tokens."
        )
    return ends.astype(np.int64)
