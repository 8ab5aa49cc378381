"""Float weights of tokens, carried inside integer labels.

A label is an ``int64`` with two fields, and ``IGNORE_INDEX`` stays ``IGNORE_INDEX``::

    bits 32..62   weight   the bits of a float32, XOR those of 1.0
    bits  0..23   id       the token itself

So a token of weight 1 is its plain id, and whatever moves labels (truncation, packing, padding, any collator) moves the
weights with them; no float exists that a framework could cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sft_mask.core.arrays import Floats, Ids, Ints, Labels

WEIGHT_SHIFT: Final = 32
PLAIN_BELOW: Final = 1 << 24
"""A label from here on carries a weight."""
ID_MASK: Final = PLAIN_BELOW - 1
ONE_BITS: Final = 0x3F800000
"""The bits of ``float32(1.0)``."""


def encode_labels(labels: Labels, weights: Floats) -> Ints:
    """Labels that carry their weights.

    Args:
        labels: ``(tokens,)`` ids below 2^24, or ``IGNORE_INDEX``.
        weights: ``(tokens,)`` finite and not negative; kept as float32.

    Raises:
        DataError: a weight is too large for float32.

    >>> encode_labels(np.array([-100, 7, 8]), np.array([1.0, 1.0, 0.5])).tolist()
    [-100, 7, 36028797018963976]
    """
    with np.errstate(over="ignore"):
        narrow = weights.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise DataError(
            f"A token has the weight {weights.max()}, which float32 cannot hold. The loss is divided by the sum of "
            "weights, so only their ratios matter: scale them all down."
        )
    bits = narrow.view(np.int32).astype(np.int64) ^ ONE_BITS
    encoded: Ints = labels.astype(np.int64) | (bits << WEIGHT_SHIFT)
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
