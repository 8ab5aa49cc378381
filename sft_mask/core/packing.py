"""Rows, or documents of packed rows, that begin in the middle of a conversation.

Three ways of a trainer make them. ``wrapped`` packing cuts one long text at every ``max_length`` tokens, so a row goes
on where the one before it ended, and both are read as one. ``bfd_split`` cuts long conversations into documents that
are then packed in any order, and ``truncation_mode="keep_end"`` throws beginnings away: there only what ends the first
words can tell whose they were. In a chat that alternates, words that a stop closes and a user's header follows were the
model's; words before the model's header were somebody else's. What neither shows stays undecided.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sft_mask.core.markers import Kind
from sft_mask.core.search import token_holding, tokens_before
from sft_mask.core.spans import Turns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sft_mask.core.arrays import Ids, Ints
    from sft_mask.core.markers import Markers
    from sft_mask.core.search import Found
    from sft_mask.core.spans import SpanFinder


Cutting = Literal["wrapped", "split", "tail"]


@dataclass(frozen=True, slots=True)
class Pieces:
    """How a trainer cut its rows.

    Attributes:
        cutting: ``"wrapped"`` packing, ``"split"`` for ``bfd_split``, ``"tail"`` for ``keep_end``.
        length: tokens at which it cuts.
    """

    cutting: Cutting
    length: int


def chained(offsets: Ints, length: int) -> Ints:
    """Offsets of the texts that ``wrapped`` packing cut: a row that is full goes on in the next.

    >>> chained(np.array([0, 8, 16, 21, 29]), 8).tolist()
    [0, 21, 29]
    """
    full = np.diff(offsets) == length
    return offsets[np.append(np.append(True, ~full[:-1]), True)] if len(full) else offsets


def cut_at(turns: Turns, offsets: Ints) -> Turns:
    """Turns of longer texts, cut where rows end; only the last piece of a turn has its stop."""
    if not len(turns):
        return turns
    first = np.searchsorted(offsets, turns.start, side="right") - 1
    last = np.searchsorted(offsets, turns.end, side="left") - 1
    pieces = last - first + 1
    whole = turns.select(np.repeat(np.arange(len(turns)), pieces))
    row = np.arange(len(whole)) - np.repeat(np.cumsum(pieces) - pieces, pieces) + np.repeat(first, pieces)
    start, end = np.maximum(whole.start, offsets[row]), np.minimum(whole.end, offsets[row + 1])
    ends = whole.end <= offsets[row + 1]  # a piece that goes on in the next row is not cut off
    has_eot = whole.has_eot & (whole.eot_start < offsets[row + 1])
    eot_start = np.where(has_eot, np.maximum(whole.eot_start, offsets[row]), end)
    header = np.maximum(whole.header, offsets[row])
    cut = whole.cut & ends
    return replace(
        whole, start=start, end=end, has_eot=has_eot, eot_start=eot_start, header=header, cut=cut, document=row
    )


class FragmentReader:
    """Decides whose words a document begins with.

    Args:
        finder: the marker search.
        markers: its texts.
        pieces: how the trainer cut.
        bos_token_id: what begins a conversation, if anything does.
    """

    def __init__(self, finder: SpanFinder, markers: Markers, pieces: Pieces, bos_token_id: int | None) -> None:
        self._finder = finder
        self._pieces = pieces
        self._bos = bos_token_id
        patterns = finder.trie.patterns
        self._is_stop = np.array([pattern.kind is Kind.EOT for pattern in patterns], np.bool_)
        self._opens_model = np.array([pattern.kind is Kind.RESPONSE for pattern in patterns], np.bool_)
        self._opens_user = np.array([pattern.text in markers.instruction for pattern in patterns], np.bool_)
        self._stops = {pattern.atoms[0] - 256 for pattern in patterns if pattern.kind is Kind.EOT}
        self._first_token_ends_turn = np.array([pattern.first_token_ends_turn for pattern in patterns], np.bool_)
        speaks = [text for text in markers.others if not (isinstance(text, tuple) and text == (bos_token_id,))]
        self._only_two_speak = not speaks
        self._is_other = np.array([pattern.kind is Kind.OTHER for pattern in patterns], np.bool_) & ~self._opens_user
        is_bos = np.array([pattern.text == (bos_token_id,) for pattern in patterns], np.bool_)
        self._opens_preamble = self._is_other & ~is_bos
        self._any_cut = self._preamble_cut = False
        headers = (*markers.response, *markers.headers)
        texts = [text if isinstance(text, str) else finder.vocabulary.text(text) for text in headers]
        self._headers = tuple(text.encode() for text in texts)

    def read(self, ids: Ids, offsets: Ints) -> tuple[Turns, Mapping[int, str]]:
        """Turns of the model that documents begin with, and why others could not be decided.

        Args:
            ids: ``(tokens,)``.
            offsets: ``(documents + 1,)``.
        """
        undecided: dict[int, str] = {}
        lengths = np.diff(offsets)
        self.expect(lengths)
        if not self._any_cut:
            return Turns.empty(), undecided
        full = np.flatnonzero(lengths == self._pieces.length)
        candidates = full if self._pieces.cutting == "tail" else np.flatnonzero(lengths > 0)
        ids = self._finder.in_vocabulary(ids)
        found = self._finder.markers_in(ids, offsets)
        edges = np.searchsorted(token_holding(found.start), offsets).tolist()
        self._preamble_cut |= any(self._is_preamble(found.pattern[edges[i] : edges[i + 1]]) for i in full.tolist())
        turns: list[tuple[int, int, int, int]] = []
        for document in candidates.tolist():
            low, high = int(offsets[document]), int(offsets[document + 1])
            if self._begins(int(ids[low])):
                continue
            inside = slice(edges[document], edges[document + 1])
            turn = self._first_words(ids, (low, high), inside, found, document)
            if isinstance(turn, str):
                undecided[document] = turn
            elif turn is not None:
                turns.append(turn)
        return _turns(turns), undecided

    def expect(self, lengths: Ints) -> None:
        """Tells how long documents are that have come or are going to: where none is full, nothing was cut.

        Packing puts the rest of a document behind its beginning, perhaps in another batch.
        """
        self._any_cut |= bool((lengths == self._pieces.length).any())

    def _is_preamble(self, patterns: Ids) -> bool:
        """Whether the markers of a full document are those of the beginning of a long system prompt and of no more."""
        return bool(len(patterns) and self._opens_preamble[patterns].any() and self._is_other[patterns].all())

    def _begins(self, token: int) -> bool:
        """Whether a document whose first token this is begins where a conversation or a turn does."""
        return token == self._bos or (self._finder.vocabulary.is_special(token) and token not in self._stops)

    def _first_words(
        self, ids: Ids, bounds: tuple[int, int], inside: slice, found: Found, document: int
    ) -> tuple[int, int, int, int] | str | None:
        """The turn of the model that ends first, as ``(document, start, stop, eot_start)``; why not; or none."""
        low, high = bounds
        numbers = np.arange(inside.start, inside.stop)
        headers = numbers[~self._is_stop[found.pattern[numbers]]]
        first = int(headers[0]) if len(headers) else -1
        at = int(token_holding(found.start[first])) if first >= 0 else high
        # Before the model's own header somebody else spoke.
        if first >= 0 and (at == low or self._opens_model[found.pattern[first]]):
            return None
        if self._may_be_header_rest(ids, low):
            return "It begins in the middle of a conversation, perhaps with the rest of a header."
        if first < 0:
            return "It is a piece of one message that shows neither its beginning nor its end."
        stop = self._stop_before(ids, found, numbers[numbers < first], first, at)
        if stop is None:
            return None  # the model would have stopped: a preamble, or words of somebody who does not
        doubtful = self._preamble_cut if self._pieces.cutting == "split" else not self._only_two_speak
        if self._opens_user[found.pattern[first]] and not doubtful:
            return (document, low, stop[0], stop[1])
        return "It begins in a message that could be the model's, a system prompt or a tool's result."

    def _stop_before(self, ids: Ids, found: Found, before: Ints, header: int, at: int) -> tuple[int, int] | None:
        """The end and the beginning of the stop that stands before a header, or is its first token."""
        if self._first_token_ends_turn[found.pattern[header]]:
            return at + 1, at
        for number in before[::-1].tolist():
            stop = int(tokens_before(found.end[number : number + 1])[0])
            if self._finder.is_filler(ids, stop, at):
                return stop, int(tokens_before(found.start[number : number + 1])[0])
        return None

    def _may_be_header_rest(self, ids: Ids, low: int) -> bool:
        """Whether the first tokens could be the end of a header that the piece before began."""
        text = b"".join(self._finder.vocabulary.piece(token) for token in ids[low : low + 16].tolist())
        return any(text.startswith(header[cut:]) for header in self._headers for cut in range(1, len(header)))


def _turns(rows: list[tuple[int, int, int, int]]) -> Turns:
    if not rows:
        return Turns.empty()
    document, start, stop, eot_start = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    yes, no = np.ones(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
    return Turns.of_model(start, stop, yes, no, document, start, eot_start)
