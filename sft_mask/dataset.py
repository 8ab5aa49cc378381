"""Labels for whole datasets: Arrow buffers in, one Arrow column out.

Only the column that changes is written, to a file of its own beside the dataset's cache, and put next to the old columns;
the dataset's index mapping is kept. A file is written under another name and moved into place when it is whole, so a run
that dies leaves nothing that looks finished. Its name is a fingerprint of the dataset and of everything that decides a
label, so another run, or another rank, finds it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.errors import DataError
from sft_mask.masking import Decoder, MaskedBatch, Masker
from sft_mask.report import SplitReport

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ROWS_PER_BATCH = 1000
_LABELS = pa.list_(pa.int32())


def fingerprint_of(dataset: Dataset, key: tuple[object, ...]) -> str:
    """A name for the labels of one dataset under one setting; equal on every rank and from run to run."""
    from datasets.fingerprint import Hasher

    return str(Hasher.hash((dataset._fingerprint, *map(repr, key))))


def _cache_file(dataset: Dataset, fingerprint: str) -> Path | None:
    """Where the labels are kept: beside the dataset's own cache; ``None`` where it has none or caching is off."""
    import datasets

    files = dataset.cache_files
    if not files or not datasets.is_caching_enabled():
        return None
    return Path(files[0]["filename"]).parent / f"sft-mask-{fingerprint}.arrow"


def _used_rows(dataset: Dataset) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Rows of the underlying table that the dataset points at, in its order; ``None`` for all of them as they stand."""
    if dataset._indices is None:
        return None
    return np.asarray(dataset._indices.column(0), np.int64)


def _batches(dataset: Dataset, used: np.ndarray[Any, Any] | None) -> Iterator[tuple[int, pa.Table, Any]]:
    table = dataset._data
    flags = None
    if used is not None:
        flags = np.zeros(table.num_rows, np.bool_)
        flags[used] = True
    for first in range(0, table.num_rows, _ROWS_PER_BATCH):
        batch = table.fast_slice(first, min(_ROWS_PER_BATCH, table.num_rows - first))
        here = None if flags is None else flags[first : first + batch.num_rows]
        yield first, pa.table(batch) if not isinstance(batch, pa.Table) else batch, here


def _label_batches(
    dataset: Dataset, masker: Masker, used: np.ndarray[Any, Any] | None, progress: Callable[[int], None]
) -> Iterator[MaskedBatch]:
    decode = Decoder(dataset.features)
    for first, batch, here in _batches(dataset, used):
        yield masker.mask(batch, decode, first_row=first, used=here)
        progress(batch.num_rows)


def _as_column(batch: MaskedBatch) -> pa.RecordBatch:
    labels = pa.ListArray.from_arrays(pa.array(batch.offsets, pa.int32()), pa.array(batch.labels, pa.int32()))
    return pa.record_batch([labels], names=["labels"])


class _Written:
    """Sums over the batches as they are written."""

    def __init__(self) -> None:
        self.report = SplitReport()
        self.trained: list[np.ndarray[Any, Any]] = []
        self.dropped: dict[int, str] = {}
        self._rows = 0

    def add(self, batch: MaskedBatch) -> None:
        self.report += batch.report
        self.trained.append(batch.trained)
        self._rows += len(batch.trained)

    @property
    def trained_tokens(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self.trained) if self.trained else np.zeros(0, np.int64)


def _write(path: Path, batches: Iterator[MaskedBatch]) -> _Written:
    """Writes the labels and, beside them, their counts; both appear under their names only when they are whole."""
    written = _Written()
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, pa.schema({"labels": _LABELS})) as stream:
            for batch in batches:
                stream.write_batch(_as_column(batch))
                written.add(batch)
        counts = {"report": asdict(written.report), "trained": written.trained_tokens.tolist()}
        side = path.with_suffix(f".{os.getpid()}.json.partial")
        side.write_text(json.dumps(counts))
        side.replace(path.with_suffix(".json"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return written


def _read(path: Path) -> tuple[Any, _Written] | None:
    """Labels that were written before, with their counts; ``None`` where there are none, or not all of them."""
    from datasets.table import MemoryMappedTable

    side = path.with_suffix(".json")
    if not path.exists() or not side.exists():
        return None
    counts = json.loads(side.read_text())
    written = _Written()
    written.report = SplitReport(**counts["report"])
    written.trained = [np.asarray(counts["trained"], np.int64)]
    return MemoryMappedTable.from_file(str(path)), written


def label_dataset(
    dataset: Dataset, masker: Masker, key: tuple[object, ...], *, name: str = "train"
) -> tuple[Dataset, SplitReport]:
    """A dataset with response-only labels, without the rows that would train nothing.

    Args:
        dataset: has ``input_ids``; other columns are kept.
        masker: decides the labels.
        key: everything that decides a label; part of the fingerprint.
        name: of the split, for the progress bar.

    Raises:
        DataError: there is no ``input_ids`` column, or a row is malformed.
    """
    from datasets.table import InMemoryTable

    if "input_ids" not in dataset.column_names:
        raise DataError(
            f"The {name} dataset has no input_ids column (it has {', '.join(dataset.column_names)}). Pass a tokenized "
            "dataset, or one with messages."
        )
    used = _used_rows(dataset)
    fingerprint = fingerprint_of(dataset, key)
    path = _cache_file(dataset, fingerprint)
    known = _read(path) if path is not None else None
    if known is not None:
        labels, written = known
    else:
        with _progress(name, len(dataset._data)) as progress:
            batches = _label_batches(dataset, masker, used, progress)
            if path is not None:
                written = _write(path, batches)
                found = _read(path)
                assert found is not None, "labels that were just written are there"
                labels = found[0]
            else:
                written, columns = _Written(), []
                for batch in batches:
                    columns.append(_as_column(batch))
                    written.add(batch)
                labels = InMemoryTable(pa.Table.from_batches(columns, pa.schema({"labels": _LABELS})))
    labelled = _beside(dataset, labels, fingerprint)
    trained = written.trained_tokens
    keep = np.flatnonzero((trained if used is None else trained[used]) > 0)
    if len(keep) < len(dataset):
        labelled = labelled.select(keep)
    return labelled, written.report


class _progress:
    """The progress bar of ``datasets``, which people can switch off where they expect to."""

    def __init__(self, name: str, rows: int) -> None:
        from datasets.utils import tqdm

        self._bar = tqdm(total=rows, desc=f"Masking {name}", unit=" rows")

    def __enter__(self) -> Callable[[int], None]:
        return self._bar.update  # type: ignore[no-any-return]

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def _beside(dataset: Dataset, labels: Any, fingerprint: str) -> Dataset:
    """The dataset with one column exchanged; the same rows in the same order, nothing else copied."""
    from datasets import Dataset, Features, List, Value
    from datasets.table import concat_tables

    old = dataset._data
    if "labels" in old.column_names:
        old = old.remove_column(old.column_names.index("labels"))
    info = dataset.info.copy()
    features = {name: feature for name, feature in dataset.features.items() if name != "labels"}
    info.features = Features({**features, "labels": List(Value("int32"))})
    made = Dataset(
        concat_tables([old, labels], axis=1),
        info=info,
        split=dataset.split,
        indices_table=dataset._indices,
        fingerprint=fingerprint,
    )
    shown = dict(dataset.format)
    if set(shown["columns"]) >= set(dataset.column_names):
        shown["columns"] = None
    elif "labels" not in shown["columns"]:
        shown["columns"] = [*shown["columns"], "labels"]
    if shown["type"] is not None or shown["columns"] is not None:
        made.set_format(**shown)
    return made


class LabelBatch:
    """Labels a batch of Python lists: for ``datasets.map(batched=True)``, streams and plain loops.

    Returns ``{"labels": [...]}``; each row a list of its ids where trained and ``IGNORE_INDEX`` elsewhere.
    """

    def __init__(self, masker: Masker, record: Callable[[SplitReport], None] | None = None) -> None:
        self._masker = masker
        self._record = record

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[list[int]]]:
        masked = self._masker.mask(batch_table(batch), Decoder())
        if self._record is not None:
            self._record(masked.report)
        bounds = masked.offsets.tolist()
        rows = [masked.labels[low:high].tolist() for low, high in zip(bounds, bounds[1:], strict=False)]
        return {"labels": rows}


_READ = ("input_ids", "labels", "seq_lengths", "messages", "conversations", "prompt", "completion", "tools")


def batch_table(batch: Mapping[str, Any]) -> pa.Table:
    """The columns that masking reads, as Arrow; rows may be lists, NumPy arrays or tensors.

    Raises:
        DataError: a column cannot be read as a list of rows.
    """
    columns = {}
    for name in _READ:
        values = batch.get(name)
        if values is None or all(value is None for value in values):
            continue
        try:
            columns[name] = pa.array([row.tolist() if hasattr(row, "tolist") else row for row in values])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"The column {name} of the batch cannot be read: {error}") from error
    return pa.table(columns)


def label_stream(dataset: IterableDataset, masker: Masker, record: Callable[[SplitReport], None]) -> IterableDataset:
    """A stream with response-only labels, made as rows are read; rows that would train nothing are passed over."""
    labelled = dataset.map(LabelBatch(masker, record), batched=True, batch_size=64)
    return labelled.filter(has_trained_token)


def has_trained_token(row: Mapping[str, Any]) -> bool:
    """Whether any label of a row is trained."""
    from sft_mask.constants import IGNORE_INDEX

    return any(label != IGNORE_INDEX for label in row["labels"])
