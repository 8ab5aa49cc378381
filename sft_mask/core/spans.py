"""Token ids to the assistant's turns, as half-open spans; the heart of the library.

Everything works on one flat array of ids and the offsets of its documents (a row, or a document of a packed row), never
on a Python list of tokens. :mod:`sft_mask.core.search` finds the markers; here each response header opens a turn, and
its end-of-turn token, the next header or the end of the document closes it::

    token     0     1     2     3     4     5     6     7     8     9    10
    bytes    <u>   "Hi"  <e>  "\\n"   <a>  "I"  " am" <e>  "\\n"  <u>  "ok"     <u>, <a> headers; <e> end of turn
    marker  OTHER        EOT       RESPONSE           EOT         OTHER
    answer                                [5 ------------- 9)                what lies between two headers
    turn                               header=4  start=5  eot_start=7  end=8

Spans count tokens of the unshifted sequence; ``start`` is the first token that the model has to sample (it holds at
least one byte of the answer), ``end`` is one past the last, the end-of-turn token included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT
from sft_mask.core.arrays import greatest
from sft_mask.core.patterns import Kind, MarkerTrie, token_atom
from sft_mask.core.search import Found, MarkerSearch, position_of, token_holding, tokens_before

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Floats, Ids, Ints
    from sft_mask.core.vocabulary import Vocabulary

_UNREAD, _TEXT, _WHITESPACE, _CONTROL = -1, 0, 1, 2
_LONGEST_FILLER = 8
"""Tokens between an end-of-turn token and the next header; templates write one newline, rarely two tokens."""


@dataclass(frozen=True, slots=True)
class Turns:
    """The assistant's turns in one flat array, in order.

    Attributes:
        start: ``(n,)`` first token of the answer.
        end: ``(n,)`` one past the last token, the end-of-turn token included.
        has_eot: ``(n,)`` whether the turn ends with an end-of-turn token, which the model must sample.
        cut: ``(n,)`` whether the document ends before the turn does.
        document: ``(n,)`` index of the document.
        header: ``(n,)`` first token of the turn's header, ``start`` if it has none.
        eot_start: ``(n,)`` first token with nothing but the end of turn, ``end`` if it has none.
        message: ``(n,)`` index of the message in its conversation, ``-1`` if only markers are known.
        role: ``(n,)`` who speaks: index into :data:`sft_mask.constants.ROLES`.
        weight: ``(n,)`` how much the turn counts in the loss; 0 if it is not trained.
    """

    start: Ints
    end: Ints
    has_eot: Bools
    cut: Bools
    document: Ints
    header: Ints
    eot_start: Ints
    message: Ints
    role: Ints
    weight: Floats

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def empty(cls) -> Turns:
        """No turns."""
        none, no = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        return cls.of_assistant(none, none, no, no, none, none, none)

    @classmethod
    def of_assistant(
        cls,
        start: Ints,
        end: Ints,
        has_eot: Bools,
        cut: Bools,
        document: Ints,
        header: Ints,
        eot_start: Ints,
        message: Ints | None = None,
    ) -> Turns:
        """Turns of weight 1; ``message`` is ``None`` if their messages are not known."""
        count = len(start)
        role = np.full(count, ASSISTANT, np.int64)
        message = np.full(count, -1, np.int64) if message is None else message
        return cls(start, end, has_eot, cut, document, header, eot_start, message, role, np.ones(count))

    def select(self, keep: Bools | Ints) -> Turns:
        """The turns that ``keep`` points at."""
        if keep.dtype == np.bool_:
            if keep.all():
                return self
            keep = np.flatnonzero(keep)
        return Turns(*(getattr(self, name)[keep] for name in self.__slots__))

    def moved(self, by: int | Ints) -> Turns:
        """The turns ``by`` tokens further on; a header that would begin before token 0 begins there."""
        moved = {name: getattr(self, name) + by for name in ("start", "end", "eot_start")}
        return replace(self, **moved, header=np.maximum(self.header + by, 0))

    @classmethod
    def of_documents(cls, turns: Mapping[int, Turns], offsets: Ints) -> Turns:
        """The turns of some documents, each given as if it were alone, in the flat array that ``offsets`` cuts."""
        document = np.repeat(np.array(list(turns), np.int64), list(map(len, turns.values())))
        return replace(cls.joined([*turns.values()] or [cls.empty()]).moved(offsets[document]), document=document)

    @classmethod
    def joined(cls, parts: Sequence[Turns]) -> Turns:
        """The turns of several, one after the other."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))


class SpanFinder:
    """Finds the assistant's turns in flat arrays of ids; reusable, and cheap to call again.

    Args:
        trie: the compiled markers.
        complete: see :class:`~sft_mask.core.markers.Markers`.
        open_end: see :class:`~sft_mask.core.markers.Markers`; such an answer at the end of a document is not a cut one.
        separator: see :class:`~sft_mask.core.markers.Markers`; it is not trained at the end of a document either.
        pad_token_id: a trailing run of this id in a document is padding.
    """

    def __init__(
        self,
        trie: MarkerTrie,
        *,
        complete: bool = False,
        open_end: bool = False,
        separator: str = "",
        pad_token_id: int | None = None,
    ) -> None:
        self.trie = trie
        self.complete = complete
        self.open_end = open_end
        self.separator = separator.encode()
        self.pad_token_id = pad_token_id
        self._search = MarkerSearch(trie)
        kinds = np.array([pattern.kind for pattern in trie.patterns], np.int8)
        self._is_eot = kinds == Kind.EOT
        self._is_response = kinds == Kind.RESPONSE
        self._first_token_ends_turn = np.array([pattern.first_token_ends_turn for pattern in trie.patterns], np.bool_)
        eot_atoms = {pattern.atoms[0] for pattern in trie.patterns if pattern.kind is Kind.EOT}
        self._pad_is_eot = pad_token_id is not None and token_atom(pad_token_id) in eot_atoms
        self._looks = np.full(trie.vocabulary.size + 1, _UNREAD, np.int8)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of the markers."""
        return self.trie.vocabulary

    def find(self, ids: Ids, offsets: Ints) -> Turns:
        """The assistant's turns, disjoint and in order.

        Args:
            ids: ``(tokens,)`` flat token ids of any integer type; ids outside the vocabulary have no text.
            offsets: ``(documents + 1,)`` where each document begins and ends in ``ids``, ascending.
        """
        ids = self.in_vocabulary(ids)
        ends = self.content_ends(ids, offsets)
        found, cut_headers = self._search.find(ids, offsets, ends)
        is_eot = self._is_eot[found.pattern]
        headers = Found.joined(found.select(~is_eot), cut_headers)
        ends_turn = self._first_token_ends_turn[headers.pattern]
        answers = _answers(headers, np.flatnonzero(self._is_response[headers.pattern]), ends_turn, offsets, ends)
        if not len(answers.start):
            return Turns.empty()
        end, eot_start, has_eot = self._closings(ids, answers, headers, found.select(is_eot))
        ends_open = (answers.closer < 0) & ~has_eot
        start = token_holding(answers.start)
        end[ends_open] = eot_start[ends_open] = self._before_separator(ids, start[ends_open], end[ends_open])
        start[1:] = np.maximum(start[1:], end[:-1])  # one token can hold an answer's end, a header and a beginning
        cut = ends_open & (not self.open_end)
        header = token_holding(headers.start[answers.opener])
        turns = Turns.of_assistant(start, end, has_eot, cut, answers.document, header, eot_start)
        return turns.select(end > start)

    def begin_inside_turn(self, ids: Ids, offsets: Ints) -> Bools:
        """``(documents,)`` whether each begins after its turn's header: a turn ends there before any header opens one.

        A document without markers is part of one message. Text before a first header that ends no turn may be what the
        chat template writes first, and does not count.
        """
        ids = self.in_vocabulary(ids)
        found = self.markers_in(ids, offsets)
        edges = np.searchsorted(token_holding(found.start), offsets)
        inside: Bools = np.diff(edges) == 0
        some = np.flatnonzero(~inside)
        start, pattern = token_holding(found.start[edges[some]]), found.pattern[edges[some]]
        late = ~self._only_filler(ids, offsets[some], start)
        inside[some] = self._is_eot[pattern] | (late & self._first_token_ends_turn[pattern])
        inside[np.diff(offsets) == 0] = False
        return inside

    def markers_in(self, ids: Ids, offsets: Ints) -> Found:
        """Every marker in order; ``ids`` are :meth:`in_vocabulary`."""
        return self._search.find(ids, offsets, self.content_ends(ids, offsets))[0]

    def in_vocabulary(self, ids: Ids) -> Ids:
        """The ids, with one id without text in place of those that the vocabulary does not have."""
        size = self.vocabulary.size
        if greatest(ids) >= size:
            return np.where((ids < 0) | (ids >= size), size, ids.astype(np.int64))
        return ids

    def content_ends(self, ids: Ids, offsets: Ints) -> Ints:
        """``(documents,)`` where each document ends, without its trailing padding.

        If the padding token is also an end-of-turn token, the first of a run is kept: it ends the last answer.
        """
        end = offsets[1:].copy()
        pad = self.pad_token_id
        if pad is None or not len(ids):
            return end
        first = offsets[:-1]
        padded = np.flatnonzero((end > first) & (ids[np.maximum(end - 1, 0)] == pad))
        content = end[padded] - 1
        longer = np.flatnonzero((content > first[padded]) & (ids[np.maximum(content - 1, 0)] == pad))
        if len(longer):
            others = np.append(-1, np.flatnonzero(ids != pad))
            last = others[np.searchsorted(others, content[longer]) - 1]
            content[longer] = np.maximum(last + 1, first[padded[longer]])
        end[padded] = content + self._pad_is_eot
        return end

    # what ends an answer

    def _closings(self, ids: Ids, answers: _Answers, headers: Found, eots: Found) -> tuple[Ints, Ints, Bools]:
        """One past the last token of each turn, where its end-of-turn token begins, and whether it has one."""
        closed = answers.closer >= 0
        end = tokens_before(answers.end)
        eot_start, has_eot = end.copy(), np.zeros(len(end), np.bool_)
        chosen, last = self._chosen_eots(ids, answers, eots)
        turns = np.flatnonzero(chosen >= 0)
        # If all markers are known, text between the last end-of-turn token and the row's end shows it was only quoted.
        nothing_follows = self._only_filler(ids, tokens_before(eots.end[last[turns]]), end[turns])
        turns = turns[closed[turns] | (not self.complete) | nothing_follows]
        chosen = chosen[turns]
        end[turns], eot_start[turns] = tokens_before(eots.end[chosen]), tokens_before(eots.start[chosen])
        has_eot[turns] = True
        # The model may also end its turn by sampling the first token of the next role's header.
        turns = np.flatnonzero(closed & ~has_eot & self._first_token_ends_turn[headers.pattern[answers.closer]])
        eot_start[turns] = token_holding(headers.start[answers.closer[turns]])
        end[turns], has_eot[turns] = eot_start[turns] + 1, True
        return end, eot_start, has_eot

    def _chosen_eots(self, ids: Ids, answers: _Answers, eots: Found) -> tuple[Ints, Ints]:
        """For each answer the end-of-turn token that ends it, ``-1`` for none, and the last one inside its bounds.

        What ends it is the last one inside its bounds, since text follows one that the answer quotes; of several with
        only whitespace and control tokens between them, the first (padding with the end-of-turn token). If headers of
        other roles may be unknown, a control token after an end-of-turn token is taken for one.
        """
        if not len(eots):
            none = np.full(len(answers.start), -1, np.int64)
            return none, none
        first_inside = np.searchsorted(eots.start, answers.start)
        last = np.searchsorted(eots.start, answers.end) - 1
        end = tokens_before(eots.end)
        linked = np.zeros(len(eots), np.bool_)
        linked[1:] = self._only_filler(ids, end[:-1], token_holding(eots.start[1:]))
        first_of_run = np.maximum.accumulate(np.where(linked, 0, np.arange(len(eots))))
        chosen = np.maximum(first_of_run[last], first_inside)
        if not self.complete:
            before_control = np.append(np.flatnonzero(self._control_follows(ids, end)), len(eots))
            chosen = np.minimum(chosen, before_control[np.searchsorted(before_control, first_inside)])
        return np.where(last >= first_inside, chosen, -1), last

    def _before_separator(self, ids: Ids, start: Ints, end: Ints) -> Ints:
        """Ends of answers without the separator that the template wrote after each of them.

        The separator is taken off byte by byte from its end. A token that also holds a byte of the answer stays::

            separator "\\n\\n"    tokens  "Bye" "." "\\n\\n"    ->  "Bye" "."
                                        "Bye" ".\\n" "\\n"    ->  "Bye" ".\\n"
                                        "Bye" "." "\\n"      ->  all of them: that line break is the answer's own
        """
        trimmed, left = end.copy(), np.full(len(end), len(self.separator), np.int64)
        for _ in self.separator:
            taken = self._of_separator(ids[trimmed - 1], left, whole=True) * (trimmed > start)
            trimmed, left = trimmed - (taken > 0), left - taken
        own = self._of_separator(ids[trimmed - 1], left, whole=False) * (trimmed > start) < left
        return np.where(own, end, trimmed)

    def _of_separator(self, tokens: Ids, left: Ints, *, whole: bool) -> Ints:
        """Bytes that each token holds of the end of what is left of the separator, as all of it or as its end."""
        held = np.zeros(len(tokens), np.int64)
        unique, place = np.unique(tokens, return_inverse=True)
        texts = [self.vocabulary.token_bytes(token) for token in unique.tolist()]
        for length in np.unique(left).tolist():
            rest = self.separator[:length]
            of_text = [len(text) * rest.endswith(text) if whole else length * text.endswith(rest) for text in texts]
            held = np.where(left == length, np.array(of_text, np.int64)[place], held)
        return held

    def _only_filler(self, ids: Ids, start: Ints, end: Ints) -> Bools:
        """Whether only whitespace and control tokens, and few of them, are between two tokens."""
        answer: Bools = end - start <= _LONGEST_FILLER
        for ahead in range(_LONGEST_FILLER):
            inside = np.flatnonzero(answer & (start + ahead < end))
            if not len(inside):
                break
            answer[inside] = self._look_of(ids[start[inside] + ahead]) != _TEXT
        return answer

    def _control_follows(self, ids: Ids, start: Ints) -> Bools:
        """Whether a control token comes next, apart from whitespace."""
        answer = np.zeros(len(start), np.bool_)
        live = np.arange(len(start))
        for ahead in range(_LONGEST_FILLER):
            live = live[start[live] + ahead < len(ids)]
            looks = self._look_of(ids[start[live] + ahead])
            answer[live[looks == _CONTROL]] = True
            live = live[looks == _WHITESPACE]
        return answer

    def _look_of(self, tokens: Ids) -> NDArray[np.int8]:
        unread = tokens[self._looks[tokens] == _UNREAD]
        for token_id in np.unique(unread).tolist():
            if not self.vocabulary.token_bytes(token_id).strip() and not self.vocabulary.is_special(token_id):
                self._looks[token_id] = _WHITESPACE
            else:
                self._looks[token_id] = _CONTROL if token_id in self.vocabulary.added else _TEXT
        looks: NDArray[np.int8] = self._looks[tokens]
        return looks


@dataclass(frozen=True, slots=True)
class _Answers:
    """What lies between a response header and what closes it; positions are those of :mod:`sft_mask.core.search`.

    Attributes:
        opener: ``(n,)`` index of the header that opens it.
        closer: ``(n,)`` index of the header that closes it, ``-1`` for the document's end.
        start: ``(n,)`` position of the first byte.
        end: ``(n,)`` position one past the last byte, the end-of-turn token included.
        document: ``(n,)`` index of the document.
    """

    opener: Ints
    closer: Ints
    start: Ints
    end: Ints
    document: Ints


def _answers(headers: Found, opens: Ints, ends_turn: Bools, offsets: Ints, ends: Ints) -> _Answers:
    """What lies between the headers ``opens`` and the next header, or the document's end, if anything does.

    An empty answer counts if the next header's first token ends its turn (``ends_turn``).
    """
    document = np.searchsorted(offsets, token_holding(headers.start[opens]), side="right") - 1
    start, document_end = headers.end[opens], position_of(ends[document])
    following = np.append(headers.start, np.iinfo(np.int64).max)[opens + 1]
    closed = following < document_end
    end = np.where(closed, following, document_end)
    some = np.flatnonzero((end > start) | (closed & np.append(ends_turn, False)[opens + 1]))
    closer = np.where(closed, opens + 1, -1)
    return _Answers(opens[some], closer[some], start[some], end[some], document[some])
