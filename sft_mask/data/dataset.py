"""Labels for a ``datasets.Dataset``: Arrow buffers in, one Arrow column out.

Only the column that changes is written, to a file of its own beside the dataset's cache, and put next to the old
columns; the dataset's index mapping is kept. The name of the file is a fingerprint of the dataset and of everything
that decides a label, so another run, or another rank, finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.core.arrays import Ints, Labels, offsets_of
from sft_mask.data import cache
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.batches import READ, list_column, mask_rows
from sft_mask.data.expand import expansion_of
from sft_mask.data.faults.roles import no_rows
from sft_mask.data.masker import Masker
from sft_mask.data.outcome import MaskedBatch
from sft_mask.data.read.conversations import EXPANSION, Decoder
from sft_mask.data.read.rows import LOSS_WEIGHTS
from sft_mask.errors import DataError, UnsupportedError

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_mask.core.packing import RowCutting


_ROWS_AT_ONCE = 4000
_TOKENS_AT_ONCE = 1 << 20
"""A batch ends at whichever comes first, so that memory depends on neither the dataset nor the length of its rows."""


def label_dataset(
    dataset: Dataset, masker: Masker, *, name: str = "train", keep_all_rows: bool = False
) -> tuple[Dataset, SplitStats]:
    """A dataset with response-only labels, without the rows that would train nothing.

    Args:
        dataset: has ``input_ids``; other columns, the format and the order of the rows are kept.
        masker: decides the labels.
        name: of the split, for the progress bar and for errors.
        keep_all_rows: keep rows that train nothing too, so that row ``i`` stays row ``i``.

    Raises:
        DataError: there is no ``input_ids`` column, or a row is malformed.
        UnsupportedError: rows are computed when they are read (``with_transform``).
    """
    check_columns(dataset, name)
    used = used_rows(dataset)
    fingerprint = fingerprint_of(dataset, masker.key)
    labels = _labels(dataset, masker, used, fingerprint, name)
    labelled = beside(dataset, labels.table, fingerprint)
    trained = labels.trained if used is None else labels.trained[used]
    if not keep_all_rows and not trained.all():
        labelled = labelled.select(np.flatnonzero(trained))
    return labelled, labels.stats


def check_columns(dataset: Dataset, name: str) -> None:
    """Refuses what cannot be labelled, before anything is read."""
    refuse_transform(dataset, name)
    where = f"the {name} dataset"
    list_column(dataset._data, "input_ids", where)
    if "labels" in dataset._data.column_names:
        list_column(dataset._data, "labels", where)
    _check_loss_weights(dataset._data.schema, where)
    if not len(dataset):
        raise no_rows(dataset, where)


def refuse_transform(dataset: Any, name: str) -> None:
    """Refuses a dataset whose rows are computed when they are read."""
    if hasattr(dataset, "format") and dataset.format["type"] == "custom":
        raise UnsupportedError(
            f"Rows of the {name} dataset are computed when they are read (with_transform or set_transform), so there "
            "is nothing to label. Make them once with dataset.map(...)."
        )


def _check_loss_weights(schema: pa.Schema, where: str) -> None:
    """Refuses a column of weights that holds something other than one list of numbers a row."""
    if LOSS_WEIGHTS not in schema.names:
        return
    kind = schema.field(LOSS_WEIGHTS).type
    number = getattr(kind, "value_type", kind)
    if number == kind or not (pa.types.is_integer(number) or pa.types.is_floating(number)):
        raise DataError(
            f"The loss_weights column of {where} holds {kind}, not one list of numbers a row. Give one number a token, "
            "or leave the column out."
        )


def fingerprint_of(dataset: Dataset, key: tuple[object, ...]) -> str:
    """A name for the labels of one dataset under one setting; equal on every rank and from run to run."""
    from datasets.fingerprint import Hasher

    return str(Hasher.hash((dataset._fingerprint, *map(repr, key))))


def _labels(dataset: Dataset, masker: Masker, used: Ints | None, fingerprint: str, name: str) -> cache.Labels:
    folder = cache_folder(dataset)
    path = folder / f"cache-sft-mask-{fingerprint}.arrow" if folder is not None else None
    rows = dataset._data.num_rows
    known = cache.stored(path, rows) if path is not None else None
    if known is not None:
        return known
    from datasets.utils import tqdm  # disable_progress_bars() switches it off

    stats = SplitStats()
    with tqdm(total=rows, desc=f"Masking {name}", unit=" rows") as bar:
        columns = cache.schema(masker.carries_weights(dataset._data.column_names))
        batches = _label_batches(dataset, masker, used, stats, name, bar.update)
        if path is None:
            return cache.in_memory(columns, batches, stats)
        return cache.store(path, columns, batches, stats)


def cache_folder(dataset: Dataset) -> Path | None:
    """Where the labels are kept.

    Beside the dataset's own files, where ``dataset.cleanup_cache_files()`` finds what is there; in a temporary
    folder of this process if caching is off or the folder is not writable; ``None`` for a dataset in memory.
    """
    import datasets
    from datasets.fingerprint import get_temporary_cache_files_directory

    if not dataset.cache_files:
        return None
    folder = Path(dataset.cache_files[0]["filename"]).parent
    if datasets.is_caching_enabled() and os.access(folder, os.W_OK):
        return folder
    return Path(get_temporary_cache_files_directory())


# batches


def used_rows(dataset: Dataset) -> Ints | None:
    """Rows of the underlying table that the dataset uses, in its order; ``None`` for all in the table's order."""
    if dataset._indices is None:
        return None
    return np.asarray(dataset._indices.column(0), np.int64)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Some rows of the underlying table.

    Attributes:
        table: the columns that decide labels, of the rows that are used.
        numbers: ``(used,)`` numbers of these rows in the dataset.
        places: ``(used,)`` their places in the batch, ascending; twice where the dataset holds a row twice.
        rows: rows in the batch, used or not.
    """

    table: pa.Table
    numbers: Ints
    places: Ints
    rows: int


def _batches(dataset: Dataset, used: Ints | None, cutting: RowCutting | None = None) -> Iterator[_Batch]:
    table = dataset._data.select([name for name in READ if name in dataset._data.column_names])
    if cutting is not None and cutting.kind == "wrapped" and used is None:
        bounds = _whole_chains(table, cutting.length)
    else:
        bounds = _row_ranges(table["input_ids"])
    if EXPANSION in table.column_names and used is None:
        bounds = _whole_conversations(bounds, table)
    order = np.argsort(used, kind="stable") if used is not None else None
    sorted_rows = used[order] if used is not None and order is not None else None
    for first, last in bounds:
        part = table.fast_slice(first, last - first)
        if order is None or sorted_rows is None:
            yield _Batch(part, np.arange(first, last), np.arange(part.num_rows), part.num_rows)
        else:
            low, high = np.searchsorted(sorted_rows, [first, last])
            places = sorted_rows[low:high] - first
            yield _Batch(_taken(part, places), order[low:high], places, part.num_rows)


def _taken(part: pa.Table, places: Ints) -> pa.Table:
    """The rows at some places; few long runs are sliced, which is faster than to take each row."""
    ends = np.append(np.flatnonzero(np.diff(places) != 1), len(places) - 1)
    if 4 * len(ends) > len(places):
        return part.take(places)
    begins = np.append(0, ends[:-1] + 1)
    rows = zip(places[begins].tolist(), (ends - begins + 1).tolist(), strict=True)
    return pa.concat_tables([part.slice(first, count) for first, count in rows])


def _whole_chains(table: Any, length: int) -> Iterator[tuple[int, int]]:
    """First and last row of batches that end where a packed text ends: at a row that is not full.
    Packing maps a thousand conversations at a time, so such a row comes soon.
    """
    first, count = 0, _ROWS_AT_ONCE
    while first < table.num_rows:
        lengths = _lengths(table.fast_slice(first, min(count, table.num_rows - first))["input_ids"])
        ends = np.flatnonzero(lengths != length)
        if not len(ends) and first + len(lengths) < table.num_rows:
            count *= 2
            continue
        fitting = ends[ends < np.searchsorted(np.cumsum(lengths), _TOKENS_AT_ONCE, side="right")]
        rows = (fitting[-1] if len(fitting) else ends[0]) + 1 if len(ends) else len(lengths)
        yield first, first + int(rows)
        first, count = first + int(rows), _ROWS_AT_ONCE


def _whole_conversations(bounds: Iterator[tuple[int, int]], table: Any) -> Iterator[tuple[int, int]]:
    """The same batches, each moved to where an expanded conversation ends."""
    conversation = np.concatenate([np.asarray(chunk.field("conversation")) for chunk in table[EXPANSION].chunks])
    ends = np.append(np.flatnonzero(np.diff(conversation)) + 1, len(conversation))
    first = 0
    for _, last in bounds:
        end = int(ends[np.searchsorted(ends, last)])
        if end > first:
            yield first, end
        first = max(first, end)


def _row_ranges(ids: pa.ChunkedArray) -> Iterator[tuple[int, int]]:
    """First and last row of batches of a limited number of tokens and rows; a batch also ends where an Arrow chunk ends
    in its second half, because rows of one chunk need no copy.
    """
    first = last = tokens = 0
    for lengths, is_end in _windows(ids):
        ends, done = offsets_of(lengths), 0
        while done < len(lengths):
            fitting = int(np.searchsorted(ends, ends[done] + _TOKENS_AT_ONCE - tokens, side="right")) - 1
            end = max(min(fitting, done + _ROWS_AT_ONCE - (last - first)), done + (last == first))
            tokens, last = tokens + int(ends[end] - ends[done]), last + end - done
            done = end
            if done < len(lengths) or (is_end and 2 * tokens >= _TOKENS_AT_ONCE):
                yield first, last
                first, tokens = last, 0
    if last > first:
        yield first, last


def _windows(ids: pa.ChunkedArray) -> Iterator[tuple[Ints, bool]]:
    """Lengths of some rows at a time, and whether they are the last of their chunk."""
    for chunk in ids.chunks:
        for first in range(0, len(chunk), _ROWS_AT_ONCE):
            yield _lengths(chunk.slice(first, _ROWS_AT_ONCE)), first + _ROWS_AT_ONCE >= len(chunk)


def _lengths(ids: pa.ChunkedArray | pa.Array) -> Ints:
    return np.asarray(pc.fill_null(pc.list_value_length(ids), 0), np.int64)


def _label_batches(
    dataset: Dataset,
    masker: Masker,
    used: Ints | None,
    stats: SplitStats,
    name: str,
    advance: Callable[[int], object],
) -> Iterator[pa.RecordBatch]:
    decode = Decoder(dataset.features)
    for batch in _batches(dataset, used, masker.cutting):
        if len(batch.places):
            where = f"the {name} dataset"
            table = decode.prepared(batch.table)
            expansion = expansion_of(table)
            numbers = batch.numbers if expansion is None else expansion.conversation
            masked = mask_rows(masker, table, decode, numbers, where, adjacent=used is None)
            stats.add(masked.report)
            yield _spread(masked, batch.places, batch.rows)
        else:
            dtype = np.int64 if masker.carries_weights(batch.table.column_names) else np.int32
            yield _record(np.zeros(0, dtype), np.zeros(batch.rows, np.int64), np.zeros(batch.rows, np.int64))
        advance(batch.rows)


def _spread(masked: MaskedBatch, places: Ints, rows: int) -> pa.RecordBatch:
    """Labels of the rows that are used, at their places; the others get an empty list, which is never read."""
    lengths = np.diff(masked.offsets)
    first = np.append(True, places[1:] != places[:-1])
    labels = masked.labels if first.all() else masked.labels[np.repeat(first, lengths)]
    all_lengths, trained = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    all_lengths[places], trained[places] = lengths, masked.trained
    return _record(labels, all_lengths, trained)


def _record(labels: Labels, lengths: Ints, trained: Ints) -> pa.RecordBatch:
    offsets = offsets_of(lengths).astype(np.int32)
    column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(labels))
    columns = cache.schema(weighted=labels.dtype == np.int64)
    return pa.record_batch([column, pa.array(trained.astype(np.int32))], schema=columns)


# the new dataset


def beside(dataset: Dataset, columns: Any, fingerprint: str) -> Dataset:
    """The dataset with new columns of lists; the same rows in the same order, nothing else copied.

    Args:
        dataset: columns of the same names are left out.
        columns: a table of ``datasets`` with as many rows as the dataset's own.
        fingerprint: of the dataset that is made.
    """
    from datasets import Dataset, Features, List, Value
    from datasets.table import concat_tables

    old, names = dataset._data, columns.column_names
    for name in {*names} & {*old.column_names}:
        old = old.remove_column(old.column_names.index(name))
    info = dataset.info.copy()
    kept = {name: feature for name, feature in dataset.features.items() if name not in names}
    new = {name: List(Value(str(columns.schema.field(name).type.value_type))) for name in names}
    info.features = Features({**kept, **new})
    made = Dataset(
        concat_tables([old, columns], axis=1),
        info=info,
        split=dataset.split,
        indices_table=dataset._indices,
        fingerprint=fingerprint,
    )
    shown = dataset.format
    everything = set(shown["columns"]) >= set(dataset.column_names)
    columns = None if everything else list(dict.fromkeys([*shown["columns"], *names]))
    if shown["type"] is not None or columns is not None:
        made.set_format(shown["type"], columns, shown["output_all_columns"], **shown["format_kwargs"])
    return made
