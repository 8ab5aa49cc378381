"""A trainer whose labels are made while its rows are collated: images, which a processor turns into tokens there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.data.masker import Masker
from sft_mask.data.read.formats import named_splits
from sft_mask.data.setup import MaskSettings, marker_summary
from sft_mask.errors import DataError, LabelsChangedError, NothingToTrainError, UnsupportedError
from sft_mask.report import MaskReport, SplitReport
from sft_mask.report.counts import spelled_reasons
from sft_mask.trainer.checks import signature_columns
from sft_mask.trainer.metrics import Measured
from sft_mask.vision.collator import ResponseOnlyCollator
from sft_mask.vision.counts import CollatedCounts
from sft_mask.vision.scan import check_rows

if TYPE_CHECKING:
    pass

_LOOKED_AT = 8
"""Rows of each split that are collated at the call."""


@dataclass(slots=True)
class CollatedState(Measured):
    """What the hook knows about a trainer whose collator makes the labels; it answers as ``MaskState`` does.

    Attributes:
        collator: the one that makes labels.
        looked_at: counts of the rows of each split that were collated at the call.
        counts: counts of the batches since, by split.
    """

    collator: ResponseOnlyCollator
    looked_at: Mapping[str, SplitReport]
    counts: dict[str, CollatedCounts] = field(default_factory=dict)

    @property
    def weighted(self) -> bool:
        """Whether labels carry weights."""
        return self.collator.carries_weights

    @property
    def masker(self) -> Masker:
        """What decides labels."""
        return self.collator.labeller.masker

    @property
    def tokenizer(self) -> object:
        """The one that the processor has."""
        return self.collator.labeller.info.tokenizer

    def report(self) -> MaskReport:
        """What the rows train that were collated so far by this process and its workers; before the first batch, what
        the rows train that were looked at.
        """
        seen = {name: counts.report() for name, counts in self.counts.items()}
        seen = {name: report for name, report in seen.items() if report.rows_seen}
        splits = {**self.looked_at, **seen}
        some = ", ".join(name for name in splits if name not in seen)
        every = ", ".join(seen)
        counted = [f"{some}: a few rows, spread over the split"] if some else []
        counted += [f"{every}: the batches that this process and its workers have collated"] if every else []
        note = f"rows with images are labelled, and counted, while they are collated ({'; '.join(counted)})"
        expected = self.masker.policy.every_turn_stops
        return MaskReport(splits, marker_summary(self.masker), stops_expected=expected, notes=(note,))

    def is_ours(self, dataset: object) -> bool:
        """Whether a dataset is masked already: all are, while they are collated."""
        del dataset
        return True

    def original(self, split: object) -> object:
        """What a split was before: datasets are not touched."""
        return split

    def mask_later(self, dataset: object, name: str, *, keep_all_rows: bool = False) -> object:
        """The dataset: it is masked while it is collated."""
        del name, keep_all_rows
        return dataset

    def check(self, trainer: Any, dataset: object, split: str) -> None:
        """Checks that the trainer still has this collator.

        Raises:
            LabelsChangedError: it was exchanged.
        """
        del dataset
        given = trainer.data_collator
        if not isinstance(given, ResponseOnlyCollator):
            raise LabelsChangedError(
                f"The trainer's data collator is a {type(given).__name__} now: it was exchanged after "
                f"train_on_responses_only, and its labels of the {split} dataset would be trained as they are. "
                "Exchange it before the call, or call train_on_responses_only(trainer) again."
            )
        self.collator = given

    @contextmanager
    def counting(self, trainer: Any, split: str) -> Iterator[None]:
        """Has the dataloader that is built in the block count its rows for ``split``."""
        own = trainer.data_collator
        counts = self.counts.setdefault(split, CollatedCounts())
        counts.shared()
        trainer.data_collator = own.counting(counts) if isinstance(own, ResponseOnlyCollator) else own
        try:
            yield
        finally:
            trainer.data_collator = own


def collated_state(trainer: Any, processor: object, settings: MaskSettings, chat_template: str | None) -> CollatedState:
    """Builds the collator of a vision trainer and tries it on some rows of every split; the trainer is not changed.

    Raises:
        DataError: there is no train dataset, or a row cannot be trained on.
        NothingToTrainError: none of the rows that were looked at would train anything.
        UnsupportedError: the processing class is not a processor, or has no fast tokenizer or chat template.
    """
    if trainer.train_dataset is None:
        raise DataError("The trainer has no train_dataset. Give it one before train_on_responses_only.")
    args = trainer.args
    complete = replace(settings, max_length=args.max_length, prompt_answers=args.completion_only_loss is False)
    collator = ResponseOnlyCollator.of_settings(
        trainer.data_collator, processor, complete, chat_template, CollatedCounts()
    )
    _refuse_loss_weights(trainer)
    media = collator.labeller.reader.media
    looked_at = {}
    for name, split in named_splits(trainer).items():
        check_rows(split, name, media.texts)
        looked_at[name] = _look_at(trainer, split, name, collator)
    return CollatedState(collator, looked_at)


def _refuse_loss_weights(trainer: Any) -> None:
    columns = getattr(trainer.train_dataset, "column_names", None) or ()
    if "loss_weights" in columns:
        raise UnsupportedError(
            "The train dataset has loss_weights, one for each token of a row; rows with images have no tokens before "
            "they are collated. Give the messages a weight instead, with Policy(turns='flagged')."
        )


def _look_at(trainer: Any, split: Any, name: str, collator: ResponseOnlyCollator) -> SplitReport:
    rows = sampled_rows(trainer, split)
    if not rows:
        raise DataError(f"There are no rows in the {name} dataset. Give it rows, or leave this split out.")
    counts = CollatedCounts()
    full = 0
    length = trainer.args.max_length
    for first in range(0, len(rows), 2):
        try:
            _, labelled = collator.collate(rows[first : first + 2])
        except DataError as error:
            raise type(error)(f"The {name} dataset: {error}") from error
        real = labelled.rows.real.sum(1)
        full += int((real >= length).sum()) if length else 0
        counts.add(labelled.masked.report, int(real.sum()))
    report = counts.report()
    if report.trained_tokens:
        return report
    why = f"{spelled_reasons(report.dropped_reasons) or 'no answers were found'}. Look at a row, and at its roles."
    if full * 2 > len(rows):
        why = f"{full} of them are {length} tokens long, the trainer's max_length: truncation removed the answers. "
        why += "Raise max_length, set it to None, or make the images smaller."
    raise NothingToTrainError(
        f"None of the {len(rows)} rows of the {name} dataset that were looked at would train anything: {why}"
    )


def sampled_rows(trainer: Any, split: Any, count: int = _LOOKED_AT) -> list[dict[str, Any]]:
    """Some rows, spread over a split (the first ones of a stream), as the dataloader gives them to the collator."""
    if hasattr(split, "__len__"):
        picked = (
            np.unique(np.linspace(0, len(split) - 1, min(count, len(split))).astype(np.int64)) if len(split) else ()
        )
        rows = [split[int(at)] for at in picked]
    else:
        rows = list(islice(split, count))
    if not trainer.args.remove_unused_columns:
        return [dict(row) for row in rows]
    names = signature_columns(trainer)
    return [{name: row[name] for name in names if name in row} for row in rows]
