"""Turns in the characters of a rendered conversation to turns in the tokens of a row.

The bytes of the tokens are laid along the rendered text; the turns are then moved onto the row, which holds all of the
conversation or only its beginning or end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import Ints, offsets_of
from sft_mask.core.spans import Turns
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import AddedPiece, Vocabulary


_BLANK = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""Unicode's white space, which tokenizers swallow; what ``str.isspace`` holds for blank is a little more."""
_BLANKS = re.compile(b"(?:" + b"|".join(re.escape(blank.encode()) for blank in _BLANK) + b")*")


@dataclass(frozen=True, slots=True)
class TextTurn:
    """A turn of the model in rendered text, in characters.

    Attributes:
        header: where its header begins.
        start: first character the model has to write.
        end: one past the last, the stop included.
        eot_start: where the stop begins; ``end`` where there is none.
        first_message: message that owns its first words, ``-1`` for none.
        message: message that owns its last words, ``-1`` for an empty answer.
    """

    header: int
    start: int
    end: int
    eot_start: int
    first_message: int
    message: int


def _byte_positions(text: str, positions: Sequence[int]) -> Ints:
    """Character positions as positions in the UTF-8 bytes."""
    characters = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (characters >= 0x80).astype(np.int64) + (characters >= 0x800) + (characters >= 0x10000)
    starts = offsets_of(lengths)
    return starts[np.asarray(positions, np.int64)]


def token_bounds(text: str, ids: Sequence[int], vocabulary: Vocabulary, tokenizer: Any) -> tuple[Ints, Ints]:
    """The bytes of ``text`` that each token holds, as half-open ranges in UTF-8 bytes.

    The bytes of the tokens are laid along the text; blanks that a control token swallowed belong to no token. Where a
    normalizer changed the text, the tokenizer's own character offsets are used.

    Raises:
        DataError: neither way covers the text.
    """
    walked = _walk(text.encode(), ids, vocabulary) if vocabulary.kind != "opaque" else None
    if walked is not None:
        return walked
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = np.asarray(encoded["offset_mapping"], np.int64).reshape(-1, 2)
    for index, token_id in enumerate(ids):
        added = vocabulary.added.get(token_id)
        at = text.find(added.content, *pairs[index]) if added is not None else -1
        if added is not None and at >= 0:  # without the blanks that it swallowed
            pairs[index] = at, at + len(added.content)
    return _byte_positions(text, pairs[:, 0].tolist()), _byte_positions(text, pairs[:, 1].tolist())


def _walk(raw: bytes, ids: Sequence[int], vocabulary: Vocabulary) -> tuple[Ints, Ints] | None:
    first = np.zeros(len(ids), np.int64)
    last = np.zeros(len(ids), np.int64)
    position = 0
    glued = vocabulary.kind == "sentencepiece"
    for index, token_id in enumerate(ids):
        piece = vocabulary.piece(token_id)
        added = vocabulary.added.get(token_id)
        if added is not None and not raw.startswith(piece, position):
            position = _skip_blanks(raw, position, added.lstrip, piece)
        if glued and piece.startswith(b" ") and _begins_with_glue(raw, position, ids, index, vocabulary):
            piece = piece[1:]
        if not raw.startswith(piece, position):
            return None
        first[index], last[index] = position, position + len(piece)
        position += len(piece)
        if added is not None:
            position = _after_swallowed(raw, position, added)
    return (first, last) if not raw[position:].strip() else None


def _begins_with_glue(raw: bytes, position: int, ids: Sequence[int], index: int, vocabulary: Vocabulary) -> bool:
    """Whether a token begins with a blank that the text does not have: the tokens hold one blank more than the text.

    Of ``<|assistant|>`` ``▁`` ``▁`` for ``"<|assistant|> "`` the first blank is glued, and the second the header's own.
    """
    if index and ids[index - 1] not in vocabulary.added:
        return False
    blanks = 0
    for token in ids[index:]:
        piece = b"" if token in vocabulary.added else vocabulary.piece(token)
        blanks += len(piece) - len(piece.lstrip(b" "))
        if not piece or piece.strip(b" "):
            break
    rest = raw[position : position + blanks]
    return blanks == len(rest) - len(rest.lstrip(b" ")) + 1


def _skip_blanks(raw: bytes, position: int, lstrip: bool, piece: bytes) -> int:
    """Past blanks that the token about to come swallowed on its left."""
    ahead = _past_blanks(raw, position) if lstrip else position
    return ahead if raw.startswith(piece, ahead) else position


def _after_swallowed(raw: bytes, position: int, added: AddedPiece) -> int:
    """Past blanks that a token swallowed on its right."""
    return _past_blanks(raw, position) if added.rstrip else position


def _past_blanks(raw: bytes, position: int) -> int:
    found = _BLANKS.match(raw, position)
    return found.end() if found is not None else position


def _first_tokens(first: Ints, last: Ints, start: Ints) -> Ints:
    """The first token that holds a byte from ``start`` on, with the glued blanks that stand right before it."""
    tokens = np.searchsorted(last, start, side="right")
    while True:
        before = np.maximum(tokens - 1, 0)
        glued = (tokens > 0) & (first[before] == last[before]) & (first[before] == start)
        if not glued.any():
            return tokens
        tokens = tokens - glued


def token_turns(text: str, spans: Sequence[TextTurn], first: Ints, last: Ints) -> Turns:
    """Turns in characters to turns in tokens: a token belongs to a turn if it holds any byte of it.

    A last turn without tokens or a stop stays, since its row may end it; :func:`fit_to_row` drops it where it does not.
    """
    if not spans:
        return Turns.empty()
    fields = ("header", "start", "end", "eot_start")
    table = {name: _byte_positions(text, [getattr(span, name) for span in spans]) for name in fields}
    start = _first_tokens(first, last, table["start"])
    end = np.searchsorted(first, table["end"], side="left")
    start[1:] = np.maximum(start[1:], np.maximum.accumulate(end)[:-1])  # one token can hold an end and a beginning
    eot_start = np.searchsorted(last, table["eot_start"], side="right")
    has_eot = table["end"] > table["eot_start"]
    eot_start = np.where(has_eot, eot_start, end)
    header = np.searchsorted(last, table["header"], side="right")
    nobody = np.zeros(len(spans), np.bool_)
    found = Turns.of_model(start, end, has_eot, nobody, np.zeros(len(spans), np.int64), header, eot_start)
    turns = replace(found, message=np.array([span.message for span in spans], np.int64))
    is_open = np.arange(len(turns)) == len(turns) - 1
    return turns.select((turns.end > turns.start) | (is_open & ~has_eot))


@dataclass(frozen=True, slots=True)
class RowFrame:
    """What a row can hold around its rendered conversation.

    Attributes:
        leads: ids that the tokenizer puts in front of a text that was rendered beforehand (its BOS).
        tails: ids that follow such a text (the EOS that TRL appends, what the tokenizer adds).
        is_blank: whether ids are whitespace only.
    """

    leads: tuple[tuple[int, ...], ...] = ()
    tails: tuple[tuple[int, ...], ...] = ()
    is_blank: Callable[[Ints], bool] = lambda ids: not len(ids)

    def places(self, row: Ints) -> list[tuple[int, int]]:
        """Where the conversation may lie in a row, as ``[low, high)``; all of the row first."""
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
        opens_turn: whether some ids hold a response header: a row may differ from its conversation where nobody speaks
            (another date, an added token), but not by a turn of the model that is not in its messages.
        frame: what the row may hold before and after the conversation. A tail ends the last answer where the template
            writes no stop.

    Raises:
        DataError: the row is not what the template renders.
    """
    places = frame.places(row)
    for low, high in places:
        found = _whole_or_part(turns, whole, row[low:high])
        if found is not None:
            return _ended_by_tail(found.moved(low), row, high, frame)
    refused: DataError | None = None
    for low, high in reversed(places):
        try:
            found = _around_difference(turns, whole, row[low:high], opens_turn)
        except DataError as error:
            refused = error
            continue
        return _ended_by_tail(found.moved(low), row, high, frame)
    assert refused is not None, "all of a row is always one of its places"
    raise refused


def _whole_or_part(turns: Turns, whole: Ints, body: Ints) -> Turns | None:
    """The turns where a row is its conversation, its beginning or its end."""
    size = len(body)
    if np.array_equal(whole, body):
        return turns
    if size <= len(whole) and np.array_equal(whole[:size], body):
        return _clip(turns, 0, size)
    if 0 < size < len(whole) and np.array_equal(whole[-size:], body):
        return _clip(turns, len(whole) - size, len(whole))
    return None


def _ended_by_tail(turns: Turns, row: Ints, high: int, frame: RowFrame) -> Turns:
    """The turns; the tail of the row is the stop of the last one where it has none and only whitespace lies between."""
    if high < len(row) and len(turns) and not turns.has_eot[-1] and frame.is_blank(row[turns.end[-1] : high]):
        end, eot_start, has_eot = turns.end.copy(), turns.eot_start.copy(), turns.has_eot.copy()
        end[-1], eot_start[-1], has_eot[-1] = high + 1, high, True
        turns = replace(turns, end=end, eot_start=eot_start, has_eot=has_eot)
    return turns.select(turns.end > turns.start)


def _clip(turns: Turns, low: int, high: int) -> Turns:
    inside = turns.select((turns.end > low) & (turns.start < high))
    start, end = np.maximum(inside.start, low) - low, np.minimum(inside.end, high) - low
    has_eot = inside.has_eot & (inside.eot_start < high)
    eot_start = np.where(has_eot, np.maximum(inside.eot_start - low, 0), end)
    cut = inside.cut | (inside.end > high)
    header = np.clip(inside.header - low, 0, None)
    return replace(inside, start=start, end=end, has_eot=has_eot, cut=cut, header=header, eot_start=eot_start)


def _around_difference(turns: Turns, whole: Ints, row: Ints, opens_turn: Callable[[Ints], bool]) -> Turns:
    """A row that differs from its conversation in one stretch in which the model says nothing."""
    shortest = min(len(whole), len(row))
    same = whole[:shortest] == row[:shortest]
    before = shortest if same.all() else int(np.argmin(same))
    backwards = whole[::-1][:shortest] == row[::-1][:shortest]
    after = min(shortest if backwards.all() else int(np.argmin(backwards)), shortest - before)
    low, high = before, len(whole) - after
    if np.any((turns.start < high) & (turns.end > low)) or opens_turn(row[low : len(row) - after]):
        raise DataError(
            f"The row's ids are not what the chat template renders from its messages: they differ from token {before} "
            f"on (row {row[before : before + 8].tolist()}, rendered {whole[before : before + 8].tolist()})."
        )
    return turns.moved(np.where(turns.start >= high, len(row) - len(whole), 0))
