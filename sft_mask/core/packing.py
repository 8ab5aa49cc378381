"""Rows that a trainer cut from longer texts.

``wrapped`` packing cuts one long text every ``max_length`` tokens, so a full row continues in the next one: both are
read as one text, and the turns found in it are cut where the rows end. That is exact::

    rows, 8 tokens each         <u> hi <e> <a> I  am     | fine <e> <u> so ? <e> <a> yes   (<a>, <u> headers; <e> EOT)
    turns of the joined text                   [I  am       fine <e>]                [yes
    turns of the rows                          [I  am]   | [fine <e>]                [yes]

``bfd_split`` and ``truncation_mode="keep_end"`` leave fragments whose beginning is elsewhere or gone. Nothing in such a
row says who speaks before its first header, so that is masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from sft_mask.core.arrays import Ints, offsets_of

if TYPE_CHECKING:
    from sft_mask.core.spans import Turns


@dataclass(frozen=True, slots=True)
class RowCutting:
    """How a trainer cut its rows.

    Attributes:
        kind: ``"wrapped"`` packing, ``"split"`` for ``bfd_split``, ``"tail"`` for ``keep_end``.
        length: tokens at which it cuts.
    """

    kind: Literal["wrapped", "split", "tail"]
    length: int


def joined_offsets(offsets: Ints, length: int) -> Ints:
    """Offsets of the texts that ``wrapped`` packing cut: a row of ``length`` tokens continues in the next.

    >>> joined_offsets(np.array([0, 8, 16, 21, 29]), 8).tolist()
    [0, 21, 29]
    """
    full = np.diff(offsets) == length
    return offsets[np.append(np.append(True, ~full[:-1]), True)] if len(full) else offsets


def cut_at(turns: Turns, offsets: Ints) -> Turns:
    """Turns of longer texts, cut where rows end; only the last part of a turn has its end-of-turn token."""
    if not len(turns):
        return turns
    first = np.searchsorted(offsets, turns.start, side="right") - 1
    last = np.searchsorted(offsets, turns.end) - 1
    parts = last - first + 1
    whole = turns.select(np.repeat(np.arange(len(turns)), parts))
    row = np.arange(len(whole)) - np.repeat(offsets_of(parts)[:-1], parts) + np.repeat(first, parts)
    start, end = np.maximum(whole.start, offsets[row]), np.minimum(whole.end, offsets[row + 1])
    is_last = whole.end <= offsets[row + 1]  # an earlier part continues in the next row: it is not a cut answer
    has_eot = whole.has_eot & (whole.eot_start < offsets[row + 1])
    return replace(
        whole,
        start=start,
        end=end,
        has_eot=has_eot,
        eot_start=np.where(has_eot, np.maximum(whole.eot_start, offsets[row]), end),
        header=np.maximum(whole.header, offsets[row]),
        cut=whole.cut & is_last,
        document=row,
    )
