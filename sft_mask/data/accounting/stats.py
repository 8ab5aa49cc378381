"""Counts of a batch and of a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import Bools, Ints, Labels, offsets_of
from sft_mask.data.accounting.totals import count_fields
from sft_mask.data.read.rows import rows_of
from sft_mask.report import SplitReport

if TYPE_CHECKING:
    from sft_mask.core.spans import Turns
    from sft_mask.data.expand import Expansion
    from sft_mask.data.outcome import Batch, Decided


@dataclass(slots=True)
class SplitStats:
    """Counts of one split; those of a stream grow while it is read."""

    report: SplitReport = field(default_factory=SplitReport)

    def add(self, report: SplitReport) -> None:
        """Adds the counts of a batch."""
        self.report += report


@dataclass(frozen=True, slots=True)
class Trained:
    """What is trained of a batch.

    Attributes:
        rows: ``(rows,)`` trained tokens of each row.
        turns: ``(n,)`` whether anything of each turn is trained.
        eots: trained end-of-turn tokens.
    """

    rows: Ints
    turns: Bools
    eots: int

    @classmethod
    def of_turns(cls, turns: Turns, offsets: Ints) -> Trained:
        """For turns that are trained completely, and nothing else."""
        row = np.searchsorted(offsets, turns.start, side="right") - 1
        rows = np.bincount(row, turns.end - turns.start, minlength=len(offsets) - 1).astype(np.int64)
        return cls(rows, np.ones(len(turns), np.bool_), int(turns.has_eot.sum()))

    @classmethod
    def of_labels(cls, labels: Labels, turns: Turns, offsets: Ints) -> Trained:
        """For turns of which parts may be masked, as ``labels`` say."""
        before = offsets_of(labels != IGNORE_INDEX)
        ends = turns.end[turns.has_eot]
        eots = int((before[ends] - before[ends - 1]).sum())
        return cls(np.diff(before[offsets]), before[turns.end] > before[turns.start], eots)


def count_batch(
    decided: Decided,
    trained_turns: Turns,
    trained: Trained,
    batch: Batch,
    reasons: Mapping[int, str],
    *,
    first_row: int = 0,
    max_length: int | None = None,
    expansion: Expansion | None = None,
) -> SplitReport:
    """Counts over the rows of a batch that train something, and the reasons why the others do not.

    Args:
        decided: every turn that was found.
        trained_turns: those that are trained.
        trained: what the labels make of them.
        batch: the rows.
        reasons: why rows are left out although they may hold answers.
        first_row: number of the batch's first row in its dataset.
        max_length: where the trainer truncated the rows.
        expansion: how expanded rows belong to conversations; answers that are context in a row are not counted there.
    """
    offsets, documents = batch.offsets, batch.documents
    kept = trained.rows > 0
    row_of_document = rows_of(documents, offsets)
    turns = decided.turns if expansion is None else decided.turns.select(decided.turns.weight > 0)
    row_of_turn = row_of_document[turns.document]
    counts = kept[row_of_turn]
    found = np.bincount(row_of_turn, minlength=len(kept))
    chosen_in = np.bincount(row_of_document[trained_turns.document], minlength=len(kept))
    causes: dict[str, int] = {}
    for row in np.flatnonzero(~kept).tolist():
        cause = reasons.get(row) or _cause(found[row], chosen_in[row])
        causes[cause] = causes.get(cause, 0) + 1
    unmatched = Counter(why for row, why in decided.unmatched.items() if kept[row])
    ambiguous = np.zeros(len(kept), np.bool_)
    ambiguous[list(decided.ambiguous)] = True
    account = decided.account
    full = np.zeros(len(kept), np.bool_)
    full[row_of_document[np.diff(documents) == max_length]] = True
    report = SplitReport(
        rows=int(kept.sum()),
        documents=int(np.bincount(row_of_document, minlength=len(kept))[kept].sum()),
        tokens=int(np.diff(offsets)[kept].sum()),
        trained_tokens=int(trained.rows.sum()),
        turns=int(counts.sum()),
        turns_trained=int(trained.turns.sum()),
        turns_with_stop=int((turns.has_eot & counts).sum()),
        stops_trained=trained.eots,
        turns_cut=int((turns.cut & counts).sum()),
        rows_cut=len(np.unique(row_of_turn[turns.cut & counts])),
        rows_dropped=int((~kept).sum()),
        dropped_reasons=causes,
        rows_exact=int((decided.exact & kept).sum()),
        rows_checked=int((decided.checked & kept).sum()),
        rows_unchecked=int((~decided.exact & ~decided.checked & kept & ~ambiguous).sum()),
        unchecked_reasons=dict(unmatched),
        rows_ambiguous=len(decided.ambiguous),
        rows_without_words=sum(each.lost for each in decided.ambiguous.values()),
        rows_mid_turn=decided.mid_turn,
        rows_with_unread_flags=decided.unread_flags,
        unread_flags=decided.unread_flag_names,
        rows_at_max_length=int((full & ~decided.exact & ~decided.checked).sum()),
        rows_before=0 if expansion is None else int((expansion.tokens > 0).sum()),
        tokens_before=0 if expansion is None else int(expansion.tokens.sum()),
    )
    return report if account is None else report + count_fields(account, decided.turns, trained_turns, first_row)


def _cause(found: int, chosen: int) -> str:
    """Why a row trains nothing, by its turns and those that the policy chose."""
    if not found:
        return "without an answer"
    return "with answers that were masked before" if chosen else "without an answer that the policy trains"
