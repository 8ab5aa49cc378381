"""Where the fields of a batch's messages went: into the row, past its end, or nowhere; and the form of each answer.

A rendering tells it of one row. Rows that markers decide are not rendered: what was seen of fields of the same look in
earlier rows of the same conversation signature holds for them too (:mod:`sft_mask.data.read.census`), as long as all of
those went the same way. Otherwise the row is rendered after all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.data.accounting.signatures import SignatureCache
from sft_mask.data.read.census import ANSWER, Census
from sft_mask.errors import DataError
from sft_mask.templates.fields import Field, FieldKind, fields_of
from sft_mask.templates.forms import Form, InferenceForms

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ints
    from sft_mask.data.read.conversations import Conversation
    from sft_mask.templates.fields import WrittenFields
    from sft_mask.templates.turns import ConversationAligner, Reading, TextConversation

WRITTEN, UNWRITTEN, CUT, UNKNOWN = range(4)
"""What became of a field."""
_MOST_COMPARED: Final = 64
"""Answers of one look that are compared with what inference shows, if they do not all have the same form."""
_PRIME: Final = np.int64(1_000_003)


@dataclass(slots=True)
class Account:
    """What became of the fields of a batch.

    Attributes:
        census: the fields.
        fate: ``(fields,)`` :data:`WRITTEN`, :data:`UNWRITTEN`, :data:`CUT` or :data:`UNKNOWN`.
        form: ``(fields,)`` index into ``forms``; ``-1`` for everything but the answers that were compared.
        forms: the forms that occur.
        answers_cut: ``(rows,)`` answers of which the row holds nothing.
        tokens_cut: ``(rows,)`` their tokens.
    """

    census: Census
    fate: Ints
    form: Ints
    forms: list[Form]
    answers_cut: Ints
    tokens_cut: Ints


class Accountant:
    """Accounts for the fields of one batch, row by row.

    Args:
        census: its fields.
        signature: ``(rows,)`` conversation signatures.
        known: what earlier rows showed.
        aligner: renders conversations.
        last_only: whether only the last answer of a conversation is trained.
    """

    def __init__(
        self,
        census: Census,
        signature: Ints,
        known: SignatureCache,
        aligner: ConversationAligner,
        *,
        last_only: bool = False,
    ) -> None:
        self._census, self._known, self._aligner = census, known, aligner
        with np.errstate(over="ignore"):
            self._key = signature[census.row] * _PRIME + census.look
        rows = len(signature)
        self._bounds = np.searchsorted(census.row, np.arange(rows + 1))
        self._is_answer = census.kind == ANSWER
        answers = np.flatnonzero(self._is_answer)
        is_last = np.append(census.row[answers][1:] != census.row[answers][:-1], True)[: len(answers)]
        self._is_trained = np.zeros(len(census), np.bool_)
        self._is_trained[answers] = is_last | (not last_only)
        self._fate = np.full(len(census), UNKNOWN, np.int64)
        self._form = np.full(len(census), -1, np.int64)
        self._forms: dict[Form, int] = {}
        self._answers_cut, self._tokens_cut = np.zeros(rows, np.int64), np.zeros(rows, np.int64)

    def read(self, row: int, talk: Conversation, reading: Reading) -> None:
        """Accounts for a row that was read by its messages."""
        self._tell(row, talk, reading.conversation, reading.part)
        self._answers_cut[row] = len(reading.outside)
        self._tokens_cut[row] = int((reading.outside.end - reading.outside.start).sum())

    def infer(self, row: int, talk: Conversation) -> None:
        """Accounts for a row that markers decided, by rendering it."""
        try:
            conversation = self._aligner.conversation(talk.messages, talk.tools, talk.variables)
        except DataError:
            return
        self._tell(row, talk, conversation, None)

    def extrapolate(self, rows: Ints) -> Ints:
        """Accounts for rows that markers decided by what is known of such fields; returns those that need more."""
        is_row = np.zeros(len(self._answers_cut), np.bool_)
        is_row[rows] = True
        chosen = np.flatnonzero(is_row[self._census.row] & (~self._is_answer | self._is_trained))
        keys, inverse = np.unique(self._key[chosen], return_inverse=True)
        seen = [self._known.fate(key) for key in keys.tolist()]
        is_open = self._are_open(keys, self._is_answer[chosen][np.unique(inverse, return_index=True)[1]])
        fates = np.array([value if isinstance(value, int) else UNKNOWN for value in seen], np.int64)
        forms = np.array([self._number(value) if isinstance(value, Form) else -1 for value in seen], np.int64)
        self._fate[chosen], self._form[chosen] = fates[inverse], forms[inverse]
        return np.unique(self._census.row[chosen][is_open[inverse]])

    def account(self) -> Account:
        """The account of the batch."""
        return Account(self._census, self._fate, self._form, list(self._forms), self._answers_cut, self._tokens_cut)

    def _are_open(self, keys: Ints, are_answers: Bools) -> Bools:
        limits = np.where(are_answers, _MOST_COMPARED, np.inf).tolist()
        open_keys = [self._known.is_open(key, most) for key, most in zip(keys.tolist(), limits, strict=True)]
        return np.array(open_keys, np.bool_)

    def _entries(self, row: int) -> range:
        return range(int(self._bounds[row]), int(self._bounds[row + 1]))

    def _tell(self, row: int, talk: Conversation, conversation: TextConversation, part: tuple[int, int] | None) -> None:
        """Enters what a rendering shows, of which the row holds a part; ``None`` for all."""
        written, fields = conversation.written, list(fields_of(talk.messages, talk.tools))
        unwritten = {each for each in fields if not written.holds(each, talk.messages)}
        cut = {each for each in fields if each not in unwritten and _is_outside(each, talk, written, part)}
        self._enter(row, unwritten, cut)
        self._compare(row, talk, conversation)

    def _enter(self, row: int, unwritten: Collection[Field], cut: Collection[Field]) -> None:
        census = self._census
        for at in self._entries(row):
            if self._is_answer[at]:
                continue
            entry = Field(int(census.message[at]), FieldKind(int(census.kind[at])), int(census.item[at]))
            self._fate[at] = UNWRITTEN if entry in unwritten else CUT if entry in cut else WRITTEN
            self._known.add_fate(int(self._key[at]), UNWRITTEN if entry in unwritten else WRITTEN)

    def _compare(self, row: int, talk: Conversation, conversation: TextConversation) -> None:
        """Compares the trained answers of a row with what inference shows, unless it is known of answers like them."""
        inference = InferenceForms(self._aligner, talk.messages, talk.tools, talk.variables)
        for at in self._entries(row):
            if not self._is_trained[at]:
                continue
            key, turn = int(self._key[at]), conversation.turn_of(int(self._census.message[at]))
            known = self._known.fate(key)
            if turn is not None and self._known.is_open(key, _MOST_COMPARED):
                known = inference.compare(conversation, turn)
                self._known.add_fate(key, known)
            self._form[at] = self._number(known) if isinstance(known, Form) else -1

    def _number(self, form: Form) -> int:
        return self._forms.setdefault(form, len(self._forms))


def _is_outside(each: Field, talk: Conversation, written: WrittenFields, part: tuple[int, int] | None) -> bool:
    """Whether a field lies outside of the part of the conversation that is in its row."""
    if part is None:
        return False
    place = written.place(each, talk.messages)
    low, high = part
    return place is not None and (place[1] <= low or place[0] >= high)


def answers_without_words(messages: Sequence[Mapping[str, object]], reading: Reading) -> list[int]:
    """Messages of the assistant that have words or calls, of which the template wrote none but an end-of-turn token."""
    conversation, roles = reading.conversation, reading.conversation.rendered.roles
    written = conversation.written
    lost = {each.message for each in fields_of(messages) if roles[each.message] in ASSISTANT_ROLES}
    lost = {message for message in lost if not written.has_any(message)}
    found = [turn.message for turn in conversation.turns if turn.message in lost]
    if len(found) < len(lost):  # an end-of-turn token without words may be the beginning of a longer turn
        sources = conversation.rendered.message_of()
        for turn in conversation.turns:
            own = np.flatnonzero(sources[turn.start : turn.end] >= 0)
            words = turn.start + int(own[0]) if len(own) else turn.start
            if any(turn.start <= start < words for start, _ in conversation.eots):
                found.extend(message for message in lost if message < turn.message and message not in found)
    return sorted(found)
