"""One batch of rows, as Arrow columns, to labels: markers first, messages where markers cannot know.

Every row that still has its messages is checked. It takes the exact road (:mod:`sft_mask.messages`) if the number of
turns is not the number of the model's messages, if any message quotes a piece of a marker, or if its conversation has a
shape that has not been proven: the first rows of every shape go both roads, and only a shape in which they agree is
trusted to markers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa

from sft_mask.columns import list_values
from sft_mask.constants import IGNORE_INDEX
from sft_mask.conversations import Decoder
from sft_mask.errors import AmbiguousRowError, DataError
from sft_mask.labels import paint
from sft_mask.markers import Markers
from sft_mask.messages import ExactRoad
from sft_mask.policy import Policy
from sft_mask.regions import in_regions
from sft_mask.report import SplitReport
from sft_mask.spans import SpanFinder, Turns

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

OnAmbiguous = Literal["error", "drop", "mask"]
_PROOFS = 3
"""Rows of a shape that must agree on both roads before markers are believed for the rest."""


@dataclass(frozen=True, slots=True)
class MaskedBatch:
    """What became of a batch.

    Attributes:
        labels: ``(tokens,)`` flat labels.
        offsets: ``(rows + 1,)``.
        trained: ``(rows,)`` trained tokens of each row.
        reasons: why rows must be dropped although they may hold answers: ``{row: reason}``.
        report: counts over the rows that count.
    """

    labels: NDArray[np.int32]
    offsets: Ints
    trained: Ints
    reasons: dict[int, str]
    report: SplitReport


@dataclass(slots=True)
class _Decided:
    """Turns of a batch, and how each row was decided; ``ambiguous`` says why a row could not be."""

    turns: Turns
    exact: Bools
    checked: Bools
    ambiguous: dict[int, str] = field(default_factory=dict)


class Masker:
    """Everything that is needed to label rows; built once per call, used for every split.

    Args:
        finder: the marker search.
        markers: its texts.
        policy: what is trained of the turns found.
        road: the exact road, ``None`` where there is no chat template to lay messages along.
        on_ambiguous: what happens to a row that no road can decide.
    """

    def __init__(
        self,
        finder: SpanFinder,
        markers: Markers,
        policy: Policy,
        road: ExactRoad | None,
        on_ambiguous: OnAmbiguous = "error",
    ) -> None:
        self.finder = finder
        self.markers = markers
        self.policy = policy
        self.road = road
        self.on_ambiguous = on_ambiguous
        self.needles = marker_needles(finder)
        self._shapes: dict[int, int] = {}
        self._unlike: set[int] = set()
        self._rendered = 0  # rows that were what the chat template renders from their messages

    def mask(self, table: pa.Table, decode: Decoder, *, first_row: int = 0) -> MaskedBatch:
        """Labels of a batch.

        Args:
            table: columns ``input_ids``, optionally ``labels``, ``seq_lengths``, and the conversation.
            decode: reads one row of the conversation; see :class:`Decoder`.
            first_row: number of the batch's first row in its dataset, for messages.

        Raises:
            DataError: a row holds nulls or things that are no ids.
            AmbiguousRowError: no road can decide a row and ``on_ambiguous`` is ``"error"``.
        """
        ids, offsets = _token_ids(table, first_row)
        documents = _documents(table, offsets, first_row)
        turns = self.finder.find(ids, documents)
        decided = self._decide(table, decode, (ids, offsets, documents), turns)
        trained_turns = self.policy.apply(decided.turns)
        existing = list_values(table["labels"])[0] if "labels" in table.column_names else None
        labels = paint(ids, trained_turns, existing)
        if self.policy.regions:
            labels[in_regions(ids, trained_turns, self.finder.vocabulary, self.policy.regions)] = IGNORE_INDEX
        reasons = self._settle(labels, offsets, decided, first_row)
        trained_before = np.concatenate([[0], np.cumsum(labels != IGNORE_INDEX, dtype=np.int64)])
        trained = np.diff(trained_before[offsets])
        report = self._report(decided, trained_turns, trained_before, (offsets, documents), reasons)
        return MaskedBatch(labels, offsets, trained, reasons, report)

    # which road

    def _decide(
        self,
        table: pa.Table,
        decode: Decoder,
        row_data: tuple[NDArray[np.integer], Ints, Ints],
        turns: Turns,
    ) -> _Decided:
        ids, offsets, documents = row_data
        count = len(offsets) - 1
        none = np.zeros(count, np.bool_)
        if self.road is None or not decode.has_conversation(table) or len(documents) != len(offsets):
            return _Decided(turns, none, none.copy())
        known = ~decode.unknown(table)
        seen = decode.shapes(table, self.needles)
        doubtful = seen.quotes | (np.bincount(turns.document, minlength=count) != seen.answers)
        decided = _Decided(turns, none, known & ~doubtful)
        replaced: dict[int, Turns] = {}
        for row in np.flatnonzero(known & (doubtful | ~self._trusted(seen.shape))).tolist():
            shape = int(seen.shape[row])
            if not doubtful[row] and self._trusts(shape):
                continue
            exact = self._exact_turns(table, decode, row, ids[offsets[row] : offsets[row + 1]])
            decided.checked[row] = False
            if isinstance(exact, str):
                decided.ambiguous[row] = exact
                continue
            if not doubtful[row]:
                self._compare(shape, exact, turns, row, int(offsets[row]))
            replaced[row] = exact
            decided.exact[row] = True
        decided.turns = _with_replaced(turns, replaced, offsets)
        return decided

    def _trusts(self, shape: int) -> bool:
        return self._shapes.get(shape, 0) >= _PROOFS and shape not in self._unlike

    def _trusted(self, shape: Ints) -> Bools:
        trusted = [key for key in self._shapes if self._trusts(key)]
        return np.isin(shape, np.array(trusted, np.int64))

    def _compare(self, shape: int, exact: Turns, turns: Turns, row: int, offset: int) -> None:
        marked = turns.select(turns.document == row)
        same = np.array_equal(marked.start - offset, exact.start) and np.array_equal(marked.stop - offset, exact.stop)
        if same:
            self._shapes[shape] = self._shapes.get(shape, 0) + 1
        else:
            self._unlike.add(shape)

    def _exact_turns(self, table: pa.Table, decode: Decoder, row: int, ids: NDArray[np.integer]) -> Turns | str:
        """The turns by messages, or why there are none."""
        assert self.road is not None, "asked for the exact road without one"
        try:
            conversation = decode.row(table, row)
            found = self.road.turns(
                conversation.messages, ids, tools=conversation.tools, variables=conversation.variables
            )
        except DataError as error:
            return str(error)
        self._rendered += 1
        return found

    # what became of it

    def _settle(self, labels: NDArray[np.int32], offsets: Ints, decided: _Decided, first_row: int) -> dict[int, str]:
        """Applies ``on_ambiguous``: raises, or masks the rows (and gives the reason for dropping them)."""
        reasons: dict[int, str] = {}
        for row, why in decided.ambiguous.items():
            if self.on_ambiguous == "error":
                raise self._undecided(first_row + row, why)
            labels[offsets[row] : offsets[row + 1]] = IGNORE_INDEX
            reasons[row] = "ambiguous" if self.on_ambiguous == "drop" else "ambiguous, masked"
        return reasons

    def _undecided(self, row: int, why: str) -> AmbiguousRowError:
        if not self._rendered:
            return AmbiguousRowError(
                f"Row {row} cannot be decided, nor can any row before it: {why} So the rows were rendered by another "
                "chat template, or with other template arguments. Give the one that was used as chat_template=, remove "
                "the messages column to trust the markers alone, or choose on_ambiguous='drop' or 'mask'."
            )
        return AmbiguousRowError(
            f"Row {row} cannot be decided: {why} Other rows are what the template renders ({self._rendered} so far), "
            "so this one was edited, or has other template arguments. Repair or remove it, or choose "
            "on_ambiguous='drop' or 'mask'."
        )

    def _report(
        self,
        decided: _Decided,
        trained_turns: Turns,
        trained_before: Ints,
        bounds: tuple[Ints, Ints],
        reasons: Mapping[int, str],
    ) -> SplitReport:
        """Counts over a batch; ``trained_before`` is ``(tokens + 1,)`` the trained tokens before each."""
        offsets, documents = bounds
        trained = np.diff(trained_before[offsets])
        kept = trained > 0
        row_of_document = np.searchsorted(offsets, documents[:-1], side="right") - 1
        turns = decided.turns.select(kept[row_of_document[decided.turns.document]])
        has_label = trained_before[trained_turns.stop] > trained_before[trained_turns.start]
        chosen = trained_turns.select(has_label & kept[row_of_document[trained_turns.document]])
        ends = chosen.stop[chosen.has_stop]
        causes: dict[str, int] = {}
        for row in np.flatnonzero(~kept).tolist():
            cause = reasons.get(row, "no answer to train")
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
        )


def marker_needles(finder: SpanFinder) -> tuple[str, ...]:
    """Texts that show that a message quotes a marker or a stop: its control tokens, or its visible text."""
    needles: dict[str, None] = {}
    vocabulary = finder.vocabulary
    for pattern in finder.trie.patterns:
        tokens = [atom - 256 for atom in pattern.atoms if atom >= 256]
        if tokens:
            needles.update(dict.fromkeys(vocabulary.text([token]) for token in tokens))
        elif isinstance(pattern.text, str) and pattern.text.strip():
            needles[pattern.text.strip()] = None
    return tuple(needle for needle in needles if needle.strip())


def _token_ids(table: pa.Table, first_row: int) -> tuple[NDArray[np.integer], Ints]:
    if "input_ids" not in table.column_names:
        raise DataError(
            f"The dataset has no input_ids column (it has {', '.join(table.column_names)}). Pass a tokenized dataset, "
            "or one with messages."
        )
    try:
        values, offsets = list_values(table["input_ids"])
    except ValueError as error:
        raise DataError(
            f"input_ids is malformed in the rows from {first_row} on: {error} (counted from there). Remove or repair "
            "the row."
        ) from error
    if len(values) and values.dtype.kind not in "iu":
        raise DataError(f"input_ids holds {values.dtype}, not integers. Pass token ids.")
    return values, offsets


def _documents(table: pa.Table, offsets: Ints, first_row: int) -> Ints:
    """Offsets of documents: of rows, or of the documents that ``seq_lengths`` cuts packed rows into."""
    if "seq_lengths" not in table.column_names:
        return offsets
    lengths, per_row = list_values(table["seq_lengths"])
    ends = np.concatenate([[0], np.cumsum(lengths)])
    wrong = np.flatnonzero(ends[per_row] != offsets)
    if len(wrong):
        row = int(wrong[0]) - 1
        raise DataError(
            f"seq_lengths of row {first_row + row} add up to {int(ends[per_row[row + 1]] - ends[per_row[row]])}, but "
            f"the row has {int(offsets[row + 1] - offsets[row])} tokens."
        )
    return ends.astype(np.int64)


def _with_replaced(turns: Turns, replaced: Mapping[int, Turns], offsets: Ints) -> Turns:
    """The turns of a batch with those of some rows exchanged."""
    if not replaced:
        return turns
    rows = sorted(replaced)
    kept = turns.select(~np.isin(turns.document, rows))
    moved = [replace(replaced[row].moved(offsets[row]), document=np.full(len(replaced[row]), row)) for row in rows]
    merged = Turns.joined([kept, *moved])
    return merged.select(np.argsort(merged.start, kind="stable"))
