"""Who speaks where in a row: the message that each token comes from, and the segments that headers open."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.arrays import Ints, offsets_of
from sft_mask.core.patterns import Kind
from sft_mask.core.search import MarkerSearch, token_holding, tokens_before
from sft_mask.data.masker import Masker
from sft_mask.errors import DataError
from sft_mask.explanations.rows import InspectedRow
from sft_mask.templates.align import TextTurn, fit_to_row, token_bounds, token_turns
from sft_mask.templates.tracing.traced_str import TEMPLATE

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROLE_NAMES = (
    "system",
    "user",
    "assistant",
    "tool",
    "developer",
    "model",
    "observation",
    "ipython",
    "function",
    "human",
)
_ROLES_WITH_HEADERS = frozenset({"system", "user", "assistant"})


@dataclass(frozen=True, slots=True)
class RoleSegment:
    """A header and what follows it, up to the next header.

    Attributes:
        role: as far as the header tells it, else ``""``.
        marker: text of the header.
        header: first token of the header.
        start: first token after the header.
        end: one past the last token.
    """

    role: str
    marker: str
    header: int
    start: int
    end: int


class SegmentReader:
    """Finds sources and segments in rows that one masker labelled."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._vocabulary = masker.finder.vocabulary
        self._search = MarkerSearch(masker.finder.trie)

    def sources(self, row: InspectedRow) -> Ints | None:
        """``(tokens,)`` index of the message whose words each token holds, or ``TEMPLATE``.

        ``None`` where that is unknown, and where headers alone say it: in a row of system, user and assistant whose
        markers agree with its messages, no message quotes a header.
        """
        if row.sources is not None:
            return row.sources
        aligner, talk = self._masker.decider.aligner, row.conversation
        if aligner is None or talk is None:
            return None
        if row.checked and all(message.get("role") in _ROLES_WITH_HEADERS for message in talk.messages):
            return None
        try:
            rendered = aligner.template.render(talk.messages, tools=talk.tools, variables=talk.variables)
            whole = np.asarray(aligner.tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
            first, last = token_bounds(rendered.text, whole.tolist(), self._vocabulary, aligner.tokenizer)
            runs = token_turns(rendered.text, list(_message_runs(rendered.message_of())), first, last)
            placed = fit_to_row(runs, whole, row.ids, _never, replace(aligner.frame, is_whitespace=_never))
        except DataError:
            return None  # markers decided such a row, and they explain it
        sources = np.full(len(row.ids), TEMPLATE, np.int64)
        for start, end, message in zip(placed.start, placed.end, placed.message, strict=True):
            sources[start:end] = message
        return sources

    def find(self, row: InspectedRow, sources: Ints | None) -> list[RoleSegment]:
        """The segments of a row, in order; a header that a message merely quotes does not open one."""
        headers = [header for header in self._headers(row) if sources is None or sources[header[0]] == TEMPLATE]
        headers.sort(key=lambda header: header[0])
        edges = [*(header for header, _, _, _ in headers), len(row.ids)]
        return [
            RoleSegment(self._role(kind, text), text, header, min(start, end), end)
            for (header, start, kind, text), end in zip(headers, edges[1:], strict=True)
        ]

    def _headers(self, row: InspectedRow) -> Iterator[tuple[int, int, Kind, str]]:
        """(first token, first token after it, kind, text) of each header, also of one that the row's end cut."""
        ids = self._masker.finder.in_vocabulary(row.ids)
        bounds = offsets_of(row.documents)
        for found in self._search.find(ids, bounds, bounds[1:]):
            for start, end, number in zip(found.start, found.end, found.pattern.tolist(), strict=True):
                pattern = self._search.trie.patterns[number]
                if pattern.kind is not Kind.EOT:
                    text = pattern.text if isinstance(pattern.text, str) else self._vocabulary.text(pattern.text)
                    yield int(token_holding(start)), int(tokens_before(end)), pattern.kind, text

    def _role(self, kind: Kind, text: str) -> str:
        if kind is Kind.RESPONSE:
            return "assistant"
        if text in self._masker.markers.instruction:
            return "user"
        words = re.findall(r"[a-z]+", text.lower())
        return next((name for name in _ROLE_NAMES if name in words), "")


def _never(ids: Ints) -> bool:
    """Headers and whitespace around the conversation's own words do not matter here."""
    del ids
    return False


def _message_runs(message: NDArray[np.int32]) -> Iterator[TextTurn]:
    """Every run of characters that come from one message."""
    edges = np.flatnonzero(np.diff(message)) + 1
    for start, end in pairwise([0, *edges.tolist(), len(message)]):
        if end > start and message[start] >= 0:
            source = int(message[start])
            yield TextTurn(header=start, start=start, end=end, eot_start=end, first_message=source, message=source)
