"""Array types and the small helpers on them that several modules share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike

Ids = NDArray[np.integer]
"""Token ids of any integer type."""
Labels = NDArray[np.integer]
"""Ids and ``IGNORE_INDEX``; as ``int64`` they may carry weights (:mod:`sft_mask.core.label_codec`)."""
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_IN_CACHE = 1 << 15


def offsets_of(lengths: ArrayLike) -> Ints:
    """``(n + 1,)`` where each of ``n`` consecutive stretches begins, and where the last one ends.

    Of a mask, how many positions before each are true.

    >>> offsets_of([3, 0, 2]).tolist()
    [0, 3, 3, 5]
    >>> offsets_of(np.array([True, False, True])).tolist()
    [0, 1, 1, 2]
    """
    lengths = np.asarray(lengths)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def common_prefix_length(left: Sequence[object], right: Sequence[object]) -> int:
    """Number of items at the beginning of two sequences that are equal.

    >>> common_prefix_length("<|end|>", "<|eot|>"), common_prefix_length([1, 2], [1, 2, 3])
    (3, 2)
    """
    differing = (at for at, (one, other) in enumerate(zip(left, right, strict=False)) if one != other)
    return next(differing, min(len(left), len(right)))


def cache_slices(count: int) -> Iterator[slice]:
    """Slices of ``count`` values that fit the processor's cache together with what is computed from them.

    >>> [(part.start, part.stop) for part in cache_slices(40_000)]
    [(0, 32768), (32768, 65536)]
    """
    return (slice(first, first + _IN_CACHE) for first in range(0, count, _IN_CACHE))


def greatest(ids: Ids) -> int:
    """The greatest id, read as unsigned numbers: a negative one is greater than any id; ``-1`` of none.

    >>> greatest(np.array([3, 7])), greatest(np.array([3, -1], np.int32)) == 2**32 - 1, greatest(np.array([], int))
    (7, True, -1)
    """
    return int(ids.view(f"u{ids.dtype.itemsize}").max()) if len(ids) else -1
