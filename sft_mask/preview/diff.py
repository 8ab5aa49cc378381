"""Two masks of the same rows, compared token by token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import groupby, repeat

from sft_mask.errors import DataError
from sft_mask.preview.rows import PreviewRow

_KEPT = 20
"""Rows that differ and are kept to be shown; all of them are counted."""


@dataclass(frozen=True, slots=True)
class Change:
    """A stretch in which two rows differ: tokens ``[left_start, left_stop)`` and ``[right_start, right_stop)``.

    ``same_text`` tells whether the two hold the same tokens, of which only the training differs.
    """

    left_start: int
    left_stop: int
    right_start: int
    right_stop: int
    same_text: bool


@dataclass(frozen=True, slots=True)
class RowDiff:
    """Two masks of one row, and where they differ."""

    left: PreviewRow
    right: PreviewRow
    changes: tuple[Change, ...]

    def lines(self) -> list[str]:
        """The token diff, one line a change.

        >>> from sft_mask.preview.rows import Cell
        >>> row = PreviewRow((7, 8), (7, 8), (1.0, 1.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> other = PreviewRow((7, 8), (7, -100), (1.0, 0.0), (b"Hi", b"!"), (), (), (), (2,), (), "row 0")
        >>> diff_rows(row, other).lines()
        ["token 1 '!': trained → masked"]
        """
        return [line for change in self.changes for line in self._of(change)]

    def _of(self, change: Change) -> Iterator[str]:
        left = list(range(change.left_start, change.left_stop))
        right = list(range(change.right_start, change.right_stop))
        if not change.same_text:
            renumbered = [self.left.pieces[at] for at in left] == [self.right.pieces[at] for at in right]
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
    text = b"".join(row.pieces[token] for token in tokens).decode(errors="replace")
    return f"{span} {text if len(text) <= 80 else text[:79] + '…'!r}"


def _state(weight: float) -> str:
    return "masked" if not weight else "trained" if weight == 1 else f"trained ×{weight:g}"


def diff_rows(left: PreviewRow, right: PreviewRow, *, by_id: bool = False) -> RowDiff:
    """Where two masks of one row differ; rows of different tokens are laid along each other.

    Tokens are the same if their texts are, and with ``by_id`` only if their ids are, too.
    """
    sides = [_keys(row, by_id=by_id) for row in (left, right)]
    start = _shared(sides[0], sides[1])
    rest = [side[start:] for side in sides]
    end = _shared(rest[0][::-1], rest[1][::-1])
    middle = [side[: len(side) - end] for side in rest]
    changes = list(_unlike_weights(left, right, 0, 0, start))
    for tag, low, high, other_low, other_high in SequenceMatcher(
        None, middle[0], middle[1], autojunk=False
    ).get_opcodes():
        if tag == "equal":
            changes.extend(_unlike_weights(left, right, start + low, start + other_low, high - low))
        else:
            changes.append(Change(start + low, start + high, start + other_low, start + other_high, False))
    changes.extend(_unlike_weights(left, right, len(sides[0]) - end, len(sides[1]) - end, end))
    return RowDiff(left, right, tuple(changes))


def _keys(row: PreviewRow, *, by_id: bool) -> list[tuple[bytes, int]]:
    ids = row.input_ids if by_id else repeat(0)
    return list(zip(row.pieces, ids, strict=by_id))


def _shared(left: Sequence[object], right: Sequence[object]) -> int:
    """Length of the beginning that both have."""
    unlike = (at for at, (one, two) in enumerate(zip(left, right, strict=False)) if one != two)
    return next(unlike, min(len(left), len(right)))


def _unlike_weights(left: PreviewRow, right: PreviewRow, low: int, other_low: int, size: int) -> Iterator[Change]:
    """Runs of tokens with the same text that are trained unlike."""
    unlike = [left.weights[low + at] != right.weights[other_low + at] for at in range(size)]
    for differs, group in groupby(range(size), key=unlike.__getitem__):
        places = list(group)
        if differs:
            first, last = places[0], places[-1] + 1
            yield Change(low + first, low + last, other_low + first, other_low + last, True)


@dataclass(slots=True)
class MaskDiff:
    """Two masks of the same rows.

    Attributes:
        rows: that were compared.
        unlike: rows that differ.
        tokens: of the left rows, in stretches that differ.
        shown: the first rows that differ.
    """

    rows: int = 0
    unlike: int = 0
    tokens: int = 0
    shown: list[RowDiff] = field(default_factory=list)

    def add(self, row: RowDiff) -> None:
        """Counts a row."""
        self.rows += 1
        if row.changes:
            self.unlike += 1
            self.tokens += sum(change.left_stop - change.left_start for change in row.changes)
            self.shown.extend([row] if len(self.shown) < _KEPT else [])

    def __str__(self) -> str:
        if not self.unlike:
            return f"The two masks are equal in all {self.rows:,} rows."
        return f"{self.unlike:,} of {self.rows:,} rows differ, in {self.tokens:,} tokens."

    def to_dict(self) -> dict[str, object]:
        """Ready for ``json.dumps``; the first rows that differ with their token diff."""
        shown = [{"row": row.left.name, "changes": row.lines()} for row in self.shown]
        return {"rows": self.rows, "rows_unlike": self.unlike, "tokens": self.tokens, "first": shown}


def compare_masks(left: Iterable[PreviewRow], right: Iterable[PreviewRow]) -> MaskDiff:
    """Holds two masks of the same rows side by side: two settings, two tokenizers, two chat templates.

    Args:
        left: rows of :func:`sft_mask.preview.preview_rows`.
        right: the same rows, masked otherwise.

    Raises:
        DataError: the two have not the same number of rows.
    """
    diff = MaskDiff()
    try:
        for one, two in zip(left, right, strict=True):
            diff.add(diff_rows(one, two))
    except ValueError as error:
        if "zip()" not in str(error):
            raise
        raise DataError("The two masks have not the same number of rows: give the same data to both.") from error
    return diff
