"""Spans to labels.

``labels[t]`` is ``input_ids[t]`` if token ``t`` is trained, else ``IGNORE_INDEX``. The model shifts: the logits
at ``t - 1`` are compared with ``labels[t]``. Nothing else in the library shifts::

    token     0    1    2    3    4    5    6    7
    ids      10   11   12   13   14   15   16   17
    turns              [2 ------ 5)         [7 -
    labels -100 -100   12   13   14 -100 -100   17
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import cache_slices, greatest
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Bools, Ids, Labels
    from sft_mask.core.spans import Turns

_LARGEST = np.iinfo(np.int32).max


def over_turns(turns: Turns, values: NDArray[Any], size: int, outside: float = 0) -> NDArray[Any]:
    """``(size,)`` the value of the turn that each token lies in; turns are disjoint and in order."""
    edges = np.empty(2 * len(turns) + 2, np.int64)
    edges[0], edges[-1] = 0, size
    edges[1:-1:2], edges[2:-1:2] = turns.start, turns.end
    spread = np.full(2 * len(turns) + 1, outside, values.dtype)
    spread[1::2] = values
    return np.repeat(spread, np.diff(edges))


def trained_mask(turns: Turns, size: int) -> Bools:
    """``(size,)`` whether each token lies in a turn; turns are disjoint and in order."""
    return over_turns(turns, np.ones(len(turns), np.bool_), size)


def make_labels(ids: Ids, turns: Turns, existing: Labels | None = None) -> NDArray[np.int32]:
    """Labels of a flat array of ids.

    Equals ``np.where(trained & (existing != IGNORE_INDEX), ids, IGNORE_INDEX)``: a label that is masked already stays
    masked.

    Raises:
        DataError: a number that is not a token id would be trained.
    """
    ignored = over_turns(turns, np.zeros(len(turns), np.bool_), len(ids), outside=True)
    labels = np.empty(len(ids), np.int32)
    for part in cache_slices(len(ids)):
        if greatest(ids[part]) > _LARGEST:
            _refuse_invalid(ids[part][~ignored[part]])
        labels[part] = ids[part]
        np.copyto(labels[part], np.int32(IGNORE_INDEX), where=ignored[part])
    if existing is not None:
        np.copyto(labels, np.int32(IGNORE_INDEX), where=existing == IGNORE_INDEX)
    return labels


def _refuse_invalid(trained: Ids) -> None:
    """Raises if a number cannot be a token; outside of answers such numbers are allowed, for images and the like."""
    invalid = trained[(trained < 0) | (trained > _LARGEST)]
    if len(invalid):
        raise DataError(
            f"input_ids holds {int(invalid[0])} inside an answer, which is not a token id. Repair or remove the row."
        )
