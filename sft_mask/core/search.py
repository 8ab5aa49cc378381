"""Where markers stand in a flat array of token ids; exact to the byte, vectorised over all documents at once.

Two steps: positions whose token can hold the beginning of a marker (a handful a row), then all of them are read on
through a :class:`~sft_mask.core.patterns.MarkerTrie` at the same time. At each place the longest marker counts, and of
markers that overlap the one that begins first.

Positions are bytes of tokens: byte ``b`` of token ``t`` is ``t * 2**20 + b``, and the end of a token is the beginning
of the next, so that two positions compare as the text does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.patterns import Kind
from sft_mask.core.vocabulary import NO_BYTE, cache_slices

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Ids, Ints
    from sft_mask.core.patterns import MarkerTrie


_BITS = 20
_UNREAD = -2
_WHOLE = np.uint64(1 << 63)
_FEW_IDS = 4
"""Up to so many ids it is faster to compare with each than to look all tokens up in a table."""


def position_of(token: Ints) -> Ints:
    """The position of a token's first byte."""
    return token << _BITS


def token_holding(position: Ints) -> Ints:
    """The token that holds the byte at a position."""
    return position >> _BITS


def offset_in_token(position: Ints) -> Ints:
    """Bytes between the beginning of the token at a position and the position."""
    return position & ((1 << _BITS) - 1)


def tokens_before(position: Ints) -> Ints:
    """One past the last token that holds a byte before a position."""
    return (position + ((1 << _BITS) - 1)) >> _BITS


@dataclass(frozen=True, slots=True)
class Found:
    """Markers in order.

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
    def joined(cls, parts: Sequence[Found]) -> Found:
        """All markers of several searches, in order."""
        none = np.zeros(0, np.int64)
        start = np.concatenate([none, *(part.start for part in parts)])
        end = np.concatenate([none, *(part.end for part in parts)])
        pattern = np.concatenate([none, *(part.pattern for part in parts)])
        return cls(start, end, pattern).in_order()


class _Table:
    """What reading each token id from one node of the trie gives, filled in as ids are met."""

    def __init__(self, trie: MarkerTrie, node: int) -> None:
        size = trie.vocabulary.size + 1
        self._trie, self._node = trie, node
        self.node = np.full(size, _UNREAD, np.int32)
        self.pattern = np.full(size, -1, np.int32)
        self.used = np.zeros(size, np.int32)

    def nodes(self, ids: Ids) -> NDArray[np.int32]:
        """The nodes that ``ids`` lead to; makes sure that all their entries are there."""
        nodes = self.node.take(ids)
        unread = ids[nodes == _UNREAD]
        if not len(unread):
            return nodes
        for token_id in np.unique(unread).tolist():
            step = self._trie.step(self._node, token_id)
            self.node[token_id], self.pattern[token_id], self.used[token_id] = step.node, step.pattern, step.used
        return self.node.take(ids)


class _Way:
    """The ``k``-th place in each token where a marker can begin, earliest first; ``-1`` for tokens that have none."""

    def __init__(self, size: int) -> None:
        self.read = np.tile(np.array([-1, -1, -1, 0], np.int32), (size, 1))
        self.skip, self.node, self.pattern, self.used = self.read.T


def _places(trie: MarkerTrie, token_id: int) -> list[int]:
    """Bytes of a token at which a marker may begin."""
    if token_id in trie.first_ids:
        return [0]
    if trie.vocabulary.is_special(token_id):
        return []
    return [index for index, byte in enumerate(trie.vocabulary.token_bytes(token_id)) if byte in trie.first_bytes]


def _possible_ids(trie: MarkerTrie) -> list[int]:
    """Token ids that may hold the beginning of a marker."""
    vocabulary = trie.vocabulary
    ids = set(trie.first_ids)
    if trie.first_bytes and vocabulary.kind != "opaque":
        first = trie.first_bytes
        ids.update(vocabulary.ids_holding(first))
    return sorted(token_id for token_id in ids if 0 <= token_id < vocabulary.size)


def _read_ways(trie: MarkerTrie) -> list[_Way]:
    size = trie.vocabulary.size + 1
    ways: list[_Way] = []
    for token_id in _possible_ids(trie):
        steps = ((skip, trie.step(0, token_id, skip)) for skip in _places(trie, token_id))
        alive = [(skip, step) for skip, step in steps if step.node >= 0 or step.pattern >= 0]
        ways.extend(_Way(size) for _ in range(len(ways), len(alive)))
        for way, (skip, step) in zip(ways, alive, strict=False):
            way.skip[token_id], way.node[token_id] = skip, step.node
            way.pattern[token_id], way.used[token_id] = step.pattern, step.used
    return ways


class _Pairs:
    """Which two tokens can stand at the beginning of a marker; that much ends most candidates, such as a line break.

    A bit stands for a node of the trie: ``first`` has those in which a token leaves the search, ``second`` those from
    which a token's first byte, or its id, goes on. The last bit stands for tokens that hold a whole marker.
    """

    def __init__(self, trie: MarkerTrie, ways: Sequence[_Way]) -> None:
        size = trie.vocabulary.size + 1
        self.first, self.second = np.zeros(size, np.uint64), np.full(size, _WHOLE, np.uint64)
        nodes = np.unique(np.concatenate([way.node for way in ways]))
        bits = {int(node): np.uint64(1 << min(number, 62)) for number, node in enumerate(nodes[nodes >= 0])}
        for way in ways:
            self.first[way.pattern >= 0] |= _WHOLE
            for node, bit in bits.items():
                self.first[way.node == node] |= bit
        self._read_second(trie, bits)

    def _read_second(self, trie: MarkerTrie, bits: Mapping[int, np.uint64]) -> None:
        vocabulary = trie.vocabulary
        of_byte = np.zeros(NO_BYTE + 1, np.uint64)
        for node, bit in bits.items():
            for atom in trie.nodes[node].edges:
                if atom < 256:
                    of_byte[atom] |= bit
                elif atom - 256 < vocabulary.size:
                    self.second[atom - 256] |= bit
        self.second |= of_byte[vocabulary.first_bytes]

    def can_begin(self, first: Ids, second: Ids) -> Bools:
        """Whether a marker may begin in ``first`` where ``second`` follows."""
        may: Bools = (self.first.take(first) & self.second.take(second)) != 0
        return may


class MarkerSearch:
    """Finds every marker of a trie; reusable, and cheap to call again."""

    def __init__(self, trie: MarkerTrie) -> None:
        self.trie = trie
        self._ways = _read_ways(trie)
        self._possible = self._ways[0].skip >= 0 if self._ways else np.zeros(trie.vocabulary.size + 1, np.bool_)
        self._pairs = _Pairs(trie, self._ways) if self._ways and trie.first_bytes else None
        only_ids = not trie.first_bytes and len(trie.first_ids) <= _FEW_IDS
        self._few_ids = sorted(trie.first_ids) if only_ids else []
        self._tables: dict[int, _Table] = {}
        kinds = np.array([pattern.kind for pattern in trie.patterns], np.int8)
        self._is_eot = kinds == Kind.EOT
        self._is_response = kinds == Kind.RESPONSE

    def find(self, ids: Ids, offsets: Ints, ends: Ints) -> tuple[Found, Found]:
        """Markers that stand whole in a document, and headers that the end of a document cut.

        Args:
            ids: ``(tokens,)`` ids in ``[0, size]``, where ``size`` stands for everything outside the vocabulary.
            offsets: ``(documents + 1,)`` ascending.
            ends: ``(documents,)`` where each document's content ends.

        Returns:
            The markers, without overlaps; and for each document at most one cut header behind them, which ``end``\\s
            where the content does.
        """
        parts = [self._candidates(ids[part]) + part.start for part in cache_slices(len(ids))]
        at = self._promising(ids, np.concatenate([np.zeros(0, np.int64), *parts]), ends)
        bounds = np.searchsorted(at, offsets)
        at, end = at[bounds[0] : bounds[-1]], np.repeat(ends, np.diff(bounds))
        inside = np.flatnonzero(at < end)
        at, end = at[inside], end[inside]
        found, cut = self._follow(ids, at, end)
        whole, cut = _without_overlaps(self._last_of_overlapping(found.in_order())), cut.in_order()
        return whole, _behind(cut.select(self._are_sure(cut, whole, ids, offsets)), whole)

    def _last_of_overlapping(self, found: Found) -> Found:
        """Of a stop that overlaps itself (``###`` in ``####``) the last: what is before it belongs to the answer."""
        same = (found.pattern[1:] == found.pattern[:-1]) & (found.start[1:] < found.end[:-1])
        earlier = np.append(same & self._is_eot[found.pattern[:-1]], False)[: len(found)]
        return found.select(~earlier) if earlier.any() else found

    def _are_sure(self, cut: Found, whole: Found, ids: Ids, offsets: Ints) -> Bools:
        """Which cut headers are long enough to be told from words, or stand right behind a stop."""
        sure = cut.pattern >= 0
        for index in np.flatnonzero(~sure).tolist():
            start = int(cut.start[index])
            last = int(np.searchsorted(whole.start, start)) - 1
            first = int(offsets[np.searchsorted(offsets, start >> _BITS, side="right") - 1]) << _BITS
            if last >= 0 and whole.start[last] >= first and self._is_eot[whole.pattern[last]]:
                sure[index] = not self._text(ids, int(whole.end[last]), start).strip()
        cut.pattern[cut.pattern < 0] = -1 - cut.pattern[cut.pattern < 0]
        return sure

    def _text(self, ids: Ids, start: int, end: int) -> bytes:
        """The bytes between two positions; a control token is no blank."""
        tokens = [int(token) for token in ids[start >> _BITS : (end >> _BITS) + 1]]
        if not tokens or any(self.trie.vocabulary.is_special(token) for token in tokens[:-1]):
            return b"-" if tokens else b""
        pieces = [self.trie.vocabulary.token_bytes(token) for token in tokens]
        low, high = start & ((1 << _BITS) - 1), end & ((1 << _BITS) - 1)
        kept = b"".join(pieces[:-1]) + pieces[-1][:high]
        return kept[low:]

    def _candidates(self, ids: Ids) -> Ints:
        if not self._few_ids:
            return np.flatnonzero(self._possible.take(ids, mode="clip"))  # nothing is clipped, and this mode is fast
        first, *others = self._few_ids
        hit = ids == first
        for token_id in others:
            hit |= ids == token_id
        return np.flatnonzero(hit)

    def _promising(self, ids: Ids, at: Ints, ends: Ints) -> Ints:
        """Candidates that their second token does not rule out."""
        if self._pairs is None or not len(at):
            return at
        keep = self._pairs.can_begin(ids[at], ids[np.minimum(at + 1, len(ids) - 1)])
        last = np.searchsorted(at, ends - 1)  # behind the last token of a document nothing is known
        keep[last[last < len(at)]] = True
        return at[keep]

    def _begun(self, first: Ids) -> tuple[Ints, ...]:
        """For tokens in which a marker can begin, at each place: which token, and what reading the rest of it gives."""
        read = [way.read.take(first, axis=0) for way in self._ways]
        begins = [np.flatnonzero(each[:, 0] >= 0) for each in read]
        found = np.concatenate([each.take(which, axis=0) for each, which in zip(read, begins, strict=True)])
        return np.concatenate(begins), *found.T.astype(np.int64)

    def _follow(self, ids: Ids, at: Ints, content_end: Ints) -> tuple[Found, Found]:
        """Reads every candidate on until no marker goes on or its document ends; the longest marker counts."""
        if not self._ways:
            return Found.joined([]), Found.joined([])
        which, skip, node, pattern, used = self._begun(ids[at])
        at, content_end = at[which], content_end[which]
        last, position = at.copy(), at.copy()
        live = np.flatnonzero(node >= 0)
        ran_out = [live[:0]]
        while len(live):
            position[live] += 1
            goes_on = position[live] < content_end[live]
            ran_out.append(live[~goes_on])
            live = live[goes_on]
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
        done = pattern >= 0
        left = np.concatenate(ran_out)
        longer = left[done[left]]
        longer = longer[self._is_response[pattern[longer]]]  # cut off inside what a generation prompt prefills
        end[longer] = position_of(content_end[longer])
        left = left[~done[left]]
        cut_header, begun = self.trie.cut_headers[node[left]], self.trie.begun_headers[node[left]]
        header = np.where(cut_header >= 0, cut_header, -1 - begun)  # negative: too short to be sure of by itself
        left, header = left[begun >= 0], header[begun >= 0]
        return Found(start[done], end[done], pattern[done]), Found(start[left], position_of(content_end[left]), header)

    def _table(self, node: int) -> _Table:
        table = self._tables.get(node)
        if table is None:
            table = self._tables[node] = _Table(self.trie, node)
        return table


def _without_overlaps(found: Found) -> Found:
    """Drops markers that begin inside an earlier one (`` USER:`` inside ``\\n USER:``)."""
    reach = np.maximum.accumulate(found.end)
    inside = np.append(False, found.start[1:] < reach[:-1])[: len(found)]
    if not inside.any():
        return found
    first = np.maximum.accumulate(np.where(inside, 0, np.arange(len(found))))  # which nothing earlier overlaps
    found = found.select(~inside | (found.start >= found.end[first]))
    if not np.any(found.start[1:] < found.end[:-1]):
        return found
    keep, reached = np.ones(len(found), np.bool_), -1
    for index, (start, end) in enumerate(zip(found.start.tolist(), found.end.tolist(), strict=True)):
        keep[index] = start >= reached
        reached = end if keep[index] else reached
    return found.select(keep)


def _behind(cut: Found, whole: Found) -> Found:
    """The earliest cut header of each document that begins behind its last whole marker."""
    if not len(cut):
        return cut
    reached = np.append(whole.end, 0)[np.searchsorted(whole.start, cut.end) - 1]
    cut = cut.select(cut.start >= reached)
    return cut.select(np.unique(cut.end, return_index=True)[1])
