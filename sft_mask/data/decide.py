"""Which turns a row has: by markers, and by messages where markers are not enough.

Every row that still has its messages is checked. It is decided by them if the number of turns is not the number of
assistant messages, if any message quotes part of a marker, or if its conversation signature has not been verified: the
first rows of every signature are decided both ways, and markers are trusted only with those on which both agree.

Messages decide by the chat template if it renders them to the row (:mod:`sft_mask.templates.turns`), and otherwise by
their own words (:mod:`sft_mask.templates.words`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from sft_mask.constants import ASSISTANT_ROLES, ROLES
from sft_mask.core.policy import Policy
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.data.accounting.accountant import Account, Accountant, answers_without_words
from sft_mask.data.accounting.signatures import SignatureCache
from sft_mask.data.outcome import Batch, Decided, Undecided
from sft_mask.data.read.conversations import EXPANSION, Conversation, Decoder
from sft_mask.errors import AmbiguousRowError, DataError, UnsupportedError
from sft_mask.templates.turns import ConversationAligner, Reading
from sft_mask.templates.words import WordAligner

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.data.read.columns import Signatures

_NOT_IN_ROW = "whose messages do not match their text"


@dataclass(slots=True)
class RowDecider:
    """Decides the turns of rows, and learns which conversation signatures markers can be trusted with.

    Attributes:
        policy: which messages are trained.
        aligner: turns by a rendering of the messages; ``None`` without a chat template.
        words: turns by the words of the messages.
        quotable: texts that show that a message quotes a marker.
        from_template: whether the markers are those of the chat template, so that it must have rendered the rows.
        prompt_answers: whether answers in the prompt of a prompt/completion row count too.
        signatures: what earlier rows have shown.
        rendered: rows so far that were exactly what the chat template renders from their messages.
    """

    policy: Policy
    aligner: ConversationAligner | None
    words: WordAligner
    quotable: tuple[str, ...]
    from_template: bool = True
    prompt_answers: bool = False
    signatures: SignatureCache = field(default_factory=SignatureCache)
    rendered: int = 0

    def decide(self, table: pa.Table, decode: Decoder, batch: Batch, turns: Turns) -> Decided:
        """The turns of every row, by markers (``turns``) or by messages.

        Raises:
            UnsupportedError: the policy needs messages, and the rows have none that can be rendered.
        """
        none = np.zeros(len(batch), np.bool_)
        has_messages, packed = decode.has_conversation(table), len(batch.documents) != len(batch.offsets)
        self._refuse_without_messages(table, decode, packed=packed)
        if not has_messages or packed:
            return Decided(turns, none, none.copy(), dict.fromkeys(range(len(batch)) if has_messages else (), "packed"))
        known, flags = ~decode.unknown(table), decode.flags(table)
        flagged = np.any([none, *flags.values()], axis=0)
        seen = decode.signatures(table, self.quotable)
        doubtful = self._doubtful(seen, turns, flagged) | (EXPANSION in table.column_names)
        unmatched = dict.fromkeys(np.flatnonzero(~known).tolist(), "with null messages")
        decided = Decided(turns, none, known & ~doubtful, unmatched)
        if self.policy.turns != "flagged":
            decided.unread_flags = int(flagged.sum())
            decided.unread_flag_names = {name: int(rows.sum()) for name, rows in flags.items()}
        if self.policy.needs_messages:
            decided.ambiguous.update(dict.fromkeys(unmatched, Undecided("Its messages are null.")))
        accountant = self._accountant(table, decode, seen.signature)
        replaced: dict[int, Turns] = {}
        for row in np.flatnonzero(known & (doubtful | ~self.signatures.trusted(seen.signature))).tolist():
            signature, is_doubtful = int(seen.signature[row]), bool(doubtful[row])
            if not is_doubtful and self.signatures.trusts(signature):
                continue  # an earlier row of this batch was the last that was needed
            decided.checked[row] = False
            exact: Turns | Undecided = Undecided(_NOT_IN_ROW)
            if is_doubtful or not self.signatures.is_unmatched(signature):
                exact = self._by_messages(decode.row(table, row), batch.row(row), row, accountant)
            if isinstance(exact, Undecided):
                self._note(decided, row, exact, signature, doubtful=is_doubtful)
                continue
            if not is_doubtful:
                agreed = _is_same(exact, turns.select(turns.document == row), int(batch.offsets[row]))
                self.signatures.add_comparison(signature, agreed=agreed)
            replaced[row] = exact
            decided.exact[row] = True
        decided.turns = _with_replaced(turns, replaced, batch.offsets)
        if accountant is not None:
            decided.account = _finished(accountant, decided, table, decode)
        return decided

    def _doubtful(self, seen: Signatures, turns: Turns, flagged: Bools) -> Bools:
        """``(rows,)`` rows of which markers alone cannot tell what is trained."""
        doubtful: Bools = seen.quotes | (np.bincount(turns.document, minlength=len(flagged)) != seen.answers)
        if not self.prompt_answers:
            doubtful |= seen.answered_before  # markers alone cannot tell these from answers of the completion
        doubtful |= self.policy.needs_messages | (flagged & (self.policy.turns == "flagged"))
        return doubtful

    def error(self, row: int, undecided: Undecided) -> AmbiguousRowError:
        """The error for a row that could not be decided."""
        why = undecided.why
        if undecided.lost:
            return AmbiguousRowError(
                f"Row {row} has an answer without its words: {why} Or leave such rows out (on_ambiguous='drop' or "
                "'mask')."
            )
        if undecided.refused:
            return AmbiguousRowError(
                f"Row {row} cannot be expanded: {why} Or leave such conversations out (on_ambiguous='drop' or 'mask')."
            )
        if not self.from_template:
            return AmbiguousRowError(
                f"Row {row} cannot be decided: {why} A message of it quotes a marker, or the number of its markers is "
                "not the number of its answers. Repair or remove the row, give the markers of its format, or choose "
                "on_ambiguous='drop' or 'mask'."
            )
        if not self.rendered:
            return AmbiguousRowError(
                f"Row {row} cannot be decided, nor can any row before it: {why} So the rows were rendered by another "
                "chat template, or with other template arguments. Give the one that was used as chat_template=, or "
                "the headers of their format as instruction_part and response_part, or choose on_ambiguous='drop' or "
                "'mask'."
            )
        return AmbiguousRowError(
            f"Row {row} cannot be decided: {why} Other rows are what the template renders ({self.rendered} so far), "
            "so this one was edited, or has other template arguments. Repair or remove it, or choose "
            "on_ambiguous='drop' or 'mask'."
        )

    # one row by its messages

    def _accountant(self, table: pa.Table, decode: Decoder, signature: Ints) -> Accountant | None:
        if self.aligner is None:
            return None
        last_only = self.policy.turns == "last"
        return Accountant(decode.census(table), signature, self.signatures, self.aligner, last_only=last_only)

    def _by_messages(
        self, conversation: Conversation, ids: Ids, row: int, accountant: Accountant | None
    ) -> Turns | Undecided:
        weights, roles = self._weights(conversation)
        if conversation.refused is not None:
            return Undecided(conversation.refused, refused=True)
        others = [at for at, weight in enumerate(weights) if weight and roles[at] not in ASSISTANT_ROLES]
        reading = self._read(conversation, ids, others)
        if isinstance(reading, Undecided):
            found = self._turns_of_words(conversation, ids)
            if isinstance(found, Undecided):
                return reading if self.from_template else found
            return self._weighted(found, conversation, weights, roles)
        if accountant is not None:
            accountant.read(row, conversation, reading)
        empty = [at for at in answers_without_words(conversation.messages, reading) if weights[at]]
        if empty and (self.policy.turns != "last" or empty[-1] == reading.conversation.turns[-1].message):
            return Undecided(_why_empty(conversation.messages[empty[-1]], empty[-1]), lost=True)
        return self._weighted(reading.turns, conversation, weights, roles)

    def _weights(self, conversation: Conversation) -> tuple[list[float], list[str]]:
        """How much each message counts, and its role."""
        weights = self.policy.message_weights(conversation.messages)
        given = self._given(conversation)
        weights[:given] = [0.0] * given
        if conversation.trained is not None:
            weights = [weight if at in conversation.trained else 0.0 for at, weight in enumerate(weights)]
        return weights, [str(message.get("role")) for message in conversation.messages]

    def _given(self, conversation: Conversation) -> int:
        """How many messages are a prompt's, whose answers are not trained."""
        return 0 if self.prompt_answers else conversation.prompt

    def _weighted(
        self, turns: Turns, conversation: Conversation, weights: Sequence[float], roles: Sequence[str]
    ) -> Turns:
        return _of_messages(turns, weights, roles, self._given(conversation))

    def _read(self, conversation: Conversation, ids: Ids, others: list[int]) -> Reading | Undecided:
        """The row read by the chat template, or why it cannot be."""
        if self.aligner is None:
            return Undecided("")
        try:
            found = self.aligner.read(
                conversation.messages,
                ids,
                tools=conversation.tools,
                variables=conversation.variables,
                others=others,
                tool_calls=self.policy.tool_calls,
            )
        except DataError as error:
            return Undecided(str(error))
        self.rendered += 1
        return found

    def _turns_of_words(self, conversation: Conversation, ids: Ids) -> Turns | Undecided:
        """The turns by the words of the messages, or why there are none."""
        if self.policy.needs_messages:
            return Undecided("The policy asks for roles or tool calls, which only a rendering of the messages shows.")
        try:
            return self.words.turns(conversation.messages, ids)
        except DataError as error:
            return Undecided(str(error))

    def _note(self, decided: Decided, row: int, undecided: Undecided, signature: int, *, doubtful: bool) -> None:
        """Notes a row that its messages do not decide: ambiguous, or by markers if nothing contradicts them."""
        if doubtful or self.from_template or undecided.lost:
            decided.ambiguous[row] = undecided
            return
        decided.unmatched[row] = _NOT_IN_ROW
        self.signatures.add_unmatched(signature)

    def _refuse_without_messages(self, table: pa.Table, decode: Decoder, *, packed: bool) -> None:
        """Refuses a policy that needs messages for rows that have none, or none that can be rendered."""
        if not self.policy.needs_messages and self.policy.turns != "flagged":
            return
        if decode.has_conversation(table) and not packed and self.aligner is not None:
            return
        if not decode.has_conversation(table):
            why = f"the rows have no messages (they have {', '.join(table.column_names)})"
        elif packed:
            why = "the rows are packed"
        elif self.policy.needs_messages:
            why = "there is no chat template that could render the messages"
        else:
            return
        kept = " and ".join(decode.columns(table)) or "messages (conversations, or prompt and completion)"
        raise UnsupportedError(
            f"The policy asks for roles, tool calls or flags of messages, but {why}. Keep {kept}, or mask before the "
            "trainer is built: mask_dataset(dataset, tokenizer, policy=...)."
        )


def quotable_texts(finder: SpanFinder) -> tuple[str, ...]:
    """Texts that show that a message quotes a marker: halves of its control tokens, or its visible text."""
    texts: dict[str, None] = {}
    vocabulary = finder.vocabulary
    for pattern in finder.trie.patterns:
        tokens = [atom - 256 for atom in pattern.atoms if atom >= 256]
        for token in tokens:
            texts.update(dict.fromkeys(_halves(vocabulary.text([token]))))
        if tokens:
            continue
        if isinstance(pattern.text, str) and pattern.text.strip():
            texts[pattern.text.strip()] = None
    return tuple(text for text in texts if text.strip())


def _halves(text: str) -> tuple[str, ...]:
    """Halves of a control token: if a template joins two parts of one, a part holds a half. Short ones stay whole."""
    middle = len(text) // 2
    return (text[:middle], text[middle:]) if middle > 2 else (text,)


def _finished(accountant: Accountant, decided: Decided, table: pa.Table, decode: Decoder) -> Account:
    """The account of a batch, with the rows that markers decided."""
    for row in accountant.extrapolate(np.flatnonzero(decided.checked)).tolist():
        accountant.infer(row, decode.row(table, row))
    return accountant.account()


def _why_empty(message: Mapping[str, object], index: int) -> str:
    """Why a turn would train nothing but an end-of-turn token."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, (list, tuple)) and not calls:
        what, way = f"whose content is a list of parts: {content!r:.80}", "Give the content as text"
    elif isinstance(content, str) and content.strip():
        what, way = f"whose content is {content!r:.80}", "Give the content as this template reads it"
    else:
        what = f"which calls a tool: {calls!r:.120}" if calls else "which has reasoning only"
        way = "Write it into the content as the model should say it"
    return (
        f"The chat template writes nothing of message {index} ({message.get('role')}), {what}. Its turn would train "
        f"nothing but an end-of-turn token. {way}, or give a template that writes it as chat_template=."
    )


def _is_same(exact: Turns, marked: Turns, offset: int) -> bool:
    """Whether the turns of a row equal those found by markers, whose positions begin at ``offset``."""
    return np.array_equal(marked.start - offset, exact.start) and np.array_equal(marked.end - offset, exact.end)


def _of_messages(turns: Turns, weights: Sequence[float], roles: Sequence[str], prompt: int) -> Turns:
    """Turns with the weights and roles of their messages; the first ``prompt`` messages are the prompt's."""
    codes = [ROLES.index(role) if role in ROLES else len(ROLES) - 1 for role in roles]
    known = turns.message >= 0
    at = np.where(known, turns.message, 0)
    spoken = zip(weights[prompt:], roles[prompt:], strict=True)
    own = next((weight for weight, role in spoken if role in ASSISTANT_ROLES), 1.0)
    return replace(
        turns,
        weight=np.where(known, np.array([*weights, own])[at], own),
        role=np.where(known, np.array([*codes, 0])[at], turns.role),
    )


def _with_replaced(turns: Turns, replaced: Mapping[int, Turns], offsets: Ints) -> Turns:
    """The turns of a batch with those of some rows replaced."""
    if not replaced:
        return turns
    rows = sorted(replaced)
    kept = turns.select(~np.isin(turns.document, rows))
    moved = [replace(replaced[row].moved(offsets[row]), document=np.full(len(replaced[row]), row)) for row in rows]
    merged = Turns.joined([kept, *moved])
    return merged.select(np.argsort(merged.start, kind="stable"))
