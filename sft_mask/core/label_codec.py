"""Float weights of tokens, carried inside integer labels.

A label is an ``int64`` with three fields, and ``IGNORE_INDEX`` stays ``IGNORE_INDEX``::

    bits 32..62   weight   float32 bits, exclusive-or those of 1.0
    bits 24..30   group    what the token's loss is counted under, 0 for none
    bits  0..23   id       the token itself

So a token of weight 1 and no group is its plain id, and whatever moves labels (truncation, packing, padding, any
collator) moves the weights with them; nothing is ever a float that a framework would cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Floats, Ids, Ints, Labels


GROUP_SHIFT: Final = 24
WEIGHT_SHIFT: Final = 32
ID_MASK: Final = (1 << GROUP_SHIFT) - 1
GROUP_MASK: Final = 0x7F
ONE_BITS: Final = 0x3F800000
"""The bits of ``float32(1.0)``."""
PLAIN_BELOW: Final = 1 << GROUP_SHIFT
"""A label from here on carries a weight or a group."""
_NOTHING: Final = float(np.finfo(np.float32).tiny)
"""Weights that sum to less are no weights in float32."""


def encode_labels(labels: Labels, weights: Floats, groups: Ints | None = None) -> Ints:
    """Labels that carry their weights.

    Args:
        labels: ``(tokens,)`` ids below 2^24, or ``IGNORE_INDEX``.
        weights: ``(tokens,)`` finite and not negative; kept as float32.
        groups: ``(tokens,)`` 0 to 127.

    Raises:
        DataError: a weight is beyond float32.

    >>> encode_labels(np.array([-100, 7, 8]), np.array([1.0, 1.0, 0.5])).tolist()
    [-100, 7, 36028797018963976]
    """
    with np.errstate(over="ignore"):
        narrow = weights.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DataError(
            f"A token has the weight {weights.max()}, which is beyond float32. The loss is divided by the sum of "
            "weights, so only their ratios matter: scale them all down."
        )
    bits = narrow.view(np.int32).astype(np.int64) ^ ONE_BITS
    encoded: Ints = labels.astype(np.int64) | (bits << WEIGHT_SHIFT)
    if groups is not None:
        encoded |= groups.astype(np.int64) << GROUP_SHIFT
    return np.where(labels == IGNORE_INDEX, np.int64(IGNORE_INDEX), encoded)


def label_ids(labels: Labels) -> Ids:
    """The ids of labels, without weights.

    >>> label_ids(np.array([-100, 7, 36028797018963976])).tolist()
    [-100, 7, 8]
    """
    if labels.dtype.itemsize < np.dtype(np.int64).itemsize:
        return labels
    return np.where(labels == IGNORE_INDEX, labels, labels & ID_MASK)


def label_weights(labels: Labels) -> NDArray[np.float32]:
    """The weights of labels, 0 where they are ``IGNORE_INDEX``.

    >>> label_weights(np.array([-100, 7, 36028797018963976])).tolist()
    [0.0, 1.0, 0.5]
    """
    bits = ((labels.astype(np.int64) >> WEIGHT_SHIFT) ^ ONE_BITS).astype(np.int32)
    return np.where(labels == IGNORE_INDEX, np.float32(0), bits.view(np.float32))


def has_weights(labels: Labels) -> bool:
    """Whether any label is more than a plain id."""
    return bool(len(labels)) and int(labels.max()) >= PLAIN_BELOW


def mean_within(weights: Floats, units: Ints, first_tokens: Ints) -> Floats:
    """Weights scaled so that those of each unit sum to 1: then every unit counts the same.

    Args:
        weights: ``(tokens,)``.
        units: ``(tokens,)`` number of the unit that each token belongs to, ``-1`` for none.
        first_tokens: first token of each document, which nothing predicts: its weight is 0.
    """
    graded = weights.copy()
    graded[first_tokens] = 0
    inside = units >= 0
    sums = np.bincount(units[inside], graded[inside], minlength=int(units.max(initial=-1)) + 1)
    scaled = np.zeros_like(weights)
    totals = sums[units[inside]]
    scaled[inside] = np.divide(graded[inside], totals, out=np.zeros(int(inside.sum())), where=totals > _NOTHING)
    return scaled
