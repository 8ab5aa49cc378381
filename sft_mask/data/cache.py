"""Labels on disk: one Arrow file with the labels and the number of trained tokens of each row, one JSON file with sums.

Files are written under another name and moved into place when they are whole, the Arrow file last: what is found under
its own name is finished. A run that dies leaves a ``.partial`` file that nobody reads.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.data.stats import SplitStats
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

    table: Any
    trained: NDArray[np.bool_]
    stats: SplitStats


def store(path: Path, columns: pa.Schema, batches: Iterable[pa.RecordBatch], stats: SplitStats) -> Labels:
    """Writes batches of :func:`schema` as they come; ``stats`` is complete when the last one came."""
    unique = uuid.uuid4().hex
    partial, side = path.with_suffix(f".{unique}.arrow.partial"), path.with_suffix(f".{unique}.json.partial")
    try:
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_stream(sink, columns) as stream:
            for batch in batches:
                stream.write_batch(batch)
        side.write_text(json.dumps(asdict(stats.report)))
        side.replace(path.with_suffix(".json"))
        partial.replace(path)
    except OSError as error:
        text = (
            f"{error.strerror or error}, while labels were written. Nothing was changed, and nothing half done is "
            "left. Make room there, or move the dataset, and call again"
        )
        raise OSError(error.errno, text, str(path)) from error
    finally:
        partial.unlink(missing_ok=True)
        side.unlink(missing_ok=True)
    return _load(path)


def stored(path: Path, rows: int) -> Labels | None:
    """Labels that were written before; ``None`` where there are none, or not of so many rows, or a damaged file."""
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
    """The same for a dataset that has no files of its own."""
    from datasets.table import InMemoryTable

    whole = InMemoryTable(pa.Table.from_batches(list(batches), columns))
    return Labels(whole.select(["labels"]), _trains(whole), stats)


def _trains(whole: Any) -> NDArray[np.bool_]:
    """Chunk by chunk: the column itself may be larger than all that masking needs."""
    none = np.zeros(0, np.bool_)
    return np.concatenate([none, *(np.asarray(chunk) > 0 for chunk in whole.column("trained").chunks)])
