"""Turns by the words of the messages, for rows that no chat template wrote.

A row can hold a conversation in the caller's own format (a ``text`` column, a formatting function) while its messages
are still in the dataset. No template then says where a character came from, but the messages do: each one is searched
after the one before it, the user's and the assistant's directly after one of their headers. What a message quotes lies
inside its own words, so it opens and closes nothing::

    row       Q: what does "A: no" mean?\\nA: It denies.\\n
    markers   ^^           ^^             ^^
    messages     <---- user's words ---->     <-------->
    turn                                      ^^^^^^^^^^  the "A:" inside the user's words is passed over
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, FLAGS, SPAN_FLAGS
from sft_mask.core.arrays import Ids, offsets_of
from sft_mask.core.markers import separated
from sft_mask.core.patterns import Kind
from sft_mask.core.search import offset_in_token, token_holding
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.markers import Markers
    from sft_mask.core.spans import SpanFinder

Message = Mapping[str, object]
_PLAIN = frozenset({"role", "content", "name", *FLAGS, *SPAN_FLAGS})
"""Fields of a message that add no words of their own to a row."""


@dataclass(frozen=True, slots=True)
class _Mark:
    """A marker in the bytes of a row."""

    start: int
    end: int
    kind: Kind
    is_instruction: bool
    is_eot_header: bool


@dataclass(frozen=True, slots=True)
class _Placed:
    """The words of one message in the bytes of a row.

    Attributes:
        message: its index.
        is_answer: whether it is the assistant's.
        header: the header directly before it, where it has one.
        start: first byte after the header.
        end: one past its last byte.
        cut: whether the row ends inside it.
    """

    message: int
    is_answer: bool
    header: _Mark | None
    start: int
    end: int
    cut: bool = False

    @property
    def begin(self) -> int:
        """Where its header begins, or its words where it has none."""
        return self.start if self.header is None else self.header.start


class _RowText:
    """The bytes of a row, and the markers in them."""

    def __init__(self, row: Ids, finder: SpanFinder, markers: Markers) -> None:
        ids = finder.in_vocabulary(row)
        pieces = [finder.vocabulary.token_bytes(token) for token in ids.tolist()]
        self.bounds = offsets_of([len(piece) for piece in pieces])
        self.raw = b"".join(pieces)
        found = finder.markers_in(ids, np.array([0, len(ids)], np.int64))
        start, end = (
            self.bounds[token_holding(position)] + offset_in_token(position) for position in (found.start, found.end)
        )
        instruction = {*markers.instruction, *separated(markers.instruction, markers.separator)}
        patterns = [finder.trie.patterns[index] for index in found.pattern.tolist()]
        self.marks = [
            _Mark(low, high, pattern.kind, pattern.text in instruction, pattern.first_token_ends_turn)
            for low, high, pattern in zip(start.tolist(), end.tolist(), patterns, strict=True)
        ]

    def first_token(self, byte: int) -> int:
        """The token that holds a byte."""
        return int(np.searchsorted(self.bounds[1:], byte, side="right"))

    def tokens_until(self, byte: int) -> int:
        """One past the last token that holds a byte before this one."""
        return int(np.searchsorted(self.bounds[:-1], byte, side="left"))


class WordAligner:
    """Finds turns in rows whose messages are known and whose format is known by its markers only.

    Args:
        finder: the marker search.
        markers: its texts.
    """

    def __init__(self, finder: SpanFinder, markers: Markers) -> None:
        self._finder, self._markers = finder, markers

    def turns(self, messages: Sequence[Message], row: Ids) -> Turns:
        """The assistant's turns, each with its message.

        Where an answer holds more than its content (a tool call, reasoning), whose format is not known, the turns are
        those that markers find, if no message quotes a marker and none of them holds words of another role.

        Raises:
            DataError: the words of a message are not in the row where they should be, or the row has more answers.
        """
        text = _RowText(row, self._finder, self._markers)
        placed = _place(messages, text)
        if all(_is_plain(message) for message in messages if _is_answer(message)):
            return _plain_turns(placed, messages, text)
        found = self._finder.find(row, np.array([0, len(row)], np.int64))
        _check_turns(found, placed, text)
        return found


# where each message lies


def _place(messages: Sequence[Message], text: _RowText) -> list[_Placed]:
    placed: list[_Placed] = []
    at = 0
    for index, message in enumerate(messages):
        found = _find(index, message, at, text)
        if found is None:
            if _ends_before(message, at, text):
                return placed
            raise DataError(
                f"The words of message {index} ({message.get('role')}), {_words(message).decode()[:60]!r}, do not "
                "follow a header in the row, after the message before it."
            )
        if placed and found.header is not None:  # before a message without a header, an answer may be that message's
            opens = (mark.start for mark in text.marks if mark.kind is Kind.RESPONSE)
            if any(placed[-1].end <= start < found.header.start for start in opens):
                raise DataError(f"The row holds an answer before message {index} that is not in its messages.")
        placed.append(found)
        at = found.end
    if any(mark.kind is Kind.RESPONSE and mark.start >= at for mark in text.marks):
        raise DataError("The row holds more answers than its messages.")
    return placed


def _find(index: int, message: Message, at: int, text: _RowText) -> _Placed | None:
    """The words of a message from byte ``at`` on; ``None`` where they are not there."""
    words, is_answer = _words(message), _is_answer(message)
    if not (is_answer or message.get("role") == "user") or not _is_plain(message):
        start = text.raw.find(words, at)
        return None if start < 0 else _Placed(index, is_answer, None, start, start + len(words))
    ahead = [mark for mark in text.marks if mark.start >= at]
    for header in ahead:
        if not (header.kind is Kind.RESPONSE if is_answer else header.is_instruction):
            continue
        rest = text.raw[header.end :]
        space = len(rest) - len(rest.lstrip())
        if rest[space:].startswith(words):
            end = header.end + (space + len(words) if words else 0)
            return _Placed(index, is_answer, header, header.end, end)
        if words.startswith(rest.strip()) and not any(mark.start >= header.end for mark in ahead):
            return _Placed(index, is_answer, header, header.end, len(text.raw), cut=True)
    return None


def _ends_before(message: Message, at: int, text: _RowText) -> bool:
    """Whether the row was cut off before a message, or inside its words where it has no header."""
    if any(mark.start >= at and mark.kind is not Kind.EOT for mark in text.marks):
        return False
    return len(text.raw[at:].strip()) < len(_words(message)) or _is_answer(message) or message.get("role") == "user"


# turns


def _plain_turns(placed: Sequence[_Placed], messages: Sequence[Message], text: _RowText) -> Turns:
    """The turns of answers that hold nothing but their content."""
    is_whole = len(placed) == len(messages)  # else the row ends in the next message's header, or in a part of it
    last = [len(text.raw)] if is_whole else [words.end for words in placed[-1:]]
    bounds = [*(words.begin for words in placed[1:]), *last]
    rows: list[tuple[int, int, bool, bool, int, int, int]] = []
    for words, bound in zip(placed, bounds, strict=False):
        if not words.is_answer or words.header is None:
            continue
        eot_byte, end_byte = _closed(words, bound, _trailing_whitespace(messages[words.message]), text)
        has_eot = end_byte > eot_byte
        start = max(text.first_token(words.start), rows[-1][1] if rows else 0)
        end = text.tokens_until(end_byte)
        if end > start:
            eot_start = text.tokens_until(eot_byte) if has_eot else end
            header = text.first_token(words.header.start)
            rows.append((start, end, has_eot, words.cut, header, eot_start, words.message))
    if not rows:
        return Turns.empty()
    starts, ends, has_eots, cuts, headers, eot_starts, message = (np.array(each) for each in zip(*rows, strict=True))
    turns = Turns.of_assistant(starts, ends, has_eots, cuts, starts * 0, headers, eot_starts)
    return replace(turns, message=message)


def _closed(words: _Placed, bound: int, trailing: bytes, text: _RowText) -> tuple[int, int]:
    """Where the end-of-turn token of an answer begins and ends; both are the answer's end where it has none.

    What a row has between the answer's words and its end-of-turn token or the next header belongs to the answer too (an
    end of text that is not a control token, words that the message lacks), except whitespace that is not its
    ``trailing`` own.
    """
    if words.cut:
        return words.end, words.end
    following = next((mark for mark in text.marks if words.end <= mark.start < bound), None)
    if following is not None and following.kind is Kind.EOT:
        return following.start, following.end
    if following is not None and following.is_eot_header:
        return following.start, int(text.bounds[text.first_token(following.start) + 1])
    between = text.raw[words.end : bound if following is None else following.start]
    more = between.rstrip() or (trailing if between.startswith(trailing) else b"")
    return words.end + len(more), words.end + len(more)


def _check_turns(found: Turns, placed: Sequence[_Placed], text: _RowText) -> None:
    """Checks turns that markers found: no message quotes a marker, and no turn holds words of another role.

    Raises:
        DataError: one does, or there is another number of answers.
    """
    for words in placed:
        if any(words.start < mark.end and mark.start < words.end for mark in text.marks):
            raise DataError(f"Message {words.message} quotes a marker, and a message holds more than its content.")
        low, high = text.first_token(words.start), text.tokens_until(words.end)
        is_held = np.any((found.start < high) & (found.end > low)) and words.end > words.start
        if is_held and not words.is_answer:
            raise DataError(f"The markers would train words of message {words.message}.")
    answers = sum(words.is_answer for words in placed)
    if len(found) != answers:
        raise DataError(f"The markers open {len(found)} answers, and the messages hold {answers}.")


# messages


def _is_answer(message: Message) -> bool:
    return message.get("role") in ASSISTANT_ROLES


def _is_plain(message: Message) -> bool:
    """Whether a message holds nothing but a content of one text."""
    extra = [name for name, value in message.items() if name not in _PLAIN and value not in (None, "", [])]
    return not extra and _text(message) is not None


def _text(message: Message) -> str | None:
    """The content of a message, as text or as one part; ``None`` where it is something else."""
    content = message.get("content") or ""
    if isinstance(content, list) and len(content) == 1 and isinstance(content[0], Mapping):
        content = content[0].get("text")
    return content if isinstance(content, str) else None


def _words(message: Message) -> bytes:
    """The words of a message as a format would write them, without the whitespace around them."""
    return (_text(message) or "").strip().encode()


def _trailing_whitespace(message: Message) -> bytes:
    """The whitespace at the end of a message's content."""
    content = _text(message) or ""
    return content[len(content.rstrip()) :].encode()
