"""Token ids to the turns of the model, as half-open spans; the heart of the library.

Everything works on one flat array of ids and the offsets of its documents (a row, or a document of a packed row), never
on a Python list of tokens. Three steps:

1. candidates: positions whose token can begin a marker (a handful a row);
2. verification: the candidates are read on through a :class:`~sft_mask.markers.MarkerTrie`, all at once;
3. turns: each response header opens a turn; the stop, the next header or the end of the document closes it.

Positions are tokens of the unshifted sequence; ``start`` is the first token the model has to sample (it holds at least
one byte of the answer), ``stop`` is one past the last, the stop token included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.markers import Kind, MarkerTrie

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from sft_mask.tokens import Vocabulary

    Ints = NDArray[np.int64]
    Bools = NDArray[np.bool_]

_UNREAD = -2
_LONGEST_FILLER = 8
"""Tokens between a stop and the next header; templates write one newline, rarely two tokens."""


@dataclass(frozen=True, slots=True)
class Turns:
    """Turns of the model in one flat array, in order.

    Attributes:
        start: ``(n,)`` first token of the answer.
        stop: ``(n,)`` one past the last token, the stop token included.
        has_stop: ``(n,)`` whether the turn ends with a stop that the model must sample.
        cut: ``(n,)`` whether the document ends before the turn does.
        document: ``(n,)`` index of the document the turn lies in.
        header: ``(n,)`` first token of the turn's header, ``start`` where the turn has none.
        stop_at: ``(n,)`` first token of the stop, ``stop`` where the turn has none.
        message: ``(n,)`` index of the message in its conversation, ``-1`` where only markers were at hand.
    """

    start: Ints
    stop: Ints
    has_stop: Bools
    cut: Bools
    document: Ints
    header: Ints
    stop_at: Ints
    message: Ints

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def empty(cls) -> Turns:
        """No turns."""
        none, no = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        return cls(none, none, no, no, none, none, none, none)

    def select(self, keep: Bools | Ints) -> Turns:
        """The turns that ``keep`` points at."""
        return Turns(*(getattr(self, name)[keep] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class _Events:
    """Markers found, in order.

    ``start`` is the token that holds the marker's first byte and ``inside`` says that other text comes before it in that
    token; ``stop`` is the token that holds the first byte after the marker, and ``leftover`` says that this token also
    holds the marker's last byte.
    """

    start: Ints
    inside: Bools
    stop: Ints
    leftover: Bools
    pattern: Ints

    def select(self, keep: Bools | Ints) -> _Events:
        return _Events(*(getattr(self, name)[keep] for name in self.__slots__))


class _Table:
    """Transitions from one node of the trie for every token id, filled in as ids are met."""

    def __init__(self, trie: MarkerTrie, node: int) -> None:
        size = trie.vocabulary.size + 1
        self._trie, self._node = trie, node
        self.node = np.full(size, _UNREAD, np.int32)
        self.pattern = np.full(size, -1, np.int16)
        self.leftover = np.zeros(size, np.bool_)

    def read(self, ids: Ints) -> None:
        """Makes sure that the transitions of ``ids`` are there."""
        unread = ids[self.node[ids] == _UNREAD]
        for token_id in np.unique(unread).tolist():
            step = self._trie.step(self._node, token_id)
            self.node[token_id], self.pattern[token_id], self.leftover[token_id] = (
                step.node,
                step.pattern,
                step.leftover,
            )


@dataclass(frozen=True, slots=True)
class _Beginnings:
    """How a marker can begin inside each token: the ``k``-th way of each id, earliest byte first."""

    can: Bools
    node: list[NDArray[np.int32]]
    pattern: list[NDArray[np.int16]]
    leftover: list[Bools]
    inside: list[Bools]


def _beginnings_of(trie: MarkerTrie, token_id: int) -> list[tuple[int, int, bool, bool]]:
    """Ways in which a marker can begin inside one token: (node after it, pattern, leftover, inside)."""
    ways = []
    if token_id in trie.first_ids:
        step = trie.step(0, token_id)
        ways.append((step.node, step.pattern, step.leftover, False))
    elif not trie.vocabulary.is_special(token_id) and trie.vocabulary.kind != "opaque":
        piece = trie.vocabulary.piece(token_id)
        for skip in (index for index, byte in enumerate(piece) if byte in trie.first_bytes):
            step = trie.step(0, token_id, skip)
            if step.node >= 0 or step.pattern >= 0:
                ways.append((step.node, step.pattern, step.leftover, skip > 0))
    return ways


def _candidate_ids(trie: MarkerTrie) -> list[int]:
    """Token ids that can hold the beginning of a marker."""
    ids = set(trie.first_ids)
    first = trie.first_bytes
    if first and trie.vocabulary.kind != "opaque":
        anywhere = tuple(bytes([byte]) for byte in first)
        piece = trie.vocabulary.piece
        ids.update(
            token_id
            for token_id in range(trie.vocabulary.size)
            if not trie.vocabulary.is_special(token_id) and any(byte in piece(token_id) for byte in anywhere)
        )
    return sorted(token_id for token_id in ids if token_id < trie.vocabulary.size)


def _read_beginnings(trie: MarkerTrie) -> _Beginnings:
    size = trie.vocabulary.size + 1
    table = _Beginnings(np.zeros(size, np.bool_), [], [], [], [])
    for token_id in _candidate_ids(trie):
        for way, (node, pattern, leftover, inside) in enumerate(_beginnings_of(trie, token_id)):
            if way == len(table.node):
                table.node.append(np.full(size, -1, np.int32))
                table.pattern.append(np.full(size, -1, np.int16))
                table.leftover.append(np.zeros(size, np.bool_))
                table.inside.append(np.zeros(size, np.bool_))
            table.can[token_id] = True
            table.node[way][token_id], table.pattern[way][token_id] = node, pattern
            table.leftover[way][token_id], table.inside[way][token_id] = leftover, inside
    return table


class SpanFinder:
    """Finds the turns of the model in flat arrays of ids; reusable, and cheap to call again.

    Args:
        trie: the compiled markers.
        complete: see :class:`~sft_mask.markers.Markers`.
        open_end: see :class:`~sft_mask.markers.Markers`; such an answer at the end of a document is not a cut one.
        pad_token_id: a trailing run of this id in a document is padding.
    """

    def __init__(
        self, trie: MarkerTrie, *, complete: bool = False, open_end: bool = False, pad_token_id: int | None = None
    ) -> None:
        self.trie = trie
        self.complete = complete
        self.open_end = open_end
        self.pad_token_id = pad_token_id
        self._beginnings = _read_beginnings(trie)
        self._tables: dict[int, _Table] = {}
        kinds = np.array([pattern.kind for pattern in trie.patterns], np.int8)
        self._is_stop = kinds == Kind.STOP
        self._is_response = kinds == Kind.RESPONSE
        self._first_token_stops = np.array([pattern.first_token_stops for pattern in trie.patterns], np.bool_)
        self._filler = np.full(trie.vocabulary.size + 1, -1, np.int8)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the markers."""
        return self.trie.vocabulary

    def find(self, ids: NDArray[np.integer], offsets: Ints) -> Turns:
        """The turns of the model.

        Args:
            ids: ``(tokens,)`` flat token ids.
            offsets: ``(documents + 1,)`` where each document begins and ends in ``ids``, ascending.
        """
        safe = self._in_vocabulary(ids)
        events = self._events(safe, offsets)
        return self._turns(safe, offsets, events)

    def _in_vocabulary(self, ids: NDArray[np.integer]) -> NDArray[np.integer]:
        size = self.vocabulary.size
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= size):
            return np.where((ids < 0) | (ids >= size), size, ids)
        return ids

    # 1 and 2: markers

    def _candidates(self, ids: NDArray[np.integer]) -> Ints:
        first = sorted(self.trie.first_ids)
        if not self.trie.first_bytes and 0 < len(first) <= 4:
            hit = ids == first[0]
            for token_id in first[1:]:
                hit |= ids == token_id
            return np.flatnonzero(hit)
        return np.flatnonzero(self._beginnings.can[ids])

    def _events(self, ids: NDArray[np.integer], offsets: Ints) -> _Events:
        at = self._candidates(ids)
        inside_rows = (at >= offsets[0]) & (at < offsets[-1])
        at = at[inside_rows]
        end = offsets[np.searchsorted(offsets, at, side="right")]
        found = [self._follow(ids, at, end, way) for way in range(len(self._beginnings.node))]
        if not found:
            return _Events(*(np.zeros(0, kind) for kind in (np.int64, np.bool_, np.int64, np.bool_, np.int64)))
        parts = [np.concatenate(column) for column in zip(*found, strict=True)]
        events = _Events(*parts)
        order = np.lexsort((-events.stop, events.inside, events.start)) if len(found) > 1 else np.argsort(events.start)
        return self._without_overlaps(events.select(order))

    def _follow(self, ids: NDArray[np.integer], at: Ints, end: Ints, way: int) -> tuple[Ints, ...]:
        """Reads every candidate on until no marker goes on; keeps the longest marker completed."""
        table, first = self._beginnings, ids[at]
        can = (table.node[way][first] >= 0) | (table.pattern[way][first] >= 0)
        at, end, first = at[can], end[can], first[can]
        node = table.node[way][first].astype(np.int64)
        pattern = table.pattern[way][first].astype(np.int64)
        leftover = table.leftover[way][first].copy()
        last = at.copy()  # token that holds the marker's last byte
        live = np.flatnonzero(node >= 0)
        position = at.copy()
        while len(live):
            position[live] += 1
            live = live[position[live] < end[live]]
            for start_node in np.unique(node[live]).tolist():
                here = live[node[live] == start_node]
                self._advance(ids, here, position, node, (pattern, leftover, last))
            live = live[node[live] >= 0]
        done = pattern >= 0
        at, last, leftover = at[done], last[done], leftover[done]
        inside = table.inside[way][ids[at]]
        return at, inside, np.where(leftover, last, last + 1), leftover, pattern[done]

    def _advance(
        self, ids: NDArray[np.integer], here: Ints, position: Ints, node: Ints, best: tuple[Ints, Bools, Ints]
    ) -> None:
        start_node = int(node[here[0]])
        table = self._tables.get(start_node)
        if table is None:
            table = self._tables[start_node] = _Table(self.trie, start_node)
        tokens = ids[position[here]].astype(np.int64)
        table.read(tokens)
        pattern, leftover, last = best
        completed = table.pattern[tokens] >= 0
        hit = here[completed]
        pattern[hit] = table.pattern[tokens[completed]]
        leftover[hit] = table.leftover[tokens[completed]]
        last[hit] = position[hit]
        node[here] = table.node[tokens]

    @staticmethod
    def _without_overlaps(events: _Events) -> _Events:
        """Drops markers that begin inside an earlier one (`` USER:`` inside ``\\n USER:``)."""
        begin = events.start * 2 + events.inside  # two half-tokens a token: a marker can end and begin inside one token
        finish = events.stop * 2 + events.leftover
        if not np.any(begin[1:] < finish[:-1]):
            return events
        keep, reached = np.ones(len(begin), np.bool_), -1
        for index in range(len(begin)):
            keep[index] = begin[index] >= reached
            reached = finish[index] if keep[index] else reached
        return events.select(keep)

    # 3: turns

    def _turns(self, ids: NDArray[np.integer], offsets: Ints, events: _Events) -> Turns:
        is_stop = self._is_stop[events.pattern]
        stops, headers = events.select(is_stop), events.select(~is_stop)
        opens = np.flatnonzero(self._is_response[headers.pattern])
        if not len(opens):
            return Turns.empty()
        start = headers.stop[opens]
        document = np.searchsorted(offsets, headers.start[opens], side="right") - 1
        end = self._content_end(ids, offsets, document)
        bound, closer = self._bounds(headers, opens, end)
        stop, stop_at, has_stop, cut = self._closings(ids, start, bound, closer, (headers, stops))
        unknown = np.full(len(start), -1, np.int64)
        turns = Turns(start, stop, has_stop, cut, document, headers.start[opens], stop_at, unknown)
        return turns.select(turns.stop > turns.start)

    def _bounds(self, headers: _Events, opens: Ints, end: Ints) -> tuple[Ints, Ints]:
        """One past the last token a turn can hold, and the header that closes it (``-1`` for the document's end)."""
        following = opens + 1
        exists = following < len(headers.start)
        following = np.where(exists, following, 0)
        begins = headers.start[following]
        closed = exists & (begins < end)
        bound = np.where(closed, begins + headers.inside[following], end)
        return bound, np.where(closed, following, -1)

    def _content_end(self, ids: NDArray[np.integer], offsets: Ints, document: Ints) -> Ints:
        """Where a document ends, its trailing padding left out (a run of two or more where padding is also a stop)."""
        end = offsets[document + 1].copy()
        pad = self.pad_token_id
        if pad is None:
            return end
        first = offsets[document]
        padded = np.flatnonzero((end - first >= 2) & (ids[np.maximum(end - 1, 0)] == pad))
        for index in padded.tolist():
            row = ids[first[index] : end[index]]
            others = np.flatnonzero(row != pad)
            content = int(others[-1]) + 1 if len(others) else 0
            end[index] = first[index] + content + (1 if content < len(row) else 0) * self._pad_can_stop
        return end

    @property
    def _pad_can_stop(self) -> bool:
        """Whether the padding token is also a stop: then the first of the trailing run is kept as the stop."""
        stops = (pattern.atoms for pattern in self.trie.patterns if pattern.kind is Kind.STOP)
        return any(atoms[:1] == (256 + (self.pad_token_id or 0),) for atoms in stops)

    def _closings(
        self, ids: NDArray[np.integer], start: Ints, bound: Ints, closer: Ints, found: tuple[_Events, _Events]
    ) -> tuple[Ints, Ints, Bools, Bools]:
        headers, stops = found
        closed = closer >= 0
        stop, stop_at, has_stop = bound.copy(), bound.copy(), np.zeros(len(bound), np.bool_)
        last = self._last_stop(ids, start, bound, stops)
        with_stop = np.flatnonzero(last >= 0)
        chosen = last[with_stop]
        stop_end = stops.stop[chosen] + stops.leftover[chosen]
        ends_turn = self._only_filler(ids, stop_end, bound[with_stop]) | closed[with_stop] | (not self.complete)
        with_stop, chosen, stop_end = with_stop[ends_turn], chosen[ends_turn], stop_end[ends_turn]
        stop[with_stop], stop_at[with_stop], has_stop[with_stop] = stop_end, stops.start[chosen], True
        answered = headers.start[closer] > start
        header_stops = closed & ~has_stop & answered & self._first_token_stops[headers.pattern[closer]]
        stop_at[header_stops] = headers.start[closer[header_stops]]
        stop[header_stops], has_stop[header_stops] = stop_at[header_stops] + 1, True
        return stop, stop_at, has_stop, ~has_stop & ~closed & (not self.open_end)

    def _last_stop(self, ids: NDArray[np.integer], start: Ints, bound: Ints, stops: _Events) -> Ints:
        """For each turn the stop that ends it, ``-1`` for none.

        That is the last stop before the bound, or the first of the stops that stand there with nothing but blanks and
        control tokens between them (padding with the stop token). A stop quoted inside the answer has text after it.
        """
        if not len(stops.start):
            return np.full(len(start), -1, np.int64)
        finish = stops.stop + stops.leftover
        linked = np.zeros(len(stops.start), np.bool_)
        linked[1:] = self._only_filler(ids, finish[:-1], stops.start[1:])
        first_of_run = np.maximum.accumulate(np.where(linked, 0, np.arange(len(linked))))
        first_inside = np.searchsorted(stops.start, start)
        last = np.searchsorted(stops.start, bound) - 1
        chosen = np.maximum(first_of_run[np.maximum(last, 0)], first_inside)
        return np.where(last >= first_inside, chosen, -1)

    def _only_filler(self, ids: NDArray[np.integer], start: Ints, stop: Ints) -> Bools:
        """Whether only blanks and control tokens stand between two positions."""
        near = stop - start <= _LONGEST_FILLER
        answer = near.copy()
        for ahead in range(_LONGEST_FILLER):
            position = start + ahead
            inside = np.flatnonzero(answer & (position < stop))
            if not len(inside):
                break
            answer[inside] = self._is_filler(ids[position[inside]])
        return answer

    def _is_filler(self, tokens: NDArray[np.integer]) -> Bools:
        for token_id in np.unique(tokens[self._filler[tokens] < 0]).tolist():
            blank = not self.vocabulary.piece(token_id).strip()
            self._filler[token_id] = blank or self.vocabulary.is_special(token_id)
        return self._filler[tokens] == 1


def document_offsets(row_offsets: Ints, lengths: Sequence[NDArray[np.integer]] | None) -> Ints:
    """Offsets of documents from offsets of rows and, for packed rows, the ``seq_lengths`` of each row.

    >>> document_offsets(np.array([0, 5, 9]), [np.array([2, 3]), np.array([4])]).tolist()
    [0, 2, 5, 9]
    """
    if lengths is None:
        return row_offsets
    flat = np.concatenate([np.asarray(row, np.int64) for row in lengths]) if len(lengths) else np.zeros(0, np.int64)
    return np.concatenate([[row_offsets[0]], row_offsets[0] + np.cumsum(flat)]).astype(np.int64)
