"""Datasets that ``mask_dataset`` made: their labels are final, also after truncation and packing.

The dataset's description says so, and stays with it through maps, packing and disk. A stream has no description.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow.compute as pc

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import offsets_of
from sft_mask.core.label_codec import PLAIN_BELOW, has_weights
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.read.columns import list_values
from sft_mask.errors import LabelsChangedError, UnsupportedError
from sft_mask.report import SplitReport

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_mask.core.policy import Policy

_NOTE: Final = "Labels are response-only (sft_mask)."
_ROWS_AT_ONCE = 4000


def note_masked(dataset: Any, policy: Policy) -> object:
    """The dataset, whose description now says that its labels are final, and by which policy."""
    if hasattr(dataset, "__len__") and not is_masked(dataset):
        dataset.info.description = f"{dataset.info.description}\n{_NOTE} {policy!r}".strip()
    return dataset


def refuse_late_policy(dataset: object, policy: Policy) -> None:
    """Refuses a policy other than the one that made the labels; no policy, or the same one, is accepted.

    Raises:
        UnsupportedError: the labels are final, and this policy would not change them.
    """
    if is_masked(dataset) and policy != type(policy)() and masked_by(dataset) != repr(policy):
        raise UnsupportedError(
            "The train dataset was masked by mask_dataset before the trainer was built: its labels are final, and this "
            "policy would not change them. Give it to mask_dataset(dataset, tokenizer, policy=...), and here the same "
            "or none."
        )


def is_masked(dataset: Any) -> bool:
    """Whether the labels of a dataset are final.

    The description can outlive the labels (if the dataset is tokenized again, for example): labels made by a trainer
    are int64 and carry no weights.
    """
    if _NOTE not in (dataset.info.description or "") or "labels" not in (dataset.column_names or ()):
        return False
    return dataset.features["labels"].feature.dtype == "int32" or is_weighted(dataset)


def masked_by(dataset: Any) -> str:
    """The policy that made the labels of a masked dataset, as it is written."""
    return str(dataset.info.description).partition(_NOTE)[2].strip().partition("\n")[0]


def is_weighted(dataset: Any) -> bool:
    """Whether labels of a dataset carry weights, which only this library's do; for a stream this is unknown."""
    if not hasattr(dataset, "__len__") or "labels" not in dataset.column_names:
        return False
    highest = pc.max(pc.list_flatten(dataset.data.column("labels"))).as_py()
    return highest is not None and highest >= PLAIN_BELOW


def keep_labels(
    dataset: Dataset, *, keep_all_rows: bool = False, max_length: int | None = None
) -> tuple[Dataset, SplitStats, bool]:
    """The dataset without rows that train nothing (unless ``keep_all_rows``), its counts, and whether its labels carry
    weights.

    Args:
        dataset: with labels that are final.
        keep_all_rows: keep rows that train nothing too.
        max_length: where a trainer truncated the rows, so that the end of those as long as that may be missing.

    Raises:
        LabelsChangedError: every token is trained, so these are not the labels that were made.
    """
    stats, weighted, trained = SplitStats(), False, []
    for batch in dataset.with_format("arrow").iter(_ROWS_AT_ONCE):
        labels, offsets = list_values(batch["labels"])
        weighted = weighted or has_weights(labels)
        before = offsets_of(labels != IGNORE_INDEX)
        counts = np.diff(before[offsets])
        trained.append(counts)
        kept = counts > 0
        lengths = batch["seq_lengths"] if "seq_lengths" in batch.column_names else None
        sizes, packed = list_values(lengths) if lengths is not None else (np.diff(offsets), np.arange(len(counts) + 1))
        documents = np.diff(packed)
        dropped = int((~kept).sum())
        report = SplitReport(
            rows=int(kept.sum()),
            documents=int(documents[kept].sum()),
            tokens=int(np.diff(offsets)[kept].sum()),
            trained_tokens=int(counts.sum()),
            rows_dropped=dropped,
            dropped_reasons={"with nothing left to train": dropped} if dropped else {},
            rows_masked_before=int(kept.sum()),
            rows_at_max_length=int((sizes == max_length).sum()),
        )
        stats.add(report)
    if not weighted and stats.report.trained_tokens == stats.report.tokens > 0:
        raise LabelsChangedError(
            "The dataset was masked by mask_dataset, but now every one of its tokens is trained: its labels were "
            "replaced since. Mask it again before the trainer is built."
        )
    keep = np.flatnonzero(np.concatenate(trained)) if trained else np.zeros(0, np.int64)
    whole = keep_all_rows or len(keep) == len(dataset)
    return (dataset if whole else dataset.select(keep)), stats, weighted
