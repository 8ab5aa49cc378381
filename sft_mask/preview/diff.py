"""Two masks of the same rows, compared token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby, repeat

from sft_mask.core.arrays import common_prefix_length
from sft_mask.errors import DataError
from sft_mask.preview.cells import visible
from sft_mask.preview.notebook import cut, mask_diff_html, row_diff_html
from sft_mask.preview.rows import PreviewRow
from sft_mask.report.counts import counted

_MOST_SHOWN = 20
"""Rows that differ and are kept to be shown; all are counted."""


@dataclass(frozen=True, slots=True)
class Change:
    """Tokens in which two rows differ: ``[left_start, left_end)`` and ``[right_start, right_end)``.

    With ``same_text`` the tokens are the same and only their weights differ.
    """

    left_start: int
    left_end: int
    right_start: int
    right_end: int
    same_text: bool


@dataclass(frozen=True, slots=True)
class RowDiff:
    """Two masks of one row, and where they differ."""

    left: PreviewRow
    right: PreviewRow
    changes: tuple[Change, ...]

    def lines(self) -> list[str]:
        """The token diff, a line or more per change.

        >>> from sft_mask.preview.rows import Cell
        >>> row = PreviewRow((7, 8), (7, 8), (1.0, 1.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> other = PreviewRow((7, 8), (7, -100), (1.0, 0.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> diff_rows(row, other).lines()
        ["token 1 '!': trained → masked"]
        """
        return [line for change in self.changes for line in self._of(change)]

    def __repr__(self) -> str:
        return f"<RowDiff {cut(visible(self.left.name), 80)}: {counted(len(self.changes), 'change')}>"

    def _repr_html_(self) -> str:
        return row_diff_html(self)

    def _of(self, change: Change) -> Iterator[str]:
        left = list(range(change.left_start, change.left_end))
        right = list(range(change.right_start, change.right_end))
        if not change.same_text:
            renumbered = [self.left.token_bytes[at] for at in left] == [self.right.token_bytes[at] for at in right]
            yield f"{_side(self.left, left, ids=renumbered)} → {_side(self.right, right, ids=renumbered)}"
            return
        pairs = ((self.left.weights[one], self.right.weights[two]) for one, two in zip(left, right, strict=True))
        for (before, after), group in groupby(enumerate(pairs), key=lambda pair: pair[1]):
            tokens = [left[at] for at, _ in group]
            yield f"{_tokens(self.left, tokens)}: {_state(before)} → {_state(after)}"


def _side(row: PreviewRow, tokens: Sequence[int], *, ids: bool) -> str:
    if not tokens:
        return "nothing"
    states = dict.fromkeys(_state(row.weights[token]) for token in tokens)
    numbers = f" ids {', '.join(str(row.input_ids[token]) for token in tokens[:8])}" if ids else ""
    return f"{_tokens(row, tokens)}{numbers} ({' and '.join(states)})"


def _tokens(row: PreviewRow, tokens: Sequence[int]) -> str:
    span = f"token {tokens[0]}" if len(tokens) == 1 else f"tokens {tokens[0]}-{tokens[-1]}"
    text = b"".join(row.token_bytes[token] for token in tokens).decode(errors="replace")
    return f"{span} {text if len(text) <= 80 else text[:79] + '…'!r}"


def _state(weight: float) -> str:
    return "masked" if not weight else "trained" if weight == 1 else f"trained ×{weight:g}"


def diff_rows(left: PreviewRow, right: PreviewRow, *, by_id: bool = False) -> RowDiff:
    """Returns where two masks of one row differ; rows of different tokens are aligned by their text.

    Tokens are the same if their texts are; with ``by_id`` their ids must be equal too.
    """
    sides = [_keys(row, by_id=by_id) for row in (left, right)]
    head = common_prefix_length(sides[0], sides[1])
    rest = [side[head:] for side in sides]
    tail = common_prefix_length(rest[0][::-1], rest[1][::-1])
    middle = [side[: len(side) - tail] for side in rest]  # only this is matched: the matcher is quadratic
    changes = list(_weight_changes(left, right, 0, 0, head))
    matcher = SequenceMatcher(None, middle[0], middle[1], autojunk=False)
    for tag, low, high, other_low, other_high in matcher.get_opcodes():
        if tag == "equal":
            changes.extend(_weight_changes(left, right, head + low, head + other_low, high - low))
        else:
            changes.append(Change(head + low, head + high, head + other_low, head + other_high, False))
    changes.extend(_weight_changes(left, right, len(sides[0]) - tail, len(sides[1]) - tail, tail))
    return RowDiff(left, right, tuple(changes))


def _keys(row: PreviewRow, *, by_id: bool) -> list[tuple[bytes, int]]:
    ids = row.input_ids if by_id else repeat(0)
    return list(zip(row.token_bytes, ids, strict=by_id))


def _weight_changes(left: PreviewRow, right: PreviewRow, low: int, other_low: int, size: int) -> Iterator[Change]:
    """Runs of tokens with the same text and different weights."""
    different = [left.weights[low + at] != right.weights[other_low + at] for at in range(size)]
    for differs, group in groupby(range(size), key=different.__getitem__):
        places = list(group)
        if differs:
            first, last = places[0], places[-1] + 1
            yield Change(low + first, low + last, other_low + first, other_low + last, True)


@dataclass(slots=True)
class MaskDiff:
    """Two masks of the same rows.

    Attributes:
        rows: rows compared.
        different: rows that differ.
        tokens: tokens of the left rows that differ.
        shown: the first rows that differ.
    """

    rows: int = 0
    different: int = 0
    tokens: int = 0
    shown: list[RowDiff] = field(default_factory=list)

    def add(self, row: RowDiff) -> None:
        """Counts a row."""
        self.rows += 1
        if row.changes:
            self.different += 1
            self.tokens += sum(change.left_end - change.left_start for change in row.changes)
            self.shown.extend([row] if len(self.shown) < _MOST_SHOWN else [])

    def __str__(self) -> str:
        if not self.different:
            return f"The two masks are equal in all {self.rows:,} rows."
        return f"{self.different:,} of {self.rows:,} rows differ, in {self.tokens:,} tokens."

    def __repr__(self) -> str:
        return f"<MaskDiff {str(self).removesuffix('.')}>"

    def _repr_html_(self) -> str:
        return mask_diff_html(self)

    def to_dict(self) -> dict[str, object]:
        """For ``json.dumps``; the first rows that differ with their token diff."""
        shown = [{"row": row.left.name, "changes": row.lines()} for row in self.shown]
        return {"rows": self.rows, "rows_different": self.different, "tokens": self.tokens, "first": shown}


def compare_masks(left: Iterable[PreviewRow], right: Iterable[PreviewRow]) -> MaskDiff:
    """Compares two masks of the same rows: two settings, two tokenizers, two chat templates.

    Args:
        left: rows of :func:`sft_mask.preview.preview_rows`.
        right: the same rows, masked in another way.

    Raises:
        DataError: the two do not have the same number of rows.
    """
    diff = MaskDiff()
    try:
        for one, two in zip(left, right, strict=True):
            diff.add(diff_rows(one, two))
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise DataError("The two masks do not have the same number of rows: give the same data to both.") from error
    return diff
