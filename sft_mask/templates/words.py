"""Messages placed in a row by their own words, for rows that the chat template did not write.

A row can hold a conversation in a format of the caller's own (a ``text`` column, a formatting function) while its
messages are still in the dataset. Then no template says whose words each character is, but the messages do: each one is
looked for after the one before it, the user's and the model's words right after one of their headers. What a message
quotes lies inside its own words, so it opens and closes nothing::

    row       Q: what does "A: no" mean?\\nA: It denies.\\n
    markers   ^^           ^^             ^^
    messages     <---- user's words ---->     <-------->
    turn                                      ^^^^^^^^^^  the "A:" inside the user's words is passed over
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import MODEL_ROLES
from sft_mask.core.arrays import Ids, offsets_of
from sft_mask.core.markers import Kind, separated
from sft_mask.core.search import offset_in_token, token_holding
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.markers import Markers
    from sft_mask.core.spans import SpanFinder


Message = Mapping[str, Any]
_PLAIN = frozenset({"role", "content", "name", "train", "weight"})
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
        header: the header right before it, where it has one.
        start: first byte after the header.
        end: one past its last byte.
        cut: whether the row ends inside it.
    """

    message: int
    header: _Mark | None
    start: int
    end: int
    cut: bool = False


class _RowText:
    """The bytes of a row, and the markers in them."""

    def __init__(self, row: Ids, finder: SpanFinder, markers: Markers) -> None:
        ids = finder.in_vocabulary(row)
        pieces = [finder.vocabulary.piece(token) for token in ids.tolist()]
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


class WordsRoad:
    """Turns of the model in rows whose messages are known and whose format is told by markers only.

    Args:
        finder: the marker search.
        markers: its texts.
    """

    def __init__(self, finder: SpanFinder, markers: Markers) -> None:
        self._finder, self._markers = finder, markers

    def turns(self, messages: Sequence[Message], row: Ids) -> Turns:
        """The turns of the model, each with its message.

        Where a message holds more than its content (a tool call, reasoning), which no format is known for, the turns
        are those that markers find, if no message quotes a marker and none of them holds words of others.

        Raises:
            DataError: the words of a message are not in the row where they should be, or the row has more answers.
        """
        text = _RowText(row, self._finder, self._markers)
        placed = self._place(messages, text)
        plain = all(_is_plain(message) for message in messages if message.get("role") in MODEL_ROLES)
        return self._built(placed, messages, text) if plain else self._verified(placed, messages, text, row)

    # where each message lies

    def _place(self, messages: Sequence[Message], text: _RowText) -> list[_Placed]:
        placed: list[_Placed] = []
        at = 0
        for index, message in enumerate(messages):
            found = self._find(index, message, at, text)
            if found is None:
                if self._ends_before(message, at, text):
                    return placed
                raise DataError(
                    f"The words of message {index} ({message.get('role')}), {_shown(message)}, do not follow a header "
                    "in the row, after the message before it."
                )
            if placed:
                self._refuse_between(placed[-1], found, text)
            placed.append(found)
            at = found.end
        if any(mark.kind is Kind.RESPONSE and mark.start >= at for mark in text.marks):
            raise DataError("The row holds more answers than its messages.")
        return placed

    def _find(self, index: int, message: Message, at: int, text: _RowText) -> _Placed | None:
        words = _words(message)
        role = message.get("role")
        if (role not in MODEL_ROLES and role != "user") or not _is_plain(message):
            start = text.raw.find(words, at)
            return None if start < 0 else _Placed(index, None, start, start + len(words))
        for header in self._headers(role, at, text):
            rest = text.raw[header.end :]
            blank = len(rest) - len(rest.lstrip())
            if rest[blank:].startswith(words):
                end = header.end + (blank + len(words) if words else 0)
                return _Placed(index, header, header.end, end)
            if words.startswith(rest.strip()) and not any(mark.start >= header.end for mark in text.marks):
                return _Placed(index, header, header.end, len(text.raw), cut=True)
        return None

    @staticmethod
    def _headers(role: Any, at: int, text: _RowText) -> list[_Mark]:
        is_model = role in MODEL_ROLES
        ahead = (mark for mark in text.marks if mark.start >= at)
        return [mark for mark in ahead if (mark.kind is Kind.RESPONSE if is_model else mark.is_instruction)]

    @staticmethod
    def _ends_before(message: Message, at: int, text: _RowText) -> bool:
        """Whether the row was cut off before a message, or inside its words where it has no header."""
        rest = text.raw[at:].strip()
        headers = [mark for mark in text.marks if mark.start >= at and mark.kind is not Kind.EOT]
        return not headers and (len(rest) < len(_words(message)) or message.get("role") in {*MODEL_ROLES, "user"})

    @staticmethod
    def _refuse_between(before: _Placed, after: _Placed, text: _RowText) -> None:
        """Refuses an answer between two messages; before a message without a header it may be that message's."""
        if after.header is None:
            return
        opens = (mark.start for mark in text.marks if mark.kind is Kind.RESPONSE)
        if any(before.end <= start < after.header.start for start in opens):
            raise DataError(f"The row holds an answer before message {after.message} that its messages lack.")

    # turns

    def _built(self, placed: Sequence[_Placed], messages: Sequence[Message], text: _RowText) -> Turns:
        rows: list[tuple[int, int, bool, bool, int, int, int]] = []
        is_whole = len(placed) == len(messages)  # else the row ends in the next message's header, or in a part of it
        bounds = [*(_begin(words) for words in placed[1:]), *(words.end for words in placed[-1:])]
        bounds[-1:] = [len(text.raw)] if is_whole else bounds[-1:]
        for words, bound in zip(placed, bounds, strict=False):
            if messages[words.message].get("role") not in MODEL_ROLES or words.header is None:
                continue
            eot_start, turn_end = self._closed(words, bound, _blank_end(messages[words.message]), text)
            start = max(text.first_token(words.start), rows[-1][1] if rows else 0)
            end = text.tokens_until(turn_end)
            if end > start:
                eot_token = text.tokens_until(eot_start) if turn_end > eot_start else end
                header = text.first_token(words.header.start)
                rows.append((start, end, turn_end > eot_start, words.cut, header, eot_token, words.message))
        if not rows:
            return Turns.empty()
        start_, stop_, has_eot, cut, header_, stop_at_, message = (np.array(each) for each in zip(*rows, strict=True))
        turns = Turns.of_model(start_, stop_, has_eot, cut, start_ * 0, header_, stop_at_)
        return replace(turns, message=message)

    def _closed(self, words: _Placed, bound: int, own: bytes, text: _RowText) -> tuple[int, int]:
        """The bytes of the stop of an answer; both are the answer's end where it has none.

        What a row has between the words of the answer and its stop, or the next header, belongs to the answer too (an
        end of text that is no control token, words that the message lacks), but for whitespace that is not its ``own``.
        """
        if words.cut:
            return words.end, words.end
        following = next((mark for mark in text.marks if words.end <= mark.start < bound), None)
        if following is not None and following.kind is Kind.EOT:
            return following.start, following.end
        if following is not None and following.is_eot_header:
            return following.start, int(text.bounds[text.first_token(following.start) + 1])
        end = bound if following is None else following.start
        between = text.raw[words.end : end]
        more = between.rstrip() or (own if between.startswith(own) else b"")
        return words.end + len(more), words.end + len(more)

    def _verified(self, placed: Sequence[_Placed], messages: Sequence[Message], text: _RowText, row: Ids) -> Turns:
        """The turns that markers find, where no message quotes one and none holds words of others."""
        found = self._finder.find(row, np.array([0, len(row)], np.int64))
        answers = sum(messages[words.message].get("role") in MODEL_ROLES for words in placed)
        for words in placed:
            if any(words.start < mark.end and mark.start < words.end for mark in text.marks):
                raise DataError(f"Message {words.message} quotes a marker, and a message holds more than its content.")
            if messages[words.message].get("role") in MODEL_ROLES:
                continue
            low, high = text.first_token(words.start), text.tokens_until(words.end)
            if np.any((found.start < high) & (found.end > low)) and words.end > words.start:
                raise DataError(f"The markers would train words of message {words.message}.")
        if len(found) != answers:
            raise DataError(f"The markers open {len(found)} answers, and the messages hold {answers}.")
        return found


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


def _blank_end(message: Message) -> bytes:
    """The whitespace that the content of a message ends with."""
    content = _text(message) or ""
    return content[len(content.rstrip()) :].encode()


def _begin(words: _Placed) -> int:
    """Where the header of a message begins, or its words where it has none."""
    return words.start if words.header is None else words.header.start


def _shown(message: Message) -> str:
    return repr(_words(message).decode()[:60])
