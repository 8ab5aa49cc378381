"""Which conversation signatures markers can be trusted with, learnt from the rows so far.

A chat template treats rows of one signature (the same sequence of roles, the same fields;
:mod:`sft_mask.data.read.columns`) alike, so a few of them are decided by markers and by messages, and the others by
markers alone if both agreed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools, Ints

ROWS_TO_VERIFY = 3
"""Rows of a signature on which markers and messages must agree before markers are trusted with the rest."""


class SignatureCache:
    """How often markers and messages agreed for each conversation signature; one per :class:`Masker`."""

    def __init__(self) -> None:
        self._agreed: Counter[int] = Counter()
        self._disagreed: set[int] = set()
        self._unmatched: Counter[int] = Counter()
        self._fates: dict[int, tuple[int, Hashable, bool]] = {}

    def trusts(self, signature: int) -> bool:
        """Whether markers alone may decide rows of this signature."""
        return self._agreed[signature] >= ROWS_TO_VERIFY and signature not in self._disagreed

    def trusted(self, signatures: Ints) -> Bools:
        """``(rows,)`` whether markers alone may decide each row."""
        return np.isin(signatures, np.array([key for key in self._agreed if self.trusts(key)], np.int64))

    def add_comparison(self, signature: int, *, agreed: bool) -> None:
        """Counts a row that both markers and messages decided."""
        if agreed:
            self._agreed[signature] += 1
        else:
            self._disagreed.add(signature)

    def add_unmatched(self, signature: int) -> None:
        """Counts a row whose messages do not match its text."""
        self._unmatched[signature] += 1

    def is_unmatched(self, signature: int) -> bool:
        """Whether so many rows of this signature did not match that no further one is tried."""
        return self._unmatched[signature] >= ROWS_TO_VERIFY

    def add_fate(self, key: int, fate: Hashable) -> None:
        """Counts what became of a field; ``key`` stands for its signature and its look."""
        count, first, is_same = self._fates.get(key, (0, fate, True))
        self._fates[key] = count + 1, first, is_same and first == fate

    def fate(self, key: int) -> Hashable:
        """What becomes of fields like this one; ``None`` while that is not known, or differs."""
        count, fate, is_same = self._fates.get(key, (0, None, True))
        return fate if is_same and count >= ROWS_TO_VERIFY else None

    def is_open(self, key: int, most: float = math.inf) -> bool:
        """Whether fields like this one must still be looked at: at most that many, if they do not all go one way."""
        count, _, is_same = self._fates.get(key, (0, None, True))
        return count < (ROWS_TO_VERIFY if is_same else most)

    def copy(self) -> SignatureCache:
        """A copy, for :meth:`restore`."""
        made = SignatureCache()
        made.restore(self)
        return made

    def restore(self, earlier: SignatureCache) -> None:
        """Goes back to what was known earlier, so that the rows of a failed batch meet the same error again."""
        self._agreed, self._unmatched = Counter(earlier._agreed), Counter(earlier._unmatched)
        self._disagreed, self._fates = set(earlier._disagreed), dict(earlier._fates)
