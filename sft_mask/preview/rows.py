"""One row as a person should see it: the data model of the terminal view and the HTML page.

The tokens of a row are split into *runs* of the same weight and document, and each run is decoded as a whole, so that
東京 and 🙂 stay whole although their bytes are spread over several tokens. Two rules decide what a run shows:

* The texts of the runs, joined, are the bytes of the row: ``tokenizer.decode`` of all of it, plus the one space that
  SentencePiece adds in front and ``decode`` removes again.
* A character with tokens on both sides of a boundary is shown once, in the run of the greater weight (the earlier one
  if they are equal), because a token is trained if it holds any byte of the answer. The other run keeps its tokens and
  loses that text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby, pairwise, repeat
from typing import SupportsInt, TypeAlias

import numpy as np

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import label_ids, label_weights
from sft_mask.errors import DataError
from sft_mask.preview.cells import Cell, read_cells, visible
from sft_mask.preview.notebook import cut, quoted, row_html

_MOST_NAMED = 160
"""Characters of a row's heading in its short form."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is known about the tokens ``[start, end)`` of a row: who speaks, and why they are trained or not."""

    start: int
    end: int
    role: str = ""
    reason: str = ""
    turn: int | None = None
    """Number of the turn from 0; if None, a new turn begins with each new role and after each gap."""


NoteLike: TypeAlias = Note | tuple[int, int, str, str]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a run that is drawn in one style; ``count`` is above 1 for a special token that repeats (padding)."""

    text: str
    special: bool = False
    count: int = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The tokens ``[start, end)``: all of one weight (0.0 is masked) and of one document."""

    start: int
    end: int
    weight: float
    document: int
    segments: tuple[Segment, ...]

    @property
    def trained(self) -> bool:
        """Whether these tokens count in the loss."""
        return self.weight != 0

    @property
    def text(self) -> str:
        """Decoded; pass it through ``visible`` before showing it."""
        return "".join(segment.text * segment.count for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Picture:
    """The tokens ``[start, end)`` of an image (a video, a sound), shown as one piece."""

    start: int
    end: int
    kind: str = "image"
    thumbnail: str = ""
    """A small JPEG as a ``data:`` address, where the data hold the picture."""

    @property
    def text(self) -> str:
        """``⟨image × 256⟩``: what it is and how many tokens it has."""
        return f"⟨{self.kind} × {self.end - self.start}⟩"


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row, ready to be shown; made by ``build_row``."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    weights: tuple[float, ...]
    """One per token, not shifted; 0.0 where the label is ignored."""
    token_bytes: tuple[bytes, ...]
    """The bytes of each token."""
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    notes: tuple[Note, ...]
    documents: tuple[int, ...]
    """Lengths in tokens; one document unless the row is packed."""
    status: tuple[str, ...]
    """Such as ``"cut"`` or ``"dropped: no answer"``; filters use the part before the colon."""
    name: str
    pictures: tuple[Picture, ...] = ()
    """Images of the row; each is one cell."""
    lost: tuple[str, ...] = ()
    """What the messages hold and the row does not, a line each."""

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that count in the loss."""
        return sum(weight != 0 for weight in self.weights)

    @property
    def share(self) -> float:
        """``trained_tokens / tokens``, 0.0 for an empty row."""
        return self.trained_tokens / len(self.input_ids) if self.input_ids else 0.0

    @property
    def text(self) -> str:
        """The whole row, decoded."""
        return "".join(run.text for run in self.runs)

    @property
    def heading(self) -> str:
        """One line such as ``train 17 · 81 tokens, 23 trained (28.4 %) · cut``; safe to show."""
        facts = f"{len(self.input_ids):,} tokens, {self.trained_tokens:,} trained ({100 * self.share:.1f} %)"
        packed = f"{len(self.documents)} documents" if len(self.documents) > 1 else ""
        wrong = f"{len(self.wrong_labels):,} labels differ from their token" if self.wrong_labels else ""
        return visible(" · ".join(filter(None, (self.name, facts, packed, *self.status, wrong))))

    @property
    def wrong_labels(self) -> tuple[int, ...]:
        """Tokens whose label is another id than their own: something shifted or rebuilt the labels."""
        pairs = zip(self.input_ids, self.labels, strict=True)
        return tuple(at for at, (token, label) in enumerate(pairs) if label not in (IGNORE_INDEX, token))

    def __repr__(self) -> str:
        first = next((run.text for run in self.runs if run.trained), None)
        return f"<PreviewRow {cut(self.heading, _MOST_NAMED)}{'' if first is None else f': {quoted(first)}'}>"

    def _repr_html_(self) -> str:
        return row_html(self)


def build_row(
    tokenizer: object,
    input_ids: Iterable[int],
    labels: Iterable[int],
    *,
    weights: Iterable[float] | None = None,
    spans: Iterable[NoteLike] = (),
    documents: Iterable[int] | None = None,
    status: str | Iterable[str] = (),
    name: str = "",
    pictures: Sequence[Picture] = (),
    lost: Iterable[str] = (),
) -> PreviewRow:
    """Builds one row with its runs, cells and notes.

    Args:
        tokenizer: a fast tokenizer of ``transformers``; its vocabulary is read once.
        input_ids: ids of the row, not shifted: a list, or an array or tensor of one dimension.
        labels: one per token; a token is trained if its label is not -100. Labels may carry weights.
        weights: one per token, not shifted, 0 or more; by default those of the labels. They count only where the label
            is not -100.
        spans: what is known about the tokens, as notes or as ``(start, end, role, reason)``; where two overlap, the
            later one is shown.
        documents: lengths of the documents of a packed row, in tokens (``seq_lengths``).
        status: flags to filter by, such as ``"cut"`` or ``"dropped: no answer"``.
        name: begins the row's heading, such as ``"train 17"``.
        pictures: images in order; the tokens of each are shown as one piece.
        lost: what the messages hold and the row does not, a line each; shown beside the row.

    Raises:
        DataError: lengths that do not fit together, a negative weight, or a note outside the row.
    """
    ids = _integers(input_ids)
    encoded = np.array(_integers(labels), np.int64)
    kept = tuple(label_ids(encoded).tolist())
    notes = tuple(note if isinstance(note, Note) else Note(*note) for note in spans)
    lengths = (len(ids),) if documents is None else _integers(documents)
    given = tuple(label_weights(encoded).tolist() if weights is None else map(float, weights))
    _check(name, ids, given, {"labels": len(kept), "weights": len(given), "tokens in documents": sum(lengths)}, notes)
    seen = tuple(0.0 if label == IGNORE_INDEX else weight for label, weight in zip(kept, given, strict=True))
    token_bytes, cells = read_cells(tokenizer, ids)
    cells = tuple(_with_pictures(cells, pictures))
    document = chain.from_iterable(repeat(number, length) for number, length in enumerate(lengths))
    return PreviewRow(
        input_ids=ids,
        labels=kept,
        weights=seen,
        token_bytes=token_bytes,
        cells=cells,
        runs=_runs(cells, list(zip(seen, document, strict=True))),
        notes=tuple(_numbered(notes)),
        documents=lengths,
        status=(status,) if isinstance(status, str) else tuple(status),
        name=name,
        pictures=tuple(pictures),
        lost=tuple(lost),
    )


def _with_pictures(cells: Sequence[Cell], pictures: Sequence[Picture]) -> Iterator[Cell]:
    """The cells, with one for each picture in place of those of its tokens."""
    left = list(pictures)
    for cell in cells:
        while left and left[0].end <= cell.start:
            left.pop(0)
        if not left or cell.start < left[0].start:
            yield cell
        elif cell.start == left[0].start or cell.start < left[0].start < cell.end:
            yield Cell(left[0].start, left[0].end, left[0].text, special=True)


def _integers(values: Iterable[SupportsInt]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _check(
    name: str, ids: Sequence[int], weights: Sequence[float], lengths: dict[str, int], notes: Iterable[Note]
) -> None:
    row = f"row {name!r}" if name else "this row"
    for what, length in lengths.items():
        if length != len(ids):
            raise DataError(f"{row} has {len(ids)} input_ids but {length} {what}: pass one per token, not shifted.")
    if any(weight < 0 for weight in weights):
        raise DataError(f"{row} has a negative weight ({min(weights)}): weights are 0 or more.")
    for note in notes:
        if not 0 <= note.start <= note.end <= len(ids):
            raise DataError(
                f"{row} has {len(ids)} tokens, but a note is about [{note.start}, {note.end}): {note.reason!r}. "
                "Pass half-open spans in tokens of this row."
            )


def _numbered(notes: Iterable[Note]) -> Iterator[Note]:
    """The notes, each with the number of its turn."""
    turn, last = -1, None
    for note in notes:
        if note.turn is not None:
            turn = note.turn
        elif last is None or note.role != last.role or note.start != last.end:
            turn += 1
        last = note
        yield replace(note, turn=turn)


def _runs(cells: Iterable[Cell], keys: Sequence[tuple[float, int]]) -> tuple[Run, ...]:
    """Maximal runs of one key (weight, document), each with the text of the cells shown in it."""
    lengths = [len(list(group)) for _, group in groupby(keys)]
    run_of = list(chain.from_iterable(repeat(number, length) for number, length in enumerate(lengths)))
    shown: list[list[Cell]] = [[] for _ in lengths]
    for cell in cells:
        # a split character is shown in the run of the greater weight; of equals, max() keeps the first
        home = max(range(cell.start, cell.end), key=lambda at: keys[at][0])
        shown[run_of[home]].append(cell)
    bounds = pairwise(accumulate(lengths, initial=0))
    return tuple(
        Run(start, end, *keys[start], _segments(texts)) for (start, end), texts in zip(bounds, shown, strict=True)
    )


def _segments(cells: Iterable[Cell]) -> tuple[Segment, ...]:
    """Ordinary text joined; a special token alone, with a count where it repeats."""
    groups = [list(group) for _, group in groupby(cells, key=lambda cell: cell.special and cell.text)]
    return tuple(
        Segment(group[0].text, special=True, count=len(group))
        if group[0].special
        else Segment("".join(cell.text for cell in group))
        for group in groups
    )


def explain(row: PreviewRow, token: int) -> str:
    """Says why token number ``token`` of a row is trained or not.

    Args:
        row: one of :func:`sft_mask.preview.preview_rows`.
        token: counted from 0, or from the end if negative.

    Returns:
        ``"masked: inside the user turn that starts at token 14, marker '<|im_start|>user\\n' at 11-13"`` and the like.

    Raises:
        DataError: the row has no such token, or nothing is known about it (a row of ``build_row`` without ``spans``).
    """
    size = len(row.input_ids)
    if not -size <= token < size:
        raise DataError(f"The row has the tokens 0 to {size - 1}, so there is no token {token}.")
    at = token % size
    reasons = [note.reason for note in row.notes if note.start <= at < note.end and note.reason]
    if not reasons:
        raise DataError(
            f"Nothing is known about token {token} of this row: it was built without spans. Take the row from "
            "preview_rows(dataset, tokenizer) or preview_rows(trainer)."
        )
    return reasons[-1]
