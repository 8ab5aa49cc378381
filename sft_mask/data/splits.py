"""One split, whatever it is made of: a ``Dataset`` at once, a stream as it is read."""

from __future__ import annotations

from typing import Any

import numpy as np

from sft_mask._compat import main_process_first
from sft_mask.data.batches import Tally
from sft_mask.data.dataset import label_dataset
from sft_mask.data.masker import Masker
from sft_mask.data.roles import without_answers
from sft_mask.data.setup import sample_rows
from sft_mask.data.stream import label_stream
from sft_mask.errors import NothingToTrainError
from sft_mask.report import SplitReport

_LOOKED_AT = 64


def mask_split(
    dataset: Any,
    masker: Masker,
    key: tuple[object, ...],
    name: str,
    *,
    max_length: int | None = None,
    keep_all_rows: bool = False,
    source: Any = None,
) -> tuple[Any, Tally]:
    """Masks a split; the first process of each node goes first, and the others read what it wrote.

    ``source`` is the dataset that this one was made from, if another one: errors name its columns.

    Raises:
        NothingToTrainError: no row of the split (or of the first batch of a stream) would train anything.
    """
    if hasattr(dataset, "__len__"):
        with main_process_first():
            labelled, tally = label_dataset(dataset, masker, key, name=name, keep_all_rows=keep_all_rows)
    else:
        labelled, tally = label_stream(dataset, masker, name, keep_all_rows=keep_all_rows)
    if not tally.report.trained_tokens:
        raise _nothing(dataset, name, tally.report, masker, max_length, dataset if source is None else source)
    return labelled, tally


def _nothing(
    dataset: Any, name: str, report: SplitReport, masker: Masker, max_length: int | None, source: Any
) -> NothingToTrainError:
    rows = sample_rows(dataset, _LOOKED_AT)
    first = rows[0] if rows else np.zeros(0, np.int64)
    full = sum(len(row) >= max_length for row in rows) if max_length else 0
    text = masker.finder.vocabulary.text(first[:120].tolist())[:400]
    count = f"{report.rows_seen} row{'' if report.rows_seen == 1 else 's'}"
    of = f"All {count}" if hasattr(dataset, "__len__") else f"The first {count}"
    seen = f"{of} of the {name} dataset would be masked completely: nothing would be trained."
    found = without_answers(source, f"the {name} dataset")
    if found is not None:
        return NothingToTrainError(f"{seen} {found}")
    if full * 2 > len(rows):
        why = (
            f"{full} of {len(rows)} rows looked at are {max_length} tokens long, the trainer's max_length: truncation "
            "ate the answers. Raise max_length, shorten the prompts, or use truncation_mode='keep_end'."
        )
    elif report.rows_ambiguous * 2 > report.rows_seen:
        why = (
            f"{report.rows_ambiguous} of them are ambiguous, and on_ambiguous={masker.on_ambiguous!r} leaves them out. "
            "Call again with on_ambiguous='error' to read why."
        )
    else:
        why = (
            "No row holds an answer that is not masked already (labels that were IGNORE_INDEX stay so). Compare the "
            f"markers {', '.join(map(repr, masker.markers.response))} with the first row, and with its labels."
        )
    return NothingToTrainError(f"{seen} {why} The first row begins\n    {text!r}\nwith ids {first[:24].tolist()}.")
