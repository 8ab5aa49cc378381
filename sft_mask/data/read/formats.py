"""Rows of a dataset whatever its format: some of them, all as Python objects, and back in the format it had."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_SAMPLED_ROWS = 256
_SAMPLED_OF_STREAM = 32


def sample_rows(dataset: Any, count: int = _SAMPLED_ROWS) -> list[Ids]:
    """Some rows of ids, spread over the dataset (the first ones of a stream)."""
    if hasattr(dataset, "__len__"):
        picked = np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(np.int64))
        column, used = dataset._data["input_ids"], dataset._indices
        places = picked if used is None else used.column(0).take(picked)
        rows = [_numbers(row) for row in (column[place] for place in np.asarray(places).tolist()) if row.is_valid]
    else:
        rows = [row.get("input_ids") for row in islice(dataset, min(count, _SAMPLED_OF_STREAM))]
    return readable(rows)


def _numbers(row: pa.Scalar) -> object:
    """A row of a column; numbers in a list without a Python object for each."""
    kind = getattr(row.type, "value_type", None)
    return row.values.to_numpy(zero_copy_only=False) if kind is not None and pa.types.is_integer(kind) else row.as_py()


def readable(rows: Iterable[object]) -> list[Ids]:
    """The rows that are token ids; errors about the others, with their numbers, are raised where rows are masked."""
    read: list[Ids] = []
    for row in rows:
        try:
            ids = np.asarray(row)
        except ValueError:  # lists of different lengths inside
            continue
        if ids.ndim == 1 and (ids.dtype.kind in "iu" or not len(ids)):
            read.append(ids.astype(np.int64))
    return read


def plain(dataset: Any) -> Any:
    """The dataset with rows of Python objects, whatever its format; rows that are made on the fly stay so."""
    kind = _format_of(dataset)
    return dataset if kind in (None, "custom") else dataset.with_format(None)


def _format_of(dataset: Any) -> str | None:
    """The name of a dataset's format (``"python"`` where some columns are hidden); ``None`` where there is none."""
    if not hasattr(dataset, "format"):
        return getattr(getattr(dataset, "_formatting", None), "format_type", None)
    shown = dataset.format
    kind: str | None = shown["type"]
    return "python" if kind is None and {*shown["columns"]} != {*dataset.column_names} else kind


def in_format_of(dataset: Any, made: Any) -> object:
    """What was made of a plain dataset, in its format; columns that were added are shown."""
    kind = _format_of(dataset)
    if kind in (None, "custom"):
        return made
    if not hasattr(dataset, "format"):
        return made.with_format(kind)
    shown, before, now = dataset.format, dataset.column_names, made.column_names
    hidden = {*before} - {*shown["columns"]}
    columns = [name for name in now if name not in hidden] if hidden else None
    return made.with_format(shown["type"], columns, shown["output_all_columns"], **shown["format_kwargs"])


def column_names(dataset: Any) -> list[str]:
    """Columns of a dataset; of a stream that does not know them, those of its first row."""
    return list(dataset.column_names or next(iter(dataset), {}))


def named_splits(trainer: Any) -> dict[str, Any]:
    """The datasets of a trainer by name: ``train``, and ``eval`` or one ``eval:NAME`` for each of a dict."""
    evals = trainer.eval_dataset
    named = {f"eval:{name}": split for name, split in evals.items()} if isinstance(evals, dict) else {"eval": evals}
    return {"train": trainer.train_dataset, **{name: split for name, split in named.items() if split is not None}}
