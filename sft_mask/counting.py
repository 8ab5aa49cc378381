"""What was done to a batch, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.report import SplitReport
from sft_mask.rows import rows_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.masking import Decided
    from sft_mask.spans import Turns

    Ints = NDArray[np.int64]


def count_batch(
    decided: Decided,
    trained_turns: Turns,
    trained_before: Ints,
    bounds: tuple[Ints, Ints],
    reasons: Mapping[int, str],
) -> SplitReport:
    """Counts over the rows of a batch that train something, and why the others do not.

    Args:
        decided: every turn that was found.
        trained_turns: those that are trained.
        trained_before: ``(tokens + 1,)`` trained tokens before each.
        bounds: offsets of rows and of documents.
        reasons: why rows are left out although they may hold answers.
    """
    offsets, documents = bounds
    trained = np.diff(trained_before[offsets])
    kept = trained > 0
    row_of_document = rows_of(documents, offsets)
    turns = decided.turns.select(kept[row_of_document[decided.turns.document]])
    has_label = trained_before[trained_turns.stop] > trained_before[trained_turns.start]
    chosen = trained_turns.select(has_label & kept[row_of_document[trained_turns.document]])
    ends = chosen.stop[chosen.has_stop]
    found = np.bincount(row_of_document[decided.turns.document], minlength=len(kept))
    chosen_in = np.bincount(row_of_document[trained_turns.document], minlength=len(kept))
    causes: dict[str, int] = {}
    for row in np.flatnonzero(~kept).tolist():
        cause = reasons.get(row) or _cause(found[row], chosen_in[row])
        causes[cause] = causes.get(cause, 0) + 1
    ambiguous = np.zeros(len(kept), np.bool_)
    ambiguous[list(decided.ambiguous)] = True
    return SplitReport(
        rows=int(kept.sum()),
        documents=int(np.bincount(row_of_document, minlength=len(kept))[kept].sum()),
        tokens=int(np.diff(offsets)[kept].sum()),
        trained_tokens=int(trained[kept].sum()),
        turns=len(turns),
        turns_trained=len(chosen),
        turns_with_stop=int(turns.has_stop.sum()),
        stops_trained=int((trained_before[ends] - trained_before[ends - 1]).sum()),
        turns_cut=int(turns.cut.sum()),
        rows_cut=len(np.unique(row_of_document[turns.document[turns.cut]])),
        rows_dropped=int((~kept).sum()),
        dropped_reasons=causes,
        rows_exact=int((decided.exact & kept).sum()),
        rows_checked=int((decided.checked & kept).sum()),
        rows_unchecked=int((~decided.exact & ~decided.checked & kept & ~ambiguous).sum()),
        rows_ambiguous=len(decided.ambiguous),
        rows_with_unread_flags=decided.unread_flags,
    )


def _cause(found: int, chosen: int) -> str:
    """Why a row trains nothing, by its turns and those that the policy chose."""
    if not found:
        return "without an answer"
    return "with answers that were masked before" if chosen else "without an answer that the policy trains"
