"""Which turns the rows of a collated batch have: by their messages and what the processor expanded, never by trust."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sft_mask.core.spans import Turns
from sft_mask.data.decide import RowDecider
from sft_mask.data.outcome import Batch, Decided, Undecided
from sft_mask.data.read.census import Census, census_of
from sft_mask.data.read.conversations import Conversation, Decoder
from sft_mask.errors import AmbiguousRowError, DataError, UnsupportedError
from sft_mask.templates.turns import Reading
from sft_mask.vision.reader import ReadRow, RowReader

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids, Ints
    from sft_mask.vision.conversations import VisionRow
    from sft_mask.vision.expansion import ExpandedText


class GivenRows(Decoder):
    """Conversations that were read before the collator ran."""

    def __init__(self, rows: Sequence[VisionRow]) -> None:
        super().__init__()
        self.rows = rows

    def row(self, table: pa.Table, row: int) -> Conversation:
        """The conversation of one row."""
        del table
        conversation = self.rows[row].conversation
        assert conversation is not None, "rows without messages are decided by markers"
        return conversation

    @property
    def messages(self) -> list[Sequence[Mapping[str, object]]]:
        """The messages of each row; none of a row that is text."""
        return [row.conversation.messages if row.conversation is not None else () for row in self.rows]

    def census(self, table: pa.Table) -> Census:
        """The fields of the rows' messages."""
        del table
        return census_of(self.messages)

    def signature(self) -> Ints:
        """``(rows,)`` equal for conversations in which the same roles follow each other."""
        roles = ([str(message.get("role")) for message in messages] for messages in self.messages)
        pairs = (sorted(set(pairwise(("", *each)))) for each in roles)
        return np.array([zlib.crc32(repr(each).encode()) for each in pairs], np.int64)


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
        given = GivenRows(self.batch)
        accountant = self._accountant(table, given, given.signature())
        replaced: list[Turns] = [turns.select(~by_messages[turns.document])]
        for row in np.flatnonzero(by_messages).tolist():
            self._place = row
            exact = self._by_messages(decode.row(table, row), batch.row(row), row, accountant)
            if isinstance(exact, Undecided):
                decided.ambiguous[row] = exact
                decided.exact[row] = False
                continue
            moved = exact.moved(int(batch.offsets[row]))
            replaced.append(moved.of_document(row))
        merged = Turns.joined(replaced)
        decided.turns = merged.select(np.argsort(merged.start, kind="stable"))
        decided.account = None if accountant is None else accountant.account()
        return decided

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
            )
        except DataError as error:
            self._undecided = Undecided(str(error))
            return self._undecided
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
