"""Parts of an answer that are not trained, or count less: reasoning blocks, identifiers, any text with a pattern.

Regions are searched in the bytes of each answer, so ids never change. A token is in a region if all of its bytes are;
one that also holds other text still belongs to the answer::

    answer   "<think>" "a" "</think>\n" "b"      Region("<think>", "</think>")
    bytes     0 .. 6    7    8 .. 16     17       region [0, 16)
    inside    yes       yes  no          no       byte 16 of the third token is outside
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.errors import MarkerError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Floats, Ids
    from sft_mask.core.spans import Turns
    from sft_mask.core.vocabulary import Vocabulary


@dataclass(frozen=True)
class Region:
    """A part of an answer, given by the texts around it, by a regular expression, or by its own text.

    Attributes:
        start: text that opens the region; part of it.
        end: text that closes it; part of it. A region that is never closed ends with the answer.
        pattern: a regular expression over the answer's text instead; ``^`` and ``$`` are the answer's ends.
        text: a text instead, anywhere in an answer; also its end-of-turn token, which the other two never reach.
        weight: how much the region counts: 0 leaves it out, 1 changes nothing.

    Raises:
        MarkerError: not exactly one of ``start`` with ``end``, ``pattern`` and ``text`` is given, a pattern does not
            compile, or the weight is not a finite number, 0 or more.

    >>> thinking = Region("<think>", "</think>")
    >>> list(thinking.find(b"<think>a</think>b<think>c"))
    [(0, 16), (17, 25)]
    >>> list(Region(pattern=r"call_\\w+").find(b"id: call_1_0, name: f"))
    [(4, 12)]
    """

    start: str = ""
    end: str = ""
    pattern: str = ""
    text: str = ""
    weight: float = 0.0

    def __post_init__(self) -> None:
        ways = (self.start, self.pattern, self.text)
        if sum(map(bool, ways)) != 1 or bool(self.start) != bool(self.end):
            raise MarkerError(
                f"Region(start={self.start!r}, end={self.end!r}, pattern={self.pattern!r}, text={self.text!r}): give "
                "both start and end, or a pattern, or a text."
            )
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not number or not 0 <= self.weight < math.inf:
            raise MarkerError(f"Region(weight={self.weight!r}): a weight must be a finite number, 0 or more.")
        if not all(isinstance(text, str) for text in (self.start, self.end, self.pattern, self.text)):
            raise MarkerError(
                f"{self!r} holds something that is not text. Give strings: Region('<think>', '</think>')."
            )
        try:
            self._expression  # noqa: B018  compiled once, and refused here rather than at the first row
        except re.error as error:
            raise MarkerError(f"Region(pattern={self.pattern!r}) is not a regular expression: {error}.") from error

    @cached_property
    def _expression(self) -> re.Pattern[bytes]:
        if self.pattern:
            return re.compile(self.pattern.encode())
        if self.text:
            return re.compile(re.escape(self.text.encode()))
        opening, closing = re.escape(self.start.encode()), re.escape(self.end.encode())
        return re.compile(opening + rb".*?(?:" + closing + rb"|\Z)", re.DOTALL)

    def find(self, answer: bytes) -> Iterator[tuple[int, int]]:
        """Where the region is in an answer, as half-open ranges of bytes."""
        return (found.span() for found in self._expression.finditer(answer) if found.end() > found.start())

    def find_after(self, prefilled: bytes, answer: bytes) -> Iterator[tuple[int, int]]:
        """Like :meth:`find`, after a header that may have opened the region already (a prefilled ``<think>``).

        >>> list(Region("<think>", "</think>").find_after(b"assistant: <think>", b"a</think>b"))
        [(0, 9)]
        """
        opened = prefilled.rfind(self.start.encode())  # without a start and an end, both are found at the very end
        if opened < 0 or self.end.encode() in prefilled[opened + len(self.start.encode()) :]:
            yield from self.find(answer)
            return
        before = len(prefilled) - opened
        for low, high in self.find(prefilled[opened:] + answer):
            if high > before:
                yield max(low - before, 0), high - before


def in_regions(ids: Ids, turns: Turns, vocabulary: Vocabulary, regions: Sequence[Region]) -> Floats:
    """``(tokens,)`` the product of the weights of the regions that each token lies in with all of its bytes."""
    factor = np.ones(len(ids))
    bounds = np.column_stack((turns.header, turns.start, np.minimum(turns.end, turns.eot_start), turns.end))
    for header, start, said, end in bounds.tolist():
        prefilled = vocabulary.bytes_of(ids[header:start].tolist())
        texts = [vocabulary.token_bytes(token_id) for token_id in ids[start:end].tolist()]
        begins, answer = [0, *accumulate(map(len, texts))], b"".join(texts)
        for region in regions:
            within = answer if region.text else answer[: begins[said - start]]
            for low, high in _merged(region.find_after(prefilled, within)):
                inside = _tokens_inside(begins, low, high)
                factor[start + inside.start : start + inside.stop] *= region.weight
    return factor


def _merged(places: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Places in order; those that touch become one."""
    merged: list[tuple[int, int]] = []
    for start, end in places:
        touches = bool(merged) and start <= merged[-1][1]
        merged.append((merged.pop()[0] if touches else start, end))
    return merged


def _tokens_inside(begins: Sequence[int], low: int, high: int) -> slice:
    """The tokens whose bytes all lie in ``[low, high)``."""
    first = bisect_left(begins, low)
    last = bisect_right(begins, high) - 1
    return slice(first, max(first, last))
