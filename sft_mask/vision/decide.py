"""Which turns the rows of a collated batch have: by their messages and what the processor expanded, never by trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.spans import Turns
from sft_mask.data.decide import RowDecider
from sft_mask.data.outcome import Batch, Decided, Undecided
from sft_mask.data.read.census import Census, of_entries
from sft_mask.data.read.conversations import Conversation, Decoder
from sft_mask.errors import AmbiguousRowError, DataError, UnsupportedError
from sft_mask.templates.turns import Reading
from sft_mask.vision.layouts import Look, RowFields, fields_of_row
from sft_mask.vision.reader import ReadRow, RowReader

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids, Ints
    from sft_mask.vision.conversations import VisionRow
    from sft_mask.vision.expansion import ExpandedText


class GivenRows(Decoder):
    """Conversations that were read before the collator ran.

    Args:
        rows: the rows.
        fields: of each row's messages; read here if they are not given.
    """

    def __init__(self, rows: Sequence[VisionRow], fields: Sequence[RowFields] | None = None) -> None:
        super().__init__()
        self.rows = rows
        self._fields = fields

    def row(self, table: pa.Table, row: int) -> Conversation:
        """The conversation of one row."""
        del table
        conversation = self.rows[row].conversation
        assert conversation is not None, "rows without messages are decided by markers"
        return conversation

    @property
    def fields(self) -> Sequence[RowFields]:
        """The fields of each row's messages; none of a row that is text."""
        if self._fields is None:
            self._fields = [fields_of_row(row.conversation) for row in self.rows]
        return self._fields

    def census(self, table: pa.Table) -> Census:
        """The fields of the rows' messages."""
        del table
        return of_entries([each.entries for each in self.fields])

    def signature(self) -> Ints:
        """``(rows,)`` equal for conversations in which the same roles follow each other."""
        return np.array([each.signature for each in self.fields], np.int64)


@dataclass(slots=True)
class CollatedDecider(RowDecider):
    """Decides the rows of one collated batch.

    Attributes:
        reader: reads one row.
        expanded: what the processor made of each row's text; ``None`` if that was not recorded.
        batch: the rows themselves.
        read: what was read of each row, by its place in the batch.
        with_sources: whether to find the message of each token.
    """

    reader: RowReader | None = None
    expanded: Sequence[ExpandedText] | None = None
    batch: Sequence[VisionRow] = ()
    read: dict[int, ReadRow] = field(default_factory=dict)
    with_sources: bool = False
    _place: int = -1
    _look: Look | None = None
    _undecided: Undecided = field(default_factory=lambda: Undecided(""))

    def decide(self, table: pa.Table, decode: Decoder, batch: Batch, turns: Turns) -> Decided:
        """The turns of every row; rows without messages by markers (``turns``)."""
        by_messages = np.array([row.conversation is not None for row in self.batch], np.bool_)
        if not by_messages.all() and (self.policy.needs_messages or self.policy.turns == "flagged"):
            raise UnsupportedError(
                "The policy asks for roles, tool calls or flags of messages, but the rows are text. Give messages, or "
                "leave these parts of the policy out."
            )
        decided = Decided(turns, by_messages, np.zeros(len(batch), np.bool_))
        assert self.reader is not None, "a processor without a chat template was refused"
        conversations = [row.conversation for row in self.batch]
        looks = list(map(self.reader.layouts.look, conversations))
        given = GivenRows(self.batch, list(map(self.reader.layouts.fields, conversations, looks)))
        accountant = self._accountant(table, given, given.signature())
        replaced: dict[int, Turns] = {}
        known: list[int] = []
        for row in np.flatnonzero(by_messages).tolist():
            self._place = row
            conversation, ids = decode.row(table, row), batch.row(row)
            self._look = looks[row]
            exact: Turns | Undecided | None = self._by_layout(conversation, ids)
            if exact is None:
                exact = self._by_messages(conversation, ids, row, accountant)
            else:
                known.append(row)
            if isinstance(exact, Undecided):
                decided.ambiguous[row] = exact
                decided.exact[row] = False
                continue
            replaced[row] = exact
        if accountant is not None and known:
            for row in accountant.extrapolate(np.array(known, np.int64)).tolist():
                accountant.infer(row, decode.row(table, row))
        decided.turns = Turns.of_documents(replaced, batch.offsets)
        if not by_messages.all():
            merged = Turns.joined([turns.select(~by_messages[turns.document]), decided.turns])
            decided.turns = merged.select(np.argsort(merged.start, kind="stable"))
        decided.account = None if accountant is None else accountant.account()
        return decided

    def _by_layout(self, conversation: Conversation, ids: Ids) -> Turns | None:
        """The turns of a row that is as earlier rows were; ``None`` if it must be rendered."""
        if self.reader is None or self.expanded is None or self._look is None or self.with_sources:
            return None
        weights, roles = self._weights(conversation)
        if any(weight and role not in ASSISTANT_ROLES for weight, role in zip(weights, roles, strict=True)):
            return None
        found = self.reader.read_known(self._look, np.asarray(ids, np.int64), self.expanded[self._place])
        if found is None:
            return None
        self.read[self._place] = found
        return self._weighted(found.turns, conversation, weights, roles)

    def _read(self, conversation: Conversation, ids: Ids, others: list[int]) -> Reading | Undecided:
        """The row read by rendering and expansion, or why it cannot be."""
        assert self.reader is not None, "a processor without a chat template was refused"
        expanded = None if self.expanded is None else self.expanded[self._place]
        try:
            found = self.reader.read(
                conversation,
                np.asarray(ids, np.int64),
                expanded,
                others=others,
                tool_calls=self.policy.tool_calls,
                with_sources=self.with_sources,
                look=self._look,
            )
        except DataError as error:
            self._undecided = Undecided(str(error))
            return self._undecided
        assert found.reading is not None, "it was rendered"
        self.read[self._place] = found
        self.rendered += 1
        return found.reading

    def _turns_of_words(self, conversation: Conversation, ids: Ids) -> Turns | Undecided:
        """Words alone do not show where an image is."""
        del conversation, ids
        return self._undecided

    def error(self, row: int, undecided: Undecided) -> AmbiguousRowError:
        """The error for a row that could not be decided."""
        begins = self.batch[row].begins
        named = f", which begins {begins!r}," if begins else ""
        return AmbiguousRowError(
            f"Row {row} of a batch{named} cannot be decided: {undecided.why} Repair or remove the row, or leave such "
            "rows out of the loss: on_ambiguous='mask'."
        )
