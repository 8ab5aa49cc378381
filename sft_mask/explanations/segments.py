"""Who speaks where in a row: the messages that own its tokens, and the turns that its headers open."""

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

if TYPE_CHECKING:
    from numpy.typing import NDArray


_NAMES = ("system", "user", "assistant", "tool", "developer", "model", "observation", "ipython", "function", "human")
_HAVE_HEADERS = frozenset({"system", "user", "assistant"})
NOBODY = -1
"""Owner of the tokens that hold no word of any message."""


@dataclass(frozen=True, slots=True)
class Section:
    """What somebody says, behind the header that opens it.

    Attributes:
        role: as far as the header tells it.
        marker: text of the header.
        header: first token of the header.
        start: first token behind it.
        end: one past the last token.
    """

    role: str
    marker: str
    header: int
    start: int
    end: int


class Sections:
    """Reads the sections of rows that one masker masked."""

    def __init__(self, masker: Masker) -> None:
        self._masker = masker
        self._vocabulary = masker.finder.vocabulary
        self._search = MarkerSearch(masker.finder.trie)

    def owners(self, row: InspectedRow) -> Ints | None:
        """``(tokens,)`` message whose words each token holds, or :data:`NOBODY`; ``None`` where that is unknown.

        Also where it is not needed: a row that markers decided and messages agree with quotes no header, and if nobody
        but system, user and assistant speaks in it, each header says who does.
        """
        aligner, talk = self._masker.aligner, row.conversation
        if aligner is None or talk is None:
            return None
        if row.checked and all(message.get("role") in _HAVE_HEADERS for message in talk.messages):
            return None
        try:
            rendered = aligner.template.render(talk.messages, tools=talk.tools, variables=talk.variables)
            whole = np.asarray(aligner.tokenizer(rendered.text, add_special_tokens=False)["input_ids"], np.int64)
            first, last = token_bounds(rendered.text, whole.tolist(), self._vocabulary, aligner.tokenizer)
            runs = token_turns(rendered.text, list(_owned_runs(rendered.message_of())), first, last)
            placed = fit_to_row(runs, whole, row.ids, _never, replace(aligner.frame, is_whitespace=_never))
        except DataError:
            return None  # such a row was decided by its markers, and is told by them
        owners = np.full(len(row.ids), NOBODY, np.int64)
        for start, end, message in zip(placed.start, placed.end, placed.message, strict=True):
            owners[start:end] = message
        return owners

    def find(self, row: InspectedRow, owners: Ints | None) -> list[Section]:
        """The sections of a row, in order; a header that a message merely quotes opens none."""
        size = self._vocabulary.size
        ids = np.where((row.ids < 0) | (row.ids >= size), size, row.ids)
        bounds = offsets_of(row.documents)
        patterns = self._search.trie.patterns
        headers = [
            (int(token_holding(start)), int(tokens_before(marker_end)), patterns[pattern])
            for found in self._search.find(ids, bounds, bounds[1:])
            for start, marker_end, pattern in zip(found.start, found.end, found.pattern.tolist(), strict=True)
            if patterns[pattern].kind is not Kind.EOT
        ]
        headers = [header for header in headers if owners is None or owners[header[0]] == NOBODY]
        headers.sort(key=lambda header: header[0])
        edges = [*(start for start, _, _ in headers), len(ids)]
        sections = []
        for (start, marker_end, pattern), end in zip(headers, edges[1:], strict=True):
            text = pattern.text if isinstance(pattern.text, str) else self._vocabulary.text(pattern.text)
            sections.append(Section(self._role(pattern.kind, text), text, start, min(marker_end, end), end))
        return sections

    def _role(self, kind: Kind, text: str) -> str:
        if kind is Kind.RESPONSE:
            return "assistant"
        if text in self._masker.markers.instruction:
            return "user"
        words = re.findall(r"[a-z]+", text.lower())
        return next((name for name in _NAMES if name in words), "")


def _never(ids: Ints) -> bool:
    """Headers in what a row says beside its messages do not matter here."""
    del ids
    return False


def _owned_runs(message: NDArray[np.int32]) -> Iterator[TextTurn]:
    """Every run of characters that belong to one message."""
    edges = np.flatnonzero(np.diff(message)) + 1
    for start, end in pairwise([0, *edges.tolist(), len(message)]):
        if end > start and message[start] >= 0:
            owner = int(message[start])
            yield TextTurn(header=start, start=start, end=end, eot_start=end, first_message=owner, message=owner)
