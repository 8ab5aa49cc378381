"""Some rows of a split, next to the batches that the trainer's own dataloader makes of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.core.policy import Policy
from sft_mask.core.vocabulary import Vocabulary
from sft_mask.data.masker import Masker
from sft_mask.data.prelabelled import is_masked, masked_by
from sft_mask.data.read import Row
from sft_mask.doctor.findings import Finding
from sft_mask.explanations.collated import inspect_collated
from sft_mask.explanations.reasons import Part, PartKind, RowExplainer
from sft_mask.explanations.rows import InspectedRow, inspect_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.vision.collator import ResponseOnlyCollator

_ROWS = 32
"""Rows of a split that are sampled, spread over it."""
_COLLATED_ROWS = 8
"""Likewise where each row has images to prepare."""


@dataclass(frozen=True, slots=True)
class SampledRow:
    """One row as the loss will see it, next to how it should be masked.

    Attributes:
        row: the row, masked by this library.
        parts: its tokens, by who speaks.
        stored: ``(tokens,)`` whether the dataset's label trains each token.
        trained: ``(tokens,)`` whether the batch's label does.
        wrong_ids: number of tokens whose label is another id.
    """

    row: InspectedRow
    parts: Sequence[Part]
    stored: Bools
    trained: Bools
    wrong_ids: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of a split.

    Attributes:
        name: of the split.
        rows: each with its labels in the batch; none if the batches hold other tokens than the dataset.
        batches: as the dataloader makes them.
        trained_padding: number of padding tokens that are trained.
        other_ids: how the batches' tokens differ from the dataset's, else ``""``.
        policy: what should be trained.
        vocabulary: of the tokenizer.
    """

    name: str
    rows: Sequence[SampledRow]
    batches: Sequence[Row]
    trained_padding: int
    other_ids: str
    policy: Policy
    vocabulary: Vocabulary

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return sum(len(sampled.trained) for sampled in self.rows)

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that the batches' labels train."""
        return sum(int(sampled.trained.sum()) for sampled in self.rows)

    @property
    def share(self) -> float:
        """``trained_tokens / tokens``, 0 without rows."""
        return self.trained_tokens / max(self.tokens, 1)

    def parts(self, kind: PartKind) -> Iterator[tuple[SampledRow, Part]]:
        """All parts of one kind, each with its row."""
        return ((sampled, part) for sampled in self.rows for part in sampled.parts if part.kind == kind)

    def counts(self, kind: PartKind) -> tuple[int, int]:
        """Of the tokens of a kind that should be trained: how many are, and how many there are."""
        trained = wanted = 0
        for sampled, part in self.parts(kind):
            inside = slice(part.start, part.end)
            should = sampled.row.labels[inside] != IGNORE_INDEX
            wanted += int(should.sum())
            trained += int((sampled.trained[inside] & should).sum())
        return trained, wanted

    def measure(self) -> dict[str, float]:
        """Numbers for the report."""
        eots_trained, eots = self.counts("eot")
        labels = (np.asarray(batch["labels"].cpu())[..., 1:] for batch in self.batches)
        return {
            "rows": len(self.rows),
            "tokens": self.tokens,
            "share trained": self.share,
            "end-of-turn tokens trained": eots_trained,
            "end-of-turn tokens": eots,
            "tokens in the loss": sum(int((predicted != IGNORE_INDEX).sum()) for predicted in labels),
        }


@dataclass(frozen=True, slots=True)
class Examined:
    """A trainer, the samples of its splits by name, and what the checks of splits found."""

    trainer: Any
    samples: Mapping[str, Sample]
    findings: Sequence[Finding]


def take_sample(trainer: Any, dataset: object, masker: Masker, name: str) -> Sample:
    """Sends some rows of a split through the trainer's dataloader.

    Args:
        trainer: whose collator, columns and dataloader are used.
        dataset: the split as the trainer holds it.
        masker: decides how rows should be masked.
        name: of the split.

    Raises:
        KeyError, ValueError: the batches have no labels, or not one per token.
    """
    chosen = _some_rows(dataset)
    stored = [label_ids(np.asarray(labels)) for labels in chosen.with_format(None)["labels"]]
    batches = [dict(batch) for batch in trainer.get_eval_dataloader(chosen)]
    ids, labels, padding = _without_padding(batches)
    explainer = RowExplainer(masker)
    rows: list[SampledRow] = []
    at, other_ids = 0, ""
    expected = inspect_rows(_to_mask(chosen, stored, trainer), masker, range(len(chosen)), name)
    for number, row in enumerate(expected):
        inside = slice(at, at := at + len(row.ids))
        if not np.array_equal(ids[inside], row.ids):
            rows, other_ids = [], _how_ids_differ(batches, row.ids, number)
            break
        given = label_ids(labels[inside])
        wrong_ids = int(np.sum((given != IGNORE_INDEX) & (given != row.ids)))
        trained = label_weights(labels[inside]) > 0
        rows.append(SampledRow(row, explainer.parts(row), stored[number] != IGNORE_INDEX, trained, wrong_ids))
    return Sample(name, rows, batches, padding, other_ids, masker.policy, masker.finder.vocabulary)


def take_collated_sample(trainer: Any, dataset: object, collator: ResponseOnlyCollator, name: str) -> Sample:
    """The same for rows with images: they are compared with what ``collator`` makes of each row alone.

    Raises:
        LabelsChangedError: the batches have no labels, or the trainer's collator was exchanged.
        DataError: a row cannot be collated.
    """
    chosen = _some_rows(dataset, _COLLATED_ROWS)
    with _counted_apart(trainer):
        batches = [dict(batch) for batch in trainer.get_eval_dataloader(chosen)]
    ids, labels, padding = _without_padding(batches)
    masker, at, other_ids = collator.labeller.masker, 0, ""
    rows: list[SampledRow] = []
    for number, example in enumerate(chosen):
        (collated,) = inspect_collated([example], collator, [number])
        row = collated.row
        inside = slice(at, at := at + len(row.ids))
        if not np.array_equal(ids[inside], row.ids):
            rows, other_ids = [], _how_ids_differ(batches, row.ids, number)
            break
        given = label_ids(labels[inside])
        wrong_ids = int(np.sum((given != IGNORE_INDEX) & (given != row.ids)))
        trained = label_weights(labels[inside]) > 0
        parts = RowExplainer(collated.masker).parts(row)
        rows.append(SampledRow(row, parts, np.ones(len(row.ids), np.bool_), trained, wrong_ids))
    return Sample(name, rows, batches, padding, other_ids, masker.policy, masker.finder.vocabulary)


@contextmanager
def _counted_apart(trainer: Any) -> Iterator[None]:
    """Keeps the rows of the block out of the trainer's report."""
    state = getattr(trainer, "_sft_mask", None)
    kept = getattr(state, "counts", None)
    if state is not None and kept is not None:
        state.counts = {}
    try:
        yield
    finally:
        if state is not None and kept is not None:
            state.counts = kept


def _how_ids_differ(batches: Sequence[Row], ids: Ints, number: int) -> str:
    """Why a row is not found in its batch."""
    for batch in batches:
        for given in batch["input_ids"].cpu().numpy():
            if np.array_equal(given[: len(ids)], ids):
                return f"its attention_mask hides tokens of row {number} that are not padding"
    return f"row {number}, which begins {ids[:8].tolist()}, is in no batch"


def _some_rows(dataset: Any, most: int = _ROWS) -> Dataset:
    from datasets import Dataset

    if not hasattr(dataset, "__len__"):
        return Dataset.from_list(list(islice(dataset, most)))
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(np.int64))
    chosen: Dataset = dataset.select(numbers)
    return chosen


def _to_mask(chosen: Dataset, stored: Sequence[Ids], trainer: object) -> Dataset:
    """The rows to mask again: without their labels, unless those were meant as a mask.

    They were if this library wrote them, and in rows of prompt and completion, where TRL masks the prompt.
    """
    by_us = masked_by(chosen) != repr(Policy()) if is_masked(chosen) else hasattr(trainer, "_sft_mask")
    bare = chosen.remove_columns("labels")
    if not by_us and "completion" not in chosen.column_names:
        return bare
    labelled: Dataset = bare.add_column("labels", [labels.tolist() for labels in stored])
    return labelled


def _without_padding(batches: Sequence[Row]) -> tuple[Ints, Ints, int]:
    """Ids and labels of all batches without padding, and how many padding tokens are trained."""
    ids: list[Ints] = []
    labels: list[Ints] = []
    trained_padding = 0
    for batch in batches:
        given_ids, given_labels = batch["input_ids"].cpu().numpy(), batch["labels"].cpu().numpy()
        mask = batch.get("attention_mask")
        real = np.ones(given_ids.shape, np.bool_) if mask is None else mask.cpu().numpy().astype(np.bool_)
        trained_padding += int((given_labels[~real] != IGNORE_INDEX).sum())
        ids.append(given_ids[real])
        labels.append(given_labels[real])
    return np.concatenate(ids), np.concatenate(labels), trained_padding
