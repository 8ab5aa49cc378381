"""A batch of rows to labels, with errors that name the row; and the columns that are read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from sft_mask.data.read.rows import LOSS_WEIGHTS
from sft_mask.data.read.spelling import COLUMNS as CONVERSATION
from sft_mask.errors import AmbiguousRowError, DataError, SftMaskError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints
    from sft_mask.data.masker import Masker
    from sft_mask.data.read.conversations import Decoder
from sft_mask.data.outcome import MaskedBatch
from sft_mask.data.read.conversations import EXPANSION

READ = ("input_ids", "labels", "seq_lengths", LOSS_WEIGHTS, *CONVERSATION, "tools", "chat_template_kwargs", EXPANSION)
"""Columns that decide labels; no other column is read."""


def mask_rows(
    masker: Masker, table: pa.Table, decode: Decoder, numbers: Ints, name: str, *, adjacent: bool = False
) -> MaskedBatch:
    """Labels of a batch; an error names the row by its number in the dataset.

    Args:
        masker: decides the labels.
        table: the columns of :data:`READ` that are there.
        decode: reads conversations.
        numbers: ``(rows,)`` numbers of the rows in their dataset.
        name: of what the rows belong to (``"the train dataset"``), for errors.
        adjacent: see :meth:`sft_mask.data.masker.Masker.mask`.

    Raises:
        SftMaskError: whatever the masker raises, of the same class.
        DataError: labels that do not fit their ids.
    """
    outcome = _attempt(masker, table, decode, numbers, adjacent)
    if isinstance(outcome, Exception):
        error, number = _narrowed(outcome, masker, table, decode, numbers)
        raise _named(error, name, number, decode.columns(table)) from error
    return outcome


def _attempt(
    masker: Masker, table: pa.Table, decode: Decoder, numbers: Ints, adjacent: bool = False
) -> MaskedBatch | Exception:
    known = masker.decider.signatures.copy()
    try:
        first_row = int(numbers[0]) if len(numbers) else 0
        return masker.mask(table, decode, first_row=first_row, adjacent=adjacent)
    except (SftMaskError, ValueError) as error:
        masker.decider.signatures.restore(known)
        return error


def _narrowed(
    error: Exception, masker: Masker, table: pa.Table, decode: Decoder, numbers: Ints
) -> tuple[Exception, int | None]:
    """The error of one row alone, and its number: the half that fails is halved until one row is left."""
    while len(numbers) > 1:
        half = len(numbers) // 2
        for part in (slice(0, half), slice(half, len(numbers))):
            piece = table.slice(part.start, part.stop - part.start)
            outcome = _attempt(masker, piece, decode, numbers[part])
            if isinstance(outcome, Exception):
                error, table, numbers = outcome, piece, numbers[part]
                break
        else:
            return error, None
    return error, int(numbers[0]) if len(numbers) else None


def _named(error: Exception, name: str, number: int | None, columns: tuple[str, ...]) -> SftMaskError:
    kind = type(error) if isinstance(error, SftMaskError) else DataError
    text = str(error)
    if kind is AmbiguousRowError and columns and columns != ("messages",):
        text = f"{text} (Its messages are in {' and '.join(columns)}.)"
    row = "" if number is None or text.startswith(f"Row {number} ") else f"row {number}: "
    return kind(f"In {name}: {row}{text}")


def list_column(table: pa.Table, name: str, where: str) -> pa.ChunkedArray:
    """A column that must hold lists.

    Raises:
        DataError: it is not there, or holds something else.
    """
    if name not in table.column_names:
        there = ", ".join(table.column_names) or "no columns"
        raise DataError(
            f"There is no {name} column in {where} (it has {there}). Let SFTTrainer prepare the dataset (no "
            "skip_prepare_dataset), tokenize it first, or call mask_dataset(dataset, tokenizer), which tokenizes."
        )
    kind = table.schema.field(name).type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        raise DataError(f"The {name} column of {where} holds {kind}, not a list of token ids a row. Tokenize it first.")
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_null(kind.value_type)):
        raise DataError(f"The {name} column of {where} holds lists of {kind.value_type}, not of token ids.")
    return table[name]
