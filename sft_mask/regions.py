"""Parts of an answer that are not trained: reasoning blocks, identifiers, anything with a shape.

Regions are looked for in the bytes of each answer, so ids never change; a token is left out if every byte of it lies in
a region. What a token holds besides a region is still the answer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.errors import MarkerError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.spans import Turns
    from sft_mask.tokens import Vocabulary


@dataclass(frozen=True)
class Region:
    """A part of an answer, by the texts around it or by a regular expression.

    Attributes:
        start: text that opens the region; part of it.
        end: text that closes it; part of it. A region that is never closed runs to the end of the answer.
        pattern: a regular expression over the answer's text instead; ``^`` and ``$`` are the answer's ends.

    Raises:
        MarkerError: neither ``start`` and ``end`` nor ``pattern``, both, or a pattern that does not compile.

    >>> thinking = Region("<think>", "</think>")
    >>> list(thinking.find(b"<think>a</think>b<think>c"))
    [(0, 16), (17, 25)]
    >>> list(Region(pattern=r"call_\\w+").find(b"id: call_1_0, name: f"))
    [(4, 12)]
    """

    start: str = ""
    end: str = ""
    pattern: str = ""

    def __post_init__(self) -> None:
        around = bool(self.start and self.end)
        if around == bool(self.pattern) or bool(self.start) != bool(self.end):
            raise MarkerError(
                f"Region(start={self.start!r}, end={self.end!r}, pattern={self.pattern!r}): give both start and end, "
                "or a pattern."
            )
        try:
            self._expression  # noqa: B018  compiled once, and refused here rather than at the first row
        except re.error as error:
            raise MarkerError(f"Region(pattern={self.pattern!r}) is no regular expression: {error}.") from error

    @cached_property
    def _expression(self) -> re.Pattern[bytes]:
        if self.pattern:
            return re.compile(self.pattern.encode())
        opening, closing = re.escape(self.start.encode()), re.escape(self.end.encode())
        return re.compile(opening + rb".*?(?:" + closing + rb"|\Z)", re.DOTALL)

    def find(self, answer: bytes) -> Iterator[tuple[int, int]]:
        """The region's places in an answer, as half-open ranges of bytes."""
        return (found.span() for found in self._expression.finditer(answer) if found.end() > found.start())


def in_regions(
    ids: NDArray[np.integer], turns: Turns, vocabulary: Vocabulary, regions: Sequence[Region]
) -> NDArray[np.bool_]:
    """``(tokens,)`` which tokens of the turns, stops aside, lie in a region with every byte."""
    inside = np.zeros(len(ids), np.bool_)
    for start, stop in zip(turns.start.tolist(), np.minimum(turns.stop, turns.stop_at).tolist(), strict=True):
        pieces = [vocabulary.piece(token_id) for token_id in ids[start:stop].tolist()]
        answer = b"".join(pieces)
        ends = list(accumulate(map(len, pieces)))
        begins = [0, *ends[:-1]]
        for low, high in (place for region in regions for place in region.find(answer)):
            for index in range(int(np.searchsorted(begins, low)), len(pieces)):
                if ends[index] > high:
                    break
                inside[start + index] = True
    return inside
