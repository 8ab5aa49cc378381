"""Rows with images one by one, with what masking knew about them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import offsets_of
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.data.masker import Masker
from sft_mask.explanations.losses import RowAccount, row_accounts
from sft_mask.explanations.rows import InspectedRow, turns_within
from sft_mask.vision.conversations import read_row

if TYPE_CHECKING:
    from sft_mask.data.outcome import MaskedBatch
    from sft_mask.data.read.conversations import Conversation
    from sft_mask.vision.collator import ResponseOnlyCollator
    from sft_mask.vision.labels import LabelledRows


@dataclass(frozen=True, slots=True)
class CollatedRow:
    """A row that was collated alone.

    Attributes:
        row: how it was masked.
        masker: that masked it.
        images: as the dataset holds them.
    """

    row: InspectedRow
    masker: Masker
    images: Sequence[Any]


def inspect_collated(
    examples: Sequence[Mapping[str, Any]], collator: ResponseOnlyCollator, numbers: Sequence[int]
) -> Iterator[CollatedRow]:
    """Collates rows one by one, and yields each with what masking knew.

    Raises:
        DataError: a row cannot be collated.
    """
    quiet = collator.never_raising()
    for example, number in zip(examples, numbers, strict=True):
        given = read_row(example)
        _, labelled = quiet.collate([dict(example)], with_sources=True)
        row = _inspected(labelled, number, given.conversation)
        yield CollatedRow(row, labelled.masker, given.images)


def _account(masked: MaskedBatch, conversation: Conversation | None) -> RowAccount:
    found = {} if conversation is None else row_accounts(masked, {0: conversation}, can_expand=False)
    return found.get(0, RowAccount())


def _inspected(labelled: LabelledRows, number: int, conversation: Conversation | None) -> InspectedRow:
    masked, rows, read = labelled.masked, labelled.rows, labelled.read.get(0)
    undecided = masked.decided.ambiguous.get(0)
    return InspectedRow(
        number=number,
        ids=rows.ids.astype(np.int64),
        labels=label_ids(masked.labels).astype(np.int64),
        weights=label_weights(masked.labels),
        existing=rows.labels.astype(np.int64),
        documents=np.diff(offsets_of([len(rows.ids)])),
        turns=turns_within(masked.decided.turns, 0, len(rows.ids)),
        checked=False,
        undecided=undecided.why if undecided is not None else "",
        dropped="" if masked.trained[0] else masked.reasons.get(0, "no answer to train"),
        conversation=conversation,
        account=_account(masked, conversation),
        sources=None if read is None else read.sources,
        media=labelled.media,
        pieces=() if read is None else read.pieces,
    )
