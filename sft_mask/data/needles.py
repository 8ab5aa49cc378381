"""Which texts of an Arrow array hold a text, by their bytes: its rarest two are looked for, then the others.

Equals ``pyarrow.compute.match_substring`` for every needle, several times as fast where the needle is rare.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Ints


_LOOKED_AT = 1 << 12
"""Bytes that tell which ones are rare."""
_AT_ONCE = 1 << 17
"""Bytes that fit the cache with what is made of them."""


class Haystack:
    """Texts that needles are looked for in.

    Args:
        texts: of type ``string`` or ``large_string``.
    """

    def __init__(self, texts: pa.Array) -> None:
        self._is_null = np.asarray(texts.is_null()) if texts.null_count else None
        width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
        _, bounds, data = texts.buffers()
        count, none = len(texts), np.zeros(1, width)
        ends = np.frombuffer(bounds, width)[texts.offset : texts.offset + count + 1] if count else none
        self._ends: Ints = ends.astype(np.int64) - int(ends[0])
        held = np.frombuffer(data, np.uint8) if data is not None else none[:0].view(np.uint8)
        self._data: NDArray[np.uint8] = held[int(ends[0]) : int(ends[-1])]
        self._often = np.bincount(self._data[:: max(1, len(self._data) // _LOOKED_AT)], minlength=256)

    def holds(self, needle: str) -> Bools:
        """``(texts,)`` whether each text holds the needle; a null holds nothing."""
        found = np.zeros(len(self._ends) - 1, np.bool_)
        at, size = self._places(needle.encode()), len(needle.encode())
        which = np.searchsorted(self._ends, at, side="right") - 1
        found[which[at + size <= self._ends[which + 1]]] = True
        return found if self._is_null is None else found & ~self._is_null

    def holds_any(self, needles: Iterable[str]) -> Bools:
        """``(texts,)`` whether each text holds any of the needles."""
        found = np.zeros(len(self._ends) - 1, np.bool_)
        for needle in needles:
            found |= self.holds(needle)
        return found

    def _places(self, needle: bytes) -> Ints:
        """Where the bytes of a needle stand, maybe across the end of a text."""
        values = np.frombuffer(needle, np.uint8)
        by_rarity = np.argsort(self._often[values], kind="stable").tolist()
        beginnings = len(self._data) - len(values) + 1
        parts = [np.zeros(0, np.int64)]
        for first in range(0, beginnings, _AT_ONCE):
            stop = min(first + _AT_ONCE, beginnings)
            may_begin = np.ones(stop - first, np.bool_)
            for place in by_rarity[:2]:
                may_begin &= self._data[first + place : stop + place] == values[place]
            if may_begin.any():
                parts.append(np.flatnonzero(may_begin) + first)
        at = np.concatenate(parts)
        for place in by_rarity[2:]:
            at = at[self._data[at + place] == values[place]]
        return at
