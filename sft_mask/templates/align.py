"""Turns in the characters of a rendered conversation to turns in the tokens of a row.

The bytes of the tokens are matched against the rendered text, character positions become token positions, and the turns
are moved onto the row, which holds the whole conversation, its beginning, or its end. One answer (⏎ is a newline)::

    characters   <|im_start|>assistant⏎Yes.<|im_end|>⏎
    sources      ----------------------1111-----------     -: the template, 1: message 1
    tokens       0           1        23  45         6     <|im_start|> assistant ⏎ Yes . <|im_end|> ⏎
    turn         header                start         end
                                           eot_start
    in text      header 0, start 22, eot_start 26, end 36
    in tokens    header 0, start 3, eot_start 5, end 6
    labels       -100 -100 -100 Yes . <|im_end|> -100
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import Ints, offsets_of
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary


_SPACES = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's whitespace, which tokenizers strip; ``str.isspace`` is true of a few more characters."""
_WHITESPACE = re.compile(b"(?:" + b"|".join(re.escape(space.encode()) for space in _SPACES) + b")*")


PLACES = ("header", "start", "end", "eot_start")
"""The places of a turn, in the order of :class:`TurnPlaces`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTurn:
    """A turn in rendered text, in characters.

    Attributes:
        header: where its header begins.
        start: first character that the assistant has to write.
        end: one past the last, the end-of-turn token included.
        eot_start: where the end-of-turn token begins; ``end`` where there is none.
        first_message: message that its first words come from, ``-1`` for none.
        message: message that its last words come from, ``-1`` for an empty answer.
    """

    header: int
    start: int
    end: int
    eot_start: int
    first_message: int
    message: int

    @property
    def opens_message(self) -> int:
        """The message whose words the turn begins with; that of an empty answer where there are none."""
        return self.first_message if self.first_message >= 0 else self.message


# characters and tokens


def encode(text: str, vocabulary: Vocabulary, tokenizer: Any) -> tuple[Ints, Ints, Ints]:
    """The ids of a text without added tokens, and the bytes that each of them holds (see :func:`token_bounds`)."""
    ids = np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"], np.int64)
    return ids, *token_bounds(text, ids.tolist(), vocabulary, tokenizer)


def token_bounds(text: str, ids: Sequence[int], vocabulary: Vocabulary, tokenizer: Any) -> tuple[Ints, Ints]:
    """The bytes of ``text`` that each token holds, as half-open ranges in UTF-8 bytes.

    The bytes of the tokens are matched against the text; whitespace that a control token stripped belongs to no token.
    Where a normalizer changed the text, the tokenizer's own character offsets are used.
    """
    matched = _matched(text.encode(), ids, vocabulary) if vocabulary.kind != "opaque" else None
    if matched is not None:
        return matched
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    for index, token_id in enumerate(ids):
        added = vocabulary.added.get(token_id)
        at = text.find(added.content, *pairs[index]) if added is not None else -1
        if added is not None and at >= 0:  # without the whitespace that it stripped
            pairs[index] = at, at + len(added.content)
    return byte_positions(text, pairs[:, 0]), byte_positions(text, pairs[:, 1])


def byte_positions(text: str, positions: Sequence[int] | Ints) -> Ints:
    """Character positions as positions in the UTF-8 bytes."""
    if text.isascii():
        return np.asarray(positions, np.int64)
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    starts = offsets_of(lengths)
    return starts[np.asarray(positions, np.int64)]


def bounds_in_beginning(raw: bytes, ids: Sequence[int] | Ints, vocabulary: Vocabulary) -> tuple[Ints, Ints] | None:
    """The bytes of ``raw`` that each token holds, where the ids are those of its beginning or of all of it.

    The text may have been tokenized in several pieces: SentencePiece adds a space at the beginning of each. ``None``
    where the ids are not those of the text, and where the vocabulary does not say the bytes of its tokens.
    """
    if vocabulary.kind == "opaque":
        return None
    given = np.asarray(ids, np.int64)
    begins = np.flatnonzero(np.append(True, given[1:] != given[:-1])[: len(given)])
    tokens = given[begins].tolist()  # an image is hundreds of equal tokens, which are read once
    counts = np.append(begins[1:], len(given)) - begins
    runs = vocabulary.each_bytes(tokens)
    sizes = np.repeat(np.fromiter(map(len, runs), np.int64, len(runs)), counts)
    for run in np.flatnonzero(counts > 1).tolist():
        runs[run] *= int(counts[run])
    matches = raw.startswith(b"".join(runs))  # no space was added, and none was stripped
    if not matches and vocabulary.kind == "sentencepiece":
        after_added = [0, *(run for run, token in enumerate(tokens[:-1], 1) if token in vocabulary.added)]
        first_tokens = {run: int(begins[run]) for run in after_added if runs}
        _drop_glued_spaces(raw, given.tolist(), first_tokens, runs, sizes, vocabulary)
        matches = raw.startswith(b"".join(runs))
    if matches:
        edges = offsets_of(sizes)
        return edges[:-1], edges[1:]
    return _matched(raw, given.tolist(), vocabulary, beginning=True)


def _drop_glued_spaces(
    raw: bytes, ids: Sequence[int], begins: Mapping[int, int], runs: list[bytes], sizes: Ints, vocabulary: Vocabulary
) -> None:
    """Takes the spaces that SentencePiece added off ``runs``, the bytes of equal tokens, and the tokens' ``sizes``.

    ``begins`` has the first token of each run that comes first or after an added token: spaces are added only there.
    """
    edges = offsets_of(sizes)
    dropped = 0
    for run, index in begins.items():
        position = int(edges[index]) - dropped
        if runs[run].startswith(b" ") and _has_glued_space(raw, position, ids, index, vocabulary):
            runs[run] = runs[run][1:]
            sizes[index] -= 1
            dropped += 1


def _matched(
    raw: bytes, ids: Sequence[int], vocabulary: Vocabulary, *, beginning: bool = False
) -> tuple[Ints, Ints] | None:
    """The bytes of each token in ``raw``; ``None`` where they are not the bytes of the text, or of its beginning."""
    first: list[int] = []
    last: list[int] = []
    position = 0
    glues = vocabulary.kind == "sentencepiece"
    for index, token_id in enumerate(ids):
        if index < len(first):
            continue
        piece = vocabulary.token_bytes(token_id)
        added = vocabulary.added.get(token_id)
        if added is not None and added.lstrip and not raw.startswith(piece, position):
            position = _after_whitespace(raw, position)
        if glues and piece.startswith(b" ") and _has_glued_space(raw, position, ids, index, vocabulary):
            piece = piece[1:]
        if glues and beginning and piece.startswith(b" ") and not raw.startswith(piece, position):
            piece = piece[1:]
        if not raw.startswith(piece, position):
            return None
        count = 1 if added is None or added.rstrip else _repeats(raw, position, piece, ids, index)
        edges = [position + len(piece) * number for number in range(count + 1)]
        first += edges[:-1]
        last += edges[1:]
        position = edges[-1]
        if added is not None and added.rstrip:
            position = _after_whitespace(raw, position)
    return (np.array(first, np.int64), np.array(last, np.int64)) if beginning or not raw[position:].strip() else None


def _repeats(raw: bytes, position: int, piece: bytes, ids: Sequence[int], index: int) -> int:
    """How often a control token comes in a row, and its bytes too: an image is hundreds of equal ones."""
    after = next((at for at in range(index + 1, len(ids)) if ids[at] != ids[index]), len(ids))
    count = after - index
    return count if count == 1 or raw.startswith(piece * count, position) else 1


def _has_glued_space(raw: bytes, position: int, ids: Sequence[int], index: int, vocabulary: Vocabulary) -> bool:
    """Whether SentencePiece added the space that a token begins with: the tokens hold one space more than the text.

    Of ``<|assistant|>`` ``▁`` ``▁`` for ``"<|assistant|> "`` the first space was added; the second is the header's.
    """
    if index and ids[index - 1] not in vocabulary.added:
        return False
    spaces = 0
    for token in ids[index:]:
        piece = b"" if token in vocabulary.added else vocabulary.token_bytes(token)
        spaces += len(piece) - len(piece.lstrip(b" "))
        if not piece or piece.strip(b" "):
            break
    rest = raw[position : position + spaces]
    return spaces == len(rest) - len(rest.lstrip(b" ")) + 1


def _after_whitespace(raw: bytes, position: int) -> int:
    found = _WHITESPACE.match(raw, position)
    return found.end() if found is not None else position


def token_turns(text: str, spans: Sequence[TextTurn], first: Ints, last: Ints) -> Turns:
    """Turns in characters to turns in tokens: a token belongs to a turn if it holds any byte of it.

    A last turn without tokens or an end-of-turn token stays, since its row may end it; :func:`fit_to_row` drops it
    where it does not.
    """
    return TurnPlaces.of(text, spans).in_tokens(first, last)


@dataclass(frozen=True, slots=True)
class TurnPlaces:
    """Turns in the bytes of a text.

    Attributes:
        places: ``(4, turns)`` where each turn's header, start, end and end-of-turn token begin (:class:`TextTurn`).
        message: ``(turns,)`` the message that each one's last words come from.
    """

    places: Ints
    message: Ints

    @classmethod
    def of(cls, text: str, spans: Sequence[TextTurn]) -> TurnPlaces:
        """Turns in the characters of a text."""
        places = np.array([[getattr(span, name) for span in spans] for name in PLACES], np.int64)
        return cls(byte_positions(text, places), np.array([span.message for span in spans], np.int64))

    def in_tokens(self, first: Ints, last: Ints) -> Turns:
        """The turns in tokens, of which each holds the bytes ``[first, last)``; see :func:`token_turns`."""
        if not len(self.message):
            return Turns.empty()
        header_at, start_at, end_at, eot_at = self.places
        start = _first_tokens(first, last, start_at)
        end = np.searchsorted(first, end_at, side="left")
        start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])  # one token can hold an end and a beginning
        has_eot = end_at > eot_at
        eot_start = np.where(has_eot, np.searchsorted(last, eot_at, side="right"), end)
        header = np.searchsorted(last, header_at, side="right")
        cut = np.zeros(len(start), np.bool_)
        document = np.zeros(len(start), np.int64)
        turns = Turns.of_assistant(start, end, has_eot, cut, document, header, eot_start, self.message)
        is_last = np.arange(len(turns)) == len(turns) - 1
        return turns.select((turns.end > turns.start) | (is_last & ~has_eot))

    def in_beginning(self, size: int, first: Ints, last: Ints) -> Turns:
        """:meth:`in_tokens` for tokens that hold a text of ``size`` bytes, or only its beginning.

        Turns after it are left out, the last one may be cut.
        """
        end = int(last[-1]) if len(last) else 0
        if end >= size:
            found = self.in_tokens(first, last)
            return found.select(found.end > found.start)
        found = self.in_tokens(np.append(first, end), np.append(last, size))  # one more for what was cut off
        clipped = _clip(found, 0, len(first))
        return clipped.select(clipped.end > clipped.start)


def _first_tokens(first: Ints, last: Ints, start: Ints) -> Ints:
    """The first token that holds a byte from ``start`` on, or the glued spaces (without bytes) right before it."""
    tokens = np.searchsorted(last, start, side="right")
    while True:
        before = np.maximum(tokens - 1, 0)
        glued = (tokens > 0) & (first[before] == last[before]) & (first[before] == start)
        if not glued.any():
            return tokens
        tokens = tokens - glued


# onto the row


@dataclass(frozen=True, slots=True)
class RowFrame:
    """What a row can hold around its rendered conversation.

    Attributes:
        leads: ids that the tokenizer adds before a text that was rendered beforehand (its BOS).
        tails: ids that follow such a text (the EOS that TRL appends, what the tokenizer adds).
        is_whitespace: whether ids are whitespace only.
    """

    leads: tuple[tuple[int, ...], ...] = ()
    tails: tuple[tuple[int, ...], ...] = ()
    is_whitespace: Callable[[Ints], bool] = lambda ids: not len(ids)

    def places(self, row: Ints) -> list[tuple[int, int]]:
        """Where the conversation may lie in a row, as ``[low, high)``; the whole row first."""
        lows = [len(lead) for lead in ((), *self.leads) if tuple(row[: len(lead)].tolist()) == lead]
        cuts = [len(tail) for tail in ((), *self.tails) if tuple(row[len(row) - len(tail) :].tolist()) == tail]
        return [(low, len(row) - cut) for low in lows for cut in cuts if low <= len(row) - cut]


def fit_to_row(
    turns: Turns,
    whole: Ints,
    row: Ints,
    opens_turn: Callable[[Ints], bool],
    frame: RowFrame = RowFrame(),
) -> Turns:
    """Moves turns of the whole conversation onto a row that holds all of it, its beginning, or its end.

    Args:
        turns: in tokens of ``whole``.
        whole: ``(n,)`` ids of the rendered conversation.
        row: ``(tokens,)`` ids of the row.
        opens_turn: whether some ids hold a response header. A row may differ from its conversation outside of turns
            (another date, an added token), but not by a turn that is not in its messages.
        frame: what the row may hold before and after the conversation. A tail ends the last answer where the template
            writes no end-of-turn token.

    Raises:
        DataError: the row is not what the template renders.
    """
    places = frame.places(row)
    for low, high in places:
        found = _whole_or_part(turns, whole, row[low:high])
        if found is not None:
            return _ended_by_tail(found.moved(low), row, high, frame)
    for low, high in reversed(places):
        found = _around_difference(turns, whole, row[low:high], opens_turn)
        if found is not None:
            return _ended_by_tail(found.moved(low), row, high, frame)
    at = _shared(whole, row)
    raise DataError(
        f"The row's ids are not what the chat template renders from its messages: they differ from token {at} on "
        f"(row {row[at : at + 8].tolist()}, rendered {whole[at : at + 8].tolist()})."
    )


def _whole_or_part(turns: Turns, whole: Ints, body: Ints) -> Turns | None:
    """The turns where a row is its conversation, its beginning or its end; ``None`` where it is not."""
    size = len(body)
    if np.array_equal(whole, body):
        return turns
    if size <= len(whole) and np.array_equal(whole[:size], body):
        return _clip(turns, 0, size)
    if 0 < size < len(whole) and np.array_equal(whole[-size:], body):
        return _clip(turns, len(whole) - size, len(whole))
    return None


def part_in_row(whole: Ints, row: Ints, frame: RowFrame) -> tuple[int, int]:
    """The tokens of a conversation that its row holds, as a half-open range: all, its beginning, or its end."""
    for low, high in frame.places(row) if len(row) < len(whole) else ():
        size = high - low
        if 0 < size < len(whole) and np.array_equal(whole[:size], row[low:high]):
            return 0, size
        if 0 < size < len(whole) and np.array_equal(whole[-size:], row[low:high]):
            return len(whole) - size, len(whole)
    return 0, len(whole)


def _ended_by_tail(turns: Turns, row: Ints, high: int, frame: RowFrame) -> Turns:
    """The turns; a last one without an end-of-turn token ends with the row's tail if only whitespace lies between."""
    if high < len(row) and len(turns) and not turns.has_eot[-1] and frame.is_whitespace(row[turns.end[-1] : high]):
        end, eot_start, has_eot = turns.end.copy(), turns.eot_start.copy(), turns.has_eot.copy()
        end[-1], eot_start[-1], has_eot[-1] = high + 1, high, True
        turns = replace(turns, end=end, eot_start=eot_start, has_eot=has_eot)
    return turns.select(turns.end > turns.start)


def _clip(turns: Turns, low: int, high: int) -> Turns:
    """The turns in the tokens ``[low, high)``, counted from ``low`` on."""
    inside = turns.select((turns.end > low) & (turns.start < high))
    start, end = np.maximum(inside.start, low) - low, np.minimum(inside.end, high) - low
    has_eot = inside.has_eot & (inside.eot_start < high)
    eot_start = np.where(has_eot, np.maximum(inside.eot_start - low, 0), end)
    cut = inside.cut | (inside.end > high)
    header = np.clip(inside.header - low, 0, None)
    return replace(inside, start=start, end=end, has_eot=has_eot, cut=cut, header=header, eot_start=eot_start)


def _around_difference(turns: Turns, whole: Ints, row: Ints, opens_turn: Callable[[Ints], bool]) -> Turns | None:
    """The turns of a row that differs from its conversation in one stretch without a turn; ``None`` for others."""
    before = _shared(whole, row)
    after = min(_shared(whole[::-1], row[::-1]), min(len(whole), len(row)) - before)
    low, high = before, len(whole) - after
    if np.any((turns.start < high) & (turns.end > low)) or opens_turn(row[low : len(row) - after]):
        return None
    return turns.moved(np.where(turns.start >= high, len(row) - len(whole), 0))


def _shared(left: Ints, right: Ints) -> int:
    """How many ids two sequences share at their beginning."""
    shortest = min(len(left), len(right))
    differs = left[:shortest] != right[:shortest]
    return int(np.argmax(differs)) if differs.any() else shortest
