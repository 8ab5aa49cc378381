"""A batch of rows while it is masked: its ids, how each row was decided, and the labels that came out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ids, Ints, Labels
    from sft_mask.core.spans import Turns
    from sft_mask.data.accounting.accountant import Account
    from sft_mask.report import SplitReport


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as one flat array.

    Attributes:
        ids: ``(tokens,)``.
        offsets: ``(rows + 1,)`` where rows begin and end.
        documents: ``(documents + 1,)`` where documents do: the rows, or the documents in packed rows.
    """

    ids: Ids
    offsets: Ints
    documents: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, row: int) -> Ids:
        """The ids of one row."""
        return self.ids[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, slots=True)
class Undecided:
    """Why a row could not be decided.

    Attributes:
        why: in a sentence.
        lost: whether the chat template leaves out the words of an answer.
        refused: whether it is a conversation that could not be expanded.
    """

    why: str
    lost: bool = False
    refused: bool = False


@dataclass(slots=True)
class Decided:
    """Turns of a batch, and how each row was decided.

    Attributes:
        turns: all that were found.
        exact: ``(rows,)`` decided by messages.
        checked: ``(rows,)`` decided by markers, which agree with the messages.
        unmatched: why rows with messages were decided by markers alone.
        ambiguous: rows that could not be decided.
        mid_turn: number of rows that begin inside a turn; what comes before their first header is masked.
        unread_flags: number of rows whose messages have flags that the policy does not read.
        unread_flag_names: likewise, by the name of the flag.
        account: what became of the fields of the messages; ``None`` if the rows have none, or no template to render
            them.
    """

    turns: Turns
    exact: Bools
    checked: Bools
    unmatched: dict[int, str] = field(default_factory=dict)
    ambiguous: dict[int, Undecided] = field(default_factory=dict)
    mid_turn: int = 0
    unread_flags: int = 0
    unread_flag_names: Mapping[str, int] = field(default_factory=dict)
    account: Account | None = None


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """Labels of a batch.

    Attributes:
        labels: ``(tokens,)`` flat labels; int64 where they carry weights (:mod:`sft_mask.core.label_codec`).
        offsets: ``(rows + 1,)``.
        trained: ``(rows,)`` trained tokens of each row, not counting those of prompts.
        reasons: why rows must be dropped although they may hold answers: ``{row: reason}``.
        report: counts over the rows that are kept.
        decided: the turns before the policy chose among them, and how each row was decided.
    """

    labels: Labels
    offsets: Ints
    trained: Ints
    reasons: dict[int, str]
    report: SplitReport
    decided: Decided
