"""Which conversation signatures markers can be trusted with, learnt from the rows so far.

A chat template treats rows of one signature (the same sequence of roles, the same fields;
:mod:`sft_mask.data.read.columns`) alike, so a few of them are decided by markers and by messages, and the others by
markers alone if both agreed.
"""

from __future__ import annotations

from collections import Counter
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

    def copy(self) -> SignatureCache:
        """A copy, for :meth:`restore`."""
        made = SignatureCache()
        made.restore(self)
        return made

    def restore(self, earlier: SignatureCache) -> None:
        """Goes back to what was known earlier, so that the rows of a failed batch meet the same error again."""
        self._agreed, self._unmatched = Counter(earlier._agreed), Counter(earlier._unmatched)
        self._disagreed = set(earlier._disagreed)
