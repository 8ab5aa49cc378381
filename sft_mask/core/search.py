"""Finds all markers in a flat array of token ids: exact to the byte, vectorised over all documents at once.

Two steps: first the tokens that can hold the beginning of a marker (a handful a row), then all of these are read on
through a :class:`~sft_mask.core.patterns.MarkerTrie` at the same time. At each place the longest marker counts, and of
markers that overlap the one that begins first.

A position is a byte of a token: byte ``b`` of token ``t`` is ``t * 2**20 + b``. The end of a token is the beginning of
the next, so positions compare as places in the text do. With the marker ``"\\nUSER:"``::

    token       0        1        2      3       4
    bytes     "Hi"    "!\\n"    "US"   "ER"   ": no"
    marker               \\n      US     ER     :
    start     1 * 2**20 + 1              (token 1 holds its first byte, at offset 1)
    end       4 * 2**20 + 1              (its last byte is the first of token 4)

so the answer before it ends with token 1, which also holds a byte of the answer, and the user's words begin in token 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.arrays import cache_slices
from sft_mask.core.patterns import Kind
from sft_mask.core.vocabulary import NO_BYTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.core.patterns import MarkerTrie

_BITS = 20
_UNREAD = -2
_WHOLE = np.uint64(1 << 63)
_FEW_IDS = 4
"""Up to this many ids, comparing with each is faster than looking all tokens up in a table."""


def position_of(token: Ints) -> Ints:
    """The position of a token's first byte."""
    return token << _BITS


def token_holding(position: Ints) -> Ints:
    """The token that holds the byte at a position."""
    return position >> _BITS


def offset_in_token(position: Ints) -> Ints:
    """Bytes from the beginning of its token to a position."""
    return position & ((1 << _BITS) - 1)


def tokens_before(position: Ints) -> Ints:
    """One past the last token that holds a byte before a position."""
    return (position + ((1 << _BITS) - 1)) >> _BITS


@dataclass(frozen=True, slots=True)
class Found:
    """Markers that were found, by where they begin.

    Attributes:
        start: ``(n,)`` position of the first byte.
        end: ``(n,)`` position one past the last byte.
        pattern: ``(n,)`` index of the pattern in the trie.
    """

    start: Ints
    end: Ints
    pattern: Ints

    def __len__(self) -> int:
        return len(self.start)

    def select(self, keep: Bools | Ints) -> Found:
        """The markers that ``keep`` points at."""
        keep = np.flatnonzero(keep) if keep.dtype == np.bool_ else keep
        return Found(self.start[keep], self.end[keep], self.pattern[keep])

    def in_order(self) -> Found:
        """The same markers, by where they begin."""
        return self.select(np.argsort(self.start, kind="stable"))

    @classmethod
    def joined(cls, *parts: Found) -> Found:
        """All markers of several searches, in order."""
        start, end, pattern = (
            np.concatenate([np.zeros(0, np.int64), *(getattr(part, name) for part in parts)]) for name in cls.__slots__
        )
        return cls(start, end, pattern).in_order()


class _Table:
    """The steps from one node of the trie by each token id, filled in as ids are met."""

    def __init__(self, trie: MarkerTrie, node: int) -> None:
        size = trie.vocabulary.size + 1
        self._trie, self._node = trie, node
        self.node, self.pattern, self.used = np.full((3, size), _UNREAD, np.int32)

    def nodes(self, ids: Ids) -> NDArray[np.int32]:
        """The nodes that ``ids`` lead to; their entries are complete afterwards."""
        nodes = self.node.take(ids)
        unread = ids[nodes == _UNREAD]
        if not len(unread):
            return nodes
        for token_id in np.unique(unread).tolist():
            step = self._trie.step(self._node, token_id)
            self.node[token_id], self.pattern[token_id], self.used[token_id] = step.node, step.pattern, step.used
        return self.node.take(ids)


def _read_starts(trie: MarkerTrie) -> NDArray[np.int32]:
    """Where in each token a marker can begin, and the step from there.

    Returns:
        ``(k, size + 1, 4)``: the first, second, ... offset in each token, and ``node``, ``pattern`` and ``used`` of the
        step from there; ``-1`` for none.
    """
    vocabulary, first_bytes = trie.vocabulary, trie.first_bytes
    places = [(token_id, 0) for token_id in trie.first_ids]
    if first_bytes:  # else the vocabulary need not be read
        for token_id in {*vocabulary.ids_holding(first_bytes)} - trie.first_ids:
            text = vocabulary.token_bytes(token_id)
            places += [(token_id, skip) for skip, byte in enumerate(text) if byte in first_bytes]
    starts: dict[int, list[tuple[int, int, int, int]]] = {}
    for token_id, skip in places:
        step = trie.step(0, token_id, skip)
        if max(step.node, step.pattern) >= 0:
            starts.setdefault(token_id, []).append((skip, step.node, step.pattern, step.used))
    table = np.full((max(map(len, starts.values()), default=1), vocabulary.size + 1, 4), -1, np.int32)
    for token_id, each in starts.items():
        table[: len(each), token_id] = each
    return table


class _Pairs:
    """Which two tokens can be the beginning of a marker; this rules out most candidates, such as line breaks.

    Each bit is a node of the trie: ``first`` has the nodes at which a token leaves the search, ``second`` those from
    which a token's first byte, or its id, continues. The last bit is for tokens that hold a whole marker.
    """

    def __init__(self, trie: MarkerTrie, starts: NDArray[np.int32]) -> None:
        size = trie.vocabulary.size + 1
        self.first, self.second = np.zeros(size, np.uint64), np.full(size, _WHOLE)
        number, token = np.nonzero(starts[:, :, 0] >= 0)
        _, nodes, patterns, _ = starts[number, token].T
        left_at = np.unique(nodes[nodes >= 0]).tolist()
        bits = {node: np.uint64(1 << min(bit, 62)) for bit, node in enumerate(left_at)}
        self.first[token[patterns >= 0]] = _WHOLE
        for node, bit in bits.items():
            self.first[token[nodes == node]] |= bit
        self._read_second(trie, bits)

    def _read_second(self, trie: MarkerTrie, bits: Mapping[int, np.uint64]) -> None:
        vocabulary = trie.vocabulary
        of_byte = np.zeros(NO_BYTE + 1, np.uint64)
        for node, bit in bits.items():
            for atom in trie.nodes[node].edges:
                if atom < NO_BYTE:
                    of_byte[atom] |= bit
                else:
                    self.second[atom - NO_BYTE] |= bit
        self.second |= of_byte[vocabulary.first_bytes]

    def can_begin(self, first: Ids, second: Ids) -> Bools:
        """Whether a marker may begin in ``first`` if ``second`` follows."""
        may: Bools = (self.first.take(first) & self.second.take(second)) != 0
        return may


class MarkerSearch:
    """Finds the markers of one trie; reusable, and cheap to call again."""

    def __init__(self, trie: MarkerTrie) -> None:
        self.trie = trie
        self._starts = _read_starts(trie)
        self._possible = self._starts[0, :, 0] >= 0
        self._pairs = _Pairs(trie, self._starts) if trie.first_bytes else None
        only_ids = not trie.first_bytes and len(trie.first_ids) <= _FEW_IDS
        self._few_ids = [*trie.first_ids] if only_ids else []
        self._tables: dict[int, _Table] = {}
        kinds = np.array([pattern.kind for pattern in trie.patterns])
        self._is_eot = kinds == Kind.EOT
        self._is_response = kinds == Kind.RESPONSE

    def find(self, ids: Ids, offsets: Ints, ends: Ints) -> tuple[Found, Found]:
        """Markers that are complete, and headers that the end of a document cut off.

        Args:
            ids: ``(tokens,)`` ids in ``[0, size]``, where ``size`` is everything outside the vocabulary.
            offsets: ``(documents + 1,)`` ascending.
            ends: ``(documents,)`` where the content of each document ends.

        Returns:
            The markers, without overlaps; and for each document at most one cut header after them, which ends with the
            document's content.
        """
        parts = [self._candidates(ids[part]) + part.start for part in cache_slices(len(ids))]
        at = self._promising(ids, np.concatenate([np.zeros(0, np.int64), *parts]), ends)
        bounds = np.searchsorted(at, offsets)
        at, content_end = at[bounds[0] : bounds[-1]], np.repeat(ends, np.diff(bounds))
        inside = np.flatnonzero(at < content_end)
        found, cut = self._follow(ids, at[inside], content_end[inside])
        whole, cut = _without_overlaps(self._last_of_overlapping(found.in_order())), cut.in_order()
        return whole, _after(cut.select(self._are_sure(cut, whole, ids, offsets)), whole)

    # where a marker may begin

    def _candidates(self, ids: Ids) -> Ints:
        if not self._few_ids:
            return np.flatnonzero(self._possible.take(ids))
        hit = ids == self._few_ids[0]
        for token_id in self._few_ids[1:]:
            hit |= ids == token_id
        return np.flatnonzero(hit)

    def _promising(self, ids: Ids, at: Ints, ends: Ints) -> Ints:
        """Candidates that the token after them does not rule out."""
        if self._pairs is None:
            return at
        keep = self._pairs.can_begin(ids[at], ids[np.minimum(at + 1, len(ids) - 1)])
        last = np.searchsorted(at, ends - 1)  # nothing follows the last token of a document
        keep[last[last < len(at)]] = True
        return at[keep]

    # reading on

    def _follow(self, ids: Ids, at: Ints, content_end: Ints) -> tuple[Found, Found]:
        """Reads all candidates on until no marker continues or the document ends; the longest marker counts.

        Of cut headers the pattern is ``-1 - pattern`` where the beginning alone is too short to be sure.
        """
        which, skip, node, pattern, used = self._begun(ids[at])
        at, content_end = at[which], content_end[which]
        last, position = at.copy(), at.copy()
        live = np.flatnonzero(node >= 0)
        ran_out = [live[:0]]
        while len(live):
            position[live] += 1
            has_more = position[live] < content_end[live]
            ran_out.append(live[~has_more])
            live = live[has_more]
            before = node[live]
            for start_node in np.flatnonzero(np.bincount(before)).tolist():
                here = live[before == start_node]
                table, tokens = self._table(start_node), ids.take(position[here])
                node[here] = table.nodes(tokens)
                completed = np.flatnonzero(table.pattern.take(tokens) >= 0)
                hit, hit_tokens = here[completed], tokens[completed]
                pattern[hit], used[hit], last[hit] = table.pattern[hit_tokens], table.used[hit_tokens], position[hit]
            live = live[node[live] >= 0]
        start = position_of(at) + skip
        end = np.where(used > 0, position_of(last) + used, position_of(last + 1))
        done, left = pattern >= 0, np.concatenate(ran_out)
        longer = left[done[left]]
        longer = longer[self._is_response[pattern[longer]]]  # cut off inside what a generation prompt prefills
        end[longer] = position_of(content_end[longer])
        left = left[~done[left]]
        sure, begun = self.trie.cut_headers[node[left]], self.trie.begun_headers[node[left]]
        header = np.where(sure >= 0, sure, -1 - begun)[begun >= 0]
        left = left[begun >= 0]
        return Found(start[done], end[done], pattern[done]), Found(start[left], position_of(content_end[left]), header)

    def _begun(self, first: Ids) -> tuple[Ints, ...]:
        """Which of the tokens can begin a marker, at which offset, and the step from there: one entry per offset."""
        begins, steps = [], []
        for starts in self._starts:
            read = starts.take(first, axis=0)
            begins.append(np.flatnonzero(read[:, 0] >= 0))
            steps.append(read.take(begins[-1], axis=0))
        return np.concatenate(begins), *np.concatenate(steps).T.astype(np.int64)

    def _table(self, node: int) -> _Table:
        table = self._tables.get(node)
        if table is None:
            table = self._tables[node] = _Table(self.trie, node)
        return table

    # what counts

    def _last_of_overlapping(self, found: Found) -> Found:
        """Of end-of-turn texts that overlap (``###`` in ``####``) the last: what is before it belongs to the answer."""
        same = (found.pattern[1:] == found.pattern[:-1]) & (found.start[1:] < found.end[:-1])
        earlier = np.append(same & self._is_eot[found.pattern[:-1]], False)[: len(found)]
        return found.select(~earlier) if earlier.any() else found

    def _are_sure(self, cut: Found, whole: Found, ids: Ids, offsets: Ints) -> Bools:
        """Which cut headers are long enough to be no words of the answer, or directly follow an end-of-turn token."""
        sure = cut.pattern >= 0
        for index in np.flatnonzero(~sure).tolist():
            start = int(cut.start[index])
            last = int(np.searchsorted(whole.start, start)) - 1
            first = int(offsets[np.searchsorted(offsets, start >> _BITS, side="right") - 1]) << _BITS
            if last >= 0 and whole.start[last] >= first and self._is_eot[whole.pattern[last]]:
                sure[index] = self._is_whitespace(ids, int(whole.end[last]), start)
        cut.pattern[cut.pattern < 0] = -1 - cut.pattern[cut.pattern < 0]
        return sure

    def _is_whitespace(self, ids: Ids, start: int, end: int) -> bool:
        """Whether nothing but whitespace is between two positions, no control token either."""
        before, last = ids[start >> _BITS : end >> _BITS].tolist(), int(ids[end >> _BITS])
        vocabulary, offset = self.trie.vocabulary, (1 << _BITS) - 1
        if any(map(vocabulary.is_special, before)):
            return False
        text = vocabulary.bytes_of(before) + vocabulary.token_bytes(last)[: end & offset]
        return not text[start & offset :].strip()


def _without_overlaps(found: Found) -> Found:
    """The markers without those that begin inside an earlier one (`` USER:`` inside ``\\n USER:``)."""
    reach = np.maximum.accumulate(found.end)
    inside = np.append(False, found.start[1:] < reach[:-1])[: len(found)]
    if not inside.any():
        return found
    first = np.maximum.accumulate(np.where(inside, 0, np.arange(len(found))))  # the last that nothing earlier overlaps
    found = found.select(~inside | (found.start >= found.end[first]))
    if not np.any(found.start[1:] < found.end[:-1]):
        return found
    kept, reached = [], 0
    for index, start in enumerate(found.start.tolist()):
        if start >= reached:
            kept.append(index)
            reached = int(found.end[index])
    return found.select(np.array(kept))


def _after(cut: Found, whole: Found) -> Found:
    """The earliest cut header of each document that begins after its last complete marker."""
    if not len(cut):
        return cut
    reached = np.append(whole.end, 0)[np.searchsorted(whole.start, cut.end) - 1]
    cut = cut.select(cut.start >= reached)
    return cut.select(np.unique(cut.end, return_index=True)[1])
