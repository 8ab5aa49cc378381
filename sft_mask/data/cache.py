"""Labels on disk: one Arrow file with the labels and the number of trained tokens of each row, one JSON file with sums.

Files are written under another name and renamed when they are complete, the Arrow file last: a file with its final name
is complete. A run that is killed leaves a ``.partial`` file that is never read.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.data.accounting.stats import SplitStats
from sft_mask.report import SplitReport

if TYPE_CHECKING:
    from numpy.typing import NDArray


def schema(weighted: bool) -> pa.Schema:
    """Columns of the file; labels that carry weights take 64 bits."""
    return pa.schema({"labels": pa.list_(pa.int64() if weighted else pa.int32()), "trained": pa.int32()})


@dataclass(frozen=True, slots=True)
class Labels:
    """Labels of every row of a dataset's table.

    Attributes:
        table: a ``datasets`` table with the one column ``labels``.
        trained: ``(rows,)`` whether each row trains anything.
        stats: sums over the rows that the dataset uses.
    """

    table: object
    trained: NDArray[np.bool_]
    stats: SplitStats


def store(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch], stats: SplitStats) -> Labels:
    """Writes batches of :func:`schema` as they come; ``stats`` is complete when the last one came."""
    with replacing(path, "labels") as partial:
        write_stream(partial, columns, batches)
        with replacing(path.with_suffix(".json"), "labels") as side:
            side.write_text(json.dumps(asdict(stats.report)))
    return _load(path)


def write_stream(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes batches to an Arrow file as they come."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, columns) as stream:
        for batch in batches:
            stream.write_batch(batch)


@contextmanager
def replacing(path: Path, what: str) -> Iterator[Path]:
    """A path to write to; what is there in the end gets the name ``path``, unless anything failed.

    Raises:
        OSError: it could not be written; no unfinished file is left.
    """
    partial = path.with_suffix(f".{uuid.uuid4().hex}{path.suffix}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        if isinstance(error, _NotWrittenError):
            raise
        text = (
            f"{error.strerror or error}, while {what} were written. Nothing was changed, and no unfinished file "
            "is left. Free some space there, or move the dataset, and call again"
        )
        raise _NotWrittenError(error.errno, text, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


class _NotWrittenError(OSError):
    """Says what could not be written."""


def stored(path: Path, rows: int) -> Labels | None:
    """Labels that were written before; ``None`` if there are none, for another number of rows, or if damaged."""
    try:
        labels = _load(path)
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError):
        return None
    return labels if len(labels.trained) == rows else None


def _load(path: Path) -> Labels:
    from datasets.table import MemoryMappedTable

    whole = MemoryMappedTable.from_file(str(path))
    stats = SplitStats(SplitReport(**json.loads(path.with_suffix(".json").read_text())))
    return Labels(whole.select(["labels"]), _trains(whole), stats)


def in_memory(columns: pa.Schema, batches: Iterable[pa.RecordBatch], stats: SplitStats) -> Labels:
    """The same for a dataset in memory."""
    from datasets.table import InMemoryTable

    whole = InMemoryTable(pa.Table.from_batches(list(batches), columns))
    return Labels(whole.select(["labels"]), _trains(whole), stats)


def _trains(whole: Any) -> NDArray[np.bool_]:
    """Chunk by chunk, because the whole column may not fit into memory."""
    none = np.zeros(0, np.bool_)
    return np.concatenate([none, *(np.asarray(chunk) > 0 for chunk in whole.column("trained").chunks)])
