"""Labels for rows as they are read: an ``IterableDataset``, a batch in ``datasets.map``, or your own loop."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.batches import mask_rows
from sft_mask.data.expand import EXPANSION_TYPE, Expander
from sft_mask.data.masker import Masker
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import (
    EXPANSION,
    Conversation,
    Decoder,
    expanded,
    mappings,
    read_tools,
    read_variables,
)
from sft_mask.data.read.formats import column_names
from sft_mask.data.read.rows import LOSS_WEIGHTS
from sft_mask.data.read.spelling import COLUMNS as CONVERSATION
from sft_mask.data.read.spelling import as_json, standard_messages_of
from sft_mask.data.tokenize.rows import RowTokenizer
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from datasets import IterableDataset

_ROWS_AT_ONCE = 64
_PLACE = "place in the batch"
_PARTS = "texts to encode"
_IDS = pa.list_(pa.int64())


class LabelBatch:
    """Labels a batch of Python lists, NumPy arrays or tensors.

    Returns ``{"labels": rows}``; each row a list of its ids where trained and ``IGNORE_INDEX`` elsewhere. One tensor of
    ids gives one int64 tensor of the same shape on the same device.

    Args:
        masker: decides the labels.
        stats: counts every row once, even if the stream is read more than once; needs the rows' numbers.
        name: of what the rows belong to, for errors.
    """

    def __init__(self, masker: Masker, stats: SplitStats | None = None, name: str = "the batch") -> None:
        self._masker = masker
        self._stats = stats
        self._name = name
        self._counted = 0

    def __call__(self, batch: Row, numbers: Sequence[int] | None = None) -> dict[str, object]:
        table = batch_table(batch := with_messages(batch) if isinstance(batch, Mapping) else batch)
        rows = np.arange(table.num_rows) if numbers is None else np.asarray(numbers, np.int64)
        masked = mask_rows(self._masker, table, _BatchDecoder(batch), rows, self._name)
        if self._stats is not None and len(rows) and rows[0] >= self._counted:
            self._counted = int(rows[-1]) + 1
            self._stats.add(masked.report)
        if hasattr(batch["input_ids"], "new_tensor"):
            labels = masked.labels.astype(np.int64).reshape(tuple(batch["input_ids"].shape))
            return {"labels": batch["input_ids"].long().new_tensor(labels)}
        bounds = masked.offsets.tolist()
        return {"labels": [masked.labels[low:high].tolist() for low, high in pairwise(bounds)]}


def label_stream(
    dataset: IterableDataset,
    masker: Masker,
    name: str = "train",
    *,
    keep_all_rows: bool = False,
    expand: bool = False,
) -> tuple[IterableDataset, SplitStats]:
    """A stream with response-only labels, made as rows are read; rows that would train nothing are skipped
    (unless ``keep_all_rows``).

    The first batch is read at once, so that a stream that cannot be masked is refused now and not during training. The
    counts include it when this returns, and grow as the stream is read.

    Raises:
        DataError: the stream is empty, or a row of the first batch is malformed.
    """
    stats = SplitStats()
    label = LabelBatch(masker, stats, f"the {name} dataset")
    if expand:
        expander = _ExpandedLabels(Expander(masker, name), label)
        labelled = dataset.map(
            expander, batched=True, batch_size=_ROWS_AT_ONCE, with_indices=True, remove_columns=column_names(dataset)
        )
    else:
        labelled = dataset.map(label, batched=True, batch_size=_ROWS_AT_ONCE, with_indices=True)
    if next(iter(labelled), None) is None:
        raise DataError(f"There are no rows in the {name} dataset. Give it rows, or leave this split out.")
    return labelled if keep_all_rows else labelled.filter(has_trained_token), stats


def tokenized_stream(dataset: IterableDataset, tokenizer: RowTokenizer) -> IterableDataset:
    """A stream with ``input_ids`` (of prompt and completion also ``labels``), made as rows are read.

    Rows are rendered one by one, because rows of a stream may have different columns, and encoded in batches.
    """
    parts = dataset.map(_parts_of_row, with_indices=True, fn_kwargs={"tokenizer": tokenizer})
    return parts.map(
        _ids_of_parts,
        batched=True,
        batch_size=_ROWS_AT_ONCE,
        with_indices=True,
        fn_kwargs={"tokenizer": tokenizer},
        remove_columns=_PARTS,
    )


def _parts_of_row(row: Row, number: int, tokenizer: RowTokenizer) -> dict[str, object]:
    return {_PARTS: tokenizer.parts(row, number)}


def _ids_of_parts(batch: Row, numbers: Sequence[int], tokenizer: RowTokenizer) -> dict[str, object]:
    made = tokenizer.encode(batch[_PARTS], numbers)
    ids: dict[str, object] = {"input_ids": [row.ids.tolist() for row in made]}
    if any(row.prompt is not None for row in made):
        ids["labels"] = [None if row.prompt is None else row.labels().tolist() for row in made]
    return ids


@dataclass(frozen=True, slots=True)
class _ExpandedLabels:
    """Conversations to expanded rows with labels, whole conversations at a time."""

    expand: Expander
    label: LabelBatch

    def __call__(self, batch: Row, numbers: Sequence[int]) -> dict[str, object]:
        rows = self.expand(batch, numbers)
        return {**rows, **self.label(rows, [each["conversation"] for each in rows[EXPANSION]])}


def has_trained_token(row: Row) -> bool:
    """Whether any label of a row is trained."""
    return any(label != IGNORE_INDEX for label in row["labels"])


def batch_table(batch: Row) -> pa.Table:
    """The columns that masking reads, as Arrow.

    Raises:
        DataError: there are no ``input_ids``, or a column cannot be read as one list a row.
    """
    if not isinstance(batch, Mapping):
        raise DataError(f'A batch is {{"input_ids": rows}}, not a {type(batch).__name__}.')
    if batch.get("input_ids") is None:
        raise DataError(
            f"The rows have no input_ids (they have {', '.join(map(str, batch)) or 'no columns'}). Tokenize them first."
        )
    columns = {_PLACE: pa.array(range(len(batch["input_ids"])), pa.int64())}
    columns["input_ids"] = _lists("input_ids", batch["input_ids"])
    columns.update(
        {name: _lists(name, batch[name]) for name in ("labels", "seq_lengths") if _is_filled(batch.get(name))}
    )
    if batch.get(LOSS_WEIGHTS) is not None:
        columns[LOSS_WEIGHTS] = _lists(LOSS_WEIGHTS, batch[LOSS_WEIGHTS], pa.float64())
    for name in CONVERSATION:
        if _is_filled(batch.get(name)) and all(_is_conversation(value) for value in batch[name]):
            columns[name] = as_json(batch[name])
    if EXPANSION in batch:
        columns[EXPANSION] = pa.array(batch[EXPANSION], EXPANSION_TYPE)
    for name in ("tools", "chat_template_kwargs"):
        if _is_filled(batch.get(name)):
            columns[name] = pa.array([_dumped(value) if value else None for value in batch[name]], pa.string())
    return pa.table(columns)


def with_messages(batch: Row) -> Row:
    """The batch with its conversations in their usual spelling."""
    there = [name for name in CONVERSATION if name in batch and _is_filled(batch[name])]
    made = dict(batch)
    for name in there:
        rows = [None if row is None else standard_messages_of(row) for row in batch[name]]
        if all(row is not None or not given for row, given in zip(rows, batch[name], strict=True)):
            is_usual = name in ("messages", "conversations", "prompt", "completion")
            made["messages" if not is_usual and "messages" not in made else name] = rows
    return made


def rows_of_batch(batch: Mapping[str, object]) -> list[dict[str, object]]:
    """The conversations of a batch, row by row, each with the key ``input_ids``."""
    there = [name for name in CONVERSATION if _is_filled(batch.get(name))]
    values = zip(*(batch[name] for name in there), strict=True)
    return [{"input_ids": None, **dict(zip(there, row, strict=True))} for row in values]


def _is_filled(values: Any) -> bool:
    return values is not None and any(value is not None for value in values)


def _lists(name: str, values: Any, number: pa.DataType = _IDS.value_type) -> pa.Array:
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in values]
    wanted = "integers" if pa.types.is_integer(number) else "numbers"
    try:
        made = pa.array(rows) if rows else pa.array([], pa.list_(number))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise DataError(f"{name} must hold one list of {wanted} a row: {error}") from error
    kind = made.type.value_type if pa.types.is_list(made.type) else None
    if kind is None or not _is_number(kind, or_float=number == pa.float64()):
        raise DataError(
            f"{name} must hold one list of {wanted} a row, not {made.type}. In datasets.map, give batched=True."
        )
    try:
        return made.cast(pa.list_(number))
    except pa.ArrowInvalid as error:
        raise DataError(f"{name} holds numbers that are not {wanted}: {error}") from error


def _is_number(kind: pa.DataType, or_float: bool) -> bool:
    """Whether values of a type can be read as integers, or as any numbers; the null type of empty rows can."""
    whole = pa.types.is_integer(kind) or pa.types.is_null(kind)
    return bool(whole or (or_float and pa.types.is_floating(kind)))


def _is_conversation(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(message, Mapping) and "role" in message for message in value)


def _dumped(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class _BatchDecoder(Decoder):
    """Conversations as they are in the batch, not converted by Arrow."""

    def __init__(self, batch: Row) -> None:
        super().__init__()
        self._batch = batch

    def row(self, table: pa.Table, row: int) -> Conversation:
        place = table[_PLACE][row].as_py()
        messages = [message for name in self.columns(table) for message in mappings(name, self._batch[name][place])]
        there = [name for name in ("tools", "chat_template_kwargs") if name in table.column_names]
        extra = {name: self._batch[name][place] for name in there}
        variables = read_variables(extra.get("chat_template_kwargs"))
        columns = self.columns(table)
        prompt = len(self._batch[columns[0]][place]) if len(columns) > 1 else 0
        talk = Conversation(messages, read_tools(extra.get("tools")), variables, prompt)
        return expanded(talk, self._batch[EXPANSION][place]) if EXPANSION in table.column_names else talk
