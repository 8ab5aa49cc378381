"""Rows of a split beside the batches that the trainer's own dataloader makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.core.policy import Policy
from sft_mask.data.masker import Masker
from sft_mask.data.prelabelled import is_masked, masked_by
from sft_mask.explanations.rows import InspectedRow, inspect_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.explanations.reasons import Part


_ROWS = 32
"""Rows of a split that are looked at, spread over it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One row as the loss will see it, beside what it should be.

    Attributes:
        row: the row and how it is masked here.
        parts: its tokens by who says them.
        stored: ``(tokens,)`` whether the dataset's label trains each token.
        trained: ``(tokens,)`` whether the batch's label does.
        weights: ``(tokens,)`` of the batch's labels.
        wrong_ids: tokens whose label is another id.
    """

    row: InspectedRow
    parts: Sequence[Part]
    stored: Bools
    trained: Bools
    weights: NDArray[np.float32]
    wrong_ids: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of a split.

    Attributes:
        name: of the split.
        rows: each beside its labels in the batch.
        batches: as the dataloader gives them.
        trained_padding: padded places of the batches that are trained.
        other_ids: why the batches hold other tokens than the dataset, ``""`` where they do not.
    """

    name: str
    rows: Sequence[Seen]
    batches: Sequence[dict[str, Any]]
    trained_padding: int
    other_ids: str


def take_sample(trainer: Any, dataset: Any, masker: Masker, name: str, tell: Any) -> Sample:
    """Some rows of a split, through the trainer's dataloader.

    Args:
        trainer: whose collator, columns and dataloader are used.
        dataset: the split as the trainer holds it.
        masker: decides how rows should be masked.
        name: of the split.
        tell: :meth:`sft_mask.explanations.reasons.Storyteller.parts`.
    """
    chosen = _some_rows(dataset)
    stored = [label_ids(np.asarray(labels)) for labels in chosen.with_format(None)["labels"]]
    batches = [dict(batch) for batch in trainer.get_eval_dataloader(chosen)]
    ids, labels, padding = _flattened(batches)
    wanted = inspect_rows(_to_mask(chosen, stored, trainer), masker, range(len(chosen)), name)
    rows: list[Seen] = []
    at, other = 0, ""
    for number, row in enumerate(wanted):
        size = len(row.ids)
        if not np.array_equal(ids[at : at + size], row.ids):
            other = _why_other(batches, row.ids, number)
            break
        given = labels[at : at + size]
        plain, weights = label_ids(given), label_weights(given)
        wrong = int(np.sum((plain != IGNORE_INDEX) & (plain != row.ids)))
        rows.append(Seen(row, tell(row), stored[number] != IGNORE_INDEX, weights > 0, weights, wrong))
        at += size
    return Sample(name, rows, batches, padding, other)


def _why_other(batches: Sequence[dict[str, Any]], ids: Ints, number: int) -> str:
    """Why a row is not found in its batch."""
    for batch in batches:
        for given in batch["input_ids"].cpu().numpy():
            if np.array_equal(given[: len(ids)], ids):
                return f"its attention_mask hides tokens of row {number} that are no padding"
    return f"row {number}, which begins {ids[:8].tolist()}, is in no batch"


def _some_rows(dataset: Any) -> Dataset:
    from datasets import Dataset

    if not hasattr(dataset, "__len__"):
        return Dataset.from_list(list(islice(dataset, _ROWS)))
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(_ROWS, len(dataset))).astype(np.int64))
    chosen: Dataset = dataset.select(numbers)
    return chosen


def _to_mask(chosen: Dataset, stored: Sequence[Ids], trainer: Any) -> Dataset:
    """The rows to be masked again: without labels that somebody gave them, unless those were meant as a mask.

    Meant are those of this library, and of prompt and completion, where TRL leaves the prompt's answers out.
    """
    masked = is_masked(chosen)
    by_us = masked_by(chosen) != repr(Policy()) if masked else hasattr(trainer, "_sft_mask")
    meant = by_us or "completion" in chosen.column_names
    bare = chosen.remove_columns("labels")
    if not meant:
        return bare
    labelled: Dataset = bare.add_column("labels", [labels.tolist() for labels in stored])
    return labelled


def _flattened(batches: Sequence[dict[str, Any]]) -> tuple[Ints, Ints, int]:
    """Ids and labels of all batches without padding, and how many padded places are trained."""
    ids: list[Ints] = []
    labels: list[Ints] = []
    padding = 0
    for batch in batches:
        real = _real(batch)
        given = batch["labels"].cpu().numpy()
        padding += int((given[~real] != IGNORE_INDEX).sum())
        for row in range(len(given)):
            ids.append(batch["input_ids"][row].cpu().numpy()[real[row]])
            labels.append(given[row][real[row]])
    return np.concatenate(ids), np.concatenate(labels), padding


def _real(batch: dict[str, Any]) -> Bools:
    shape = tuple(batch["input_ids"].shape)
    mask = batch.get("attention_mask")
    return np.ones(shape, np.bool_) if mask is None else mask.cpu().numpy().astype(np.bool_)
