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
from sft_mask.doctor.cures import Cures, cures_of
from sft_mask.doctor.findings import Finding
from sft_mask.explanations.collated import inspect_collated
from sft_mask.explanations.reasons import Part, PartKind, RowExplainer
from sft_mask.explanations.rows import InspectedRow, inspect_rows
from sft_mask.trainer.checks import collator_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.vision.collator import ResponseOnlyCollator

FEW = 0.5
"""Below this share of the answers' tokens the mask is taken for wrong, and not for a choice."""
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
        stored: ``(tokens,)`` whether the dataset's label trains each token; where it has none, that of the batch.
        trained: ``(tokens,)`` whether the batch's label does.
        wrong_ids: number of tokens whose label is another id.
    """

    row: InspectedRow
    parts: Sequence[Part]
    stored: Bools
    trained: Bools
    wrong_ids: int

    @property
    def should(self) -> Bools:
        """``(tokens,)`` whether what the row shows, and the policy, train each token."""
        return np.asarray(self.row.labels != IGNORE_INDEX)


@dataclass(frozen=True, slots=True)
class Count:
    """Tokens that should be trained: how many there are, how many the dataset trains, and how many the batches do."""

    wanted: int
    stored: int
    trained: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen of a split.

    Attributes:
        name: of the split.
        rows: each with its labels in the batch; none if the batches hold other tokens than the dataset.
        batches: as the dataloader makes them.
        trained_padding: number of padding tokens that are trained.
        stored_padding: number of those that the dataset trains, in rows that were padded before.
        other_ids: how the batches' tokens differ from the dataset's, else ``""``.
        policy: what should be trained.
        is_final: whether ``mask_dataset`` made the labels by another policy.
        vocabulary: of the tokenizer.
        cures: what to do about this split.
    """

    name: str
    rows: Sequence[SampledRow]
    batches: Sequence[Row]
    trained_padding: int
    stored_padding: int
    other_ids: str
    policy: Policy
    is_final: bool
    vocabulary: Vocabulary
    cures: Cures

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

    def counts(self, kind: PartKind) -> Count:
        """Counts the tokens of a kind."""
        wanted = stored = trained = 0
        for sampled, part in self.parts(kind):
            inside = slice(part.start, part.end)
            should = sampled.should[inside]
            wanted += int(should.sum())
            stored += int((sampled.stored[inside] & should).sum())
            trained += int((sampled.trained[inside] & should).sum())
        return Count(wanted, stored, trained)

    @property
    def cure(self) -> str:
        """What to do about the dataset's labels: mask them, afresh where they mask what should be trained."""
        counts = (self.counts("answer"), self.counts("eot"))
        return self.cures.afresh if any(count.stored < FEW * count.wanted for count in counts) else self.cures.mask

    def measure(self) -> dict[str, float]:
        """Numbers for the report."""
        eots = self.counts("eot")
        labels = (np.asarray(batch["labels"].cpu())[..., 1:] for batch in self.batches)
        return {
            "rows": len(self.rows),
            "tokens": self.tokens,
            "share trained": self.share,
            "end-of-turn tokens trained": eots.trained,
            "end-of-turn tokens": eots.wanted,
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
    chosen = some_rows(dataset)
    seen = _batched(trainer, chosen)
    labelled = "labels" in chosen.column_names
    stored = [label_ids(row) for row in (_column(chosen, "labels") if labelled else seen.labels)]
    explainer = RowExplainer(masker)
    rows: list[SampledRow] = []
    other_ids = ""
    expected = inspect_rows(_to_mask(chosen, stored, trainer, masker.policy), masker, range(len(chosen)), name)
    for row, ids, given, real in zip(expected, seen.ids, seen.labels, seen.real, strict=True):
        if not np.array_equal(ids, row.ids[real]):
            rows, other_ids = [], _how_ids_differ(seen.batches, row.ids, row.number)
            break
        given_ids = label_ids(given)
        wrong_ids = int(np.sum((given_ids != IGNORE_INDEX) & (given_ids != row.ids)))
        kept = stored[row.number] != IGNORE_INDEX
        rows.append(SampledRow(row, explainer.parts(row), kept, label_weights(given) > 0, wrong_ids))
    padded = sum(int((row[~real] != IGNORE_INDEX).sum()) for row, real in zip(stored, seen.real, strict=True))
    return Sample(
        name=name,
        rows=rows,
        batches=seen.batches,
        trained_padding=seen.padding,
        stored_padding=padded,
        other_ids=other_ids,
        policy=masker.policy,
        is_final=_is_final(chosen, masker.policy),
        vocabulary=masker.finder.vocabulary,
        cures=cures_of(trainer, name, chosen),
    )


@dataclass(frozen=True, slots=True)
class _Batched:
    """Batches, read as the rows that they were made of.

    Attributes:
        batches: as they were made.
        real: ``(tokens,)`` of each row of the dataset, what is not padding.
        ids: of each row, the tokens in the batches that are not padding.
        labels: ``(tokens,)`` of each row of the dataset, as in the batches; padding is ignored.
        padding: number of padding tokens that are trained.
    """

    batches: Sequence[Row]
    real: Sequence[Bools]
    ids: Sequence[Ints]
    labels: Sequence[Ints]
    padding: int

    @classmethod
    def of(cls, batches: Sequence[Row], chosen: Dataset) -> _Batched:
        """Batches that hold the rows in their order."""
        if any(batch.get("labels") is None for batch in batches):
            raise KeyError("labels")
        ids, labels, padding = _without_padding(batches)
        real = _real(chosen, padded=any(batch.get("attention_mask") is not None for batch in batches))
        ends = np.cumsum([int(each.sum()) for each in real])[:-1]
        spread = [_spread(part, each) for part, each in zip(np.split(labels, ends), real, strict=True)]
        return cls(batches, real, np.split(ids, ends), spread, padding)

    def holds(self, chosen: Dataset) -> bool:
        """Whether the tokens are those of the rows."""
        rows = zip(_column(chosen, "input_ids"), self.real, self.ids, strict=True)
        return all(np.array_equal(row[real], ids) for row, real, ids in rows)


def _batched(trainer: Any, chosen: Dataset) -> _Batched:
    """The batches of the dataloader; those of the collator alone where the dataloader puts rows in another order."""
    seen = _Batched.of([dict(batch) for batch in trainer.get_eval_dataloader(chosen)], chosen)
    if seen.holds(chosen):
        return seen
    rows, size = collator_rows(trainer, chosen, len(chosen)), trainer.args.eval_batch_size
    batches = [dict(trainer.data_collator(rows[at : at + size])) for at in range(0, len(rows), size)]
    alone = _Batched.of(batches, chosen)
    return alone if alone.holds(chosen) else seen


def _column(rows: Dataset, name: str) -> list[Ints]:
    return [np.asarray(row) for row in rows.with_format(None)[name]]


def _real(chosen: Dataset, *, padded: bool) -> list[Bools]:
    """Which tokens of each row of the dataset are not padding."""
    if padded and "attention_mask" in chosen.column_names:
        return [row.astype(np.bool_) for row in _column(chosen, "attention_mask")]
    return [np.ones(len(row), np.bool_) for row in _column(chosen, "input_ids")]


def _spread(labels: Ints, real: Bools) -> Ints:
    """Labels of a row as it is in the dataset, where padding is ignored."""
    whole = np.full(len(real), IGNORE_INDEX, np.int64)
    whole[real] = labels if len(labels) == real.sum() else IGNORE_INDEX
    return whole


def take_collated_sample(trainer: Any, dataset: object, collator: ResponseOnlyCollator, name: str) -> Sample:
    """The same for rows with images: they are compared with what ``collator`` makes of each row alone.

    Raises:
        LabelsChangedError: the batches have no labels, or the trainer's collator was exchanged.
        DataError: a row cannot be collated.
    """
    chosen = some_rows(dataset, _COLLATED_ROWS)
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
    return Sample(
        name=name,
        rows=rows,
        batches=batches,
        trained_padding=padding,
        stored_padding=0,
        other_ids=other_ids,
        policy=masker.policy,
        is_final=False,
        vocabulary=masker.finder.vocabulary,
        cures=cures_of(trainer, name, chosen),
    )


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


def some_rows(dataset: Any, most: int = _ROWS) -> Dataset:
    """Some rows of a dataset, spread over it; the first ones of a stream."""
    from datasets import Dataset

    if not hasattr(dataset, "__len__"):
        return Dataset.from_list(list(islice(dataset, most)))
    numbers = np.unique(np.linspace(0, len(dataset) - 1, min(most, len(dataset))).astype(np.int64))
    chosen: Dataset = dataset.select(numbers)
    return chosen


def _is_final(chosen: Dataset, policy: Policy) -> bool:
    """Whether ``mask_dataset`` made the labels by another policy, which is not known here."""
    return is_masked(chosen) and masked_by(chosen) != repr(policy)


def _to_mask(chosen: Dataset, stored: Sequence[Ids], trainer: object, policy: Policy) -> Dataset:
    """The rows to mask again: without their labels, so that what the rows show decides.

    Two things no row shows: a policy that ``mask_dataset`` was given, and, for rows of prompt and completion, where the
    prompt ends.
    """
    labels: Sequence[Ids] | None = None
    of_completions = "completion" in chosen.column_names
    if _is_final(chosen, policy):
        labels = stored
    elif of_completions or getattr(trainer, "completion_only_loss", False):
        packed = "seq_lengths" in chosen.column_names
        lengths = chosen["seq_lengths"] if packed else [[len(row)] for row in stored]
        rows = zip(_column(chosen, "input_ids"), stored, lengths, strict=True)
        # wrapped packing leaves neither columns nor lengths: only the labels know where prompts end
        labels = [_without_prompts(*row) for row in rows] if of_completions or packed else stored
    bare = chosen.remove_columns("labels") if "labels" in chosen.column_names else chosen
    if labels is None:
        return bare
    labelled: Dataset = bare.add_column("labels", [row.tolist() for row in labels])
    return labelled


def _without_prompts(ids: Ids, stored: Ids, lengths: Sequence[int]) -> Ids:
    """Labels of every token from the first that is trained of each document on: the prompt is what comes before.

    >>> _without_prompts(np.arange(5), np.array([-100, 1, -100, -100, 4]), [3, 2]).tolist()
    [-100, 1, 2, -100, 4]
    """
    ends = np.cumsum(lengths)[:-1]
    masked = [~np.logical_or.accumulate(labels != IGNORE_INDEX) for labels in np.split(stored, ends)]
    return np.where(np.concatenate(masked), IGNORE_INDEX, ids)


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
