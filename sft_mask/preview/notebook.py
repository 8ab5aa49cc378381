"""Rows and diffs in a notebook: the look of the page in small, bounded however long a row is, and without a script."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice, repeat
from typing import TYPE_CHECKING, TypeAlias

from sft_mask.preview.cells import Cell, cells_of, visible
from sft_mask.preview.pictures import ADDRESS
from sft_mask.report.counts import counted
from sft_mask.report.notebook import element, escaped, folded, meter, panel

if TYPE_CHECKING:
    from sft_mask.preview.diff import MaskDiff, RowDiff
    from sft_mask.preview.rows import Note, PreviewRow

_MOST_ROWS = 5
_MOST_LINES = 8
_MOST_QUOTED = 60
_MOST_RUNS = 120
_MOST_CHARACTERS = 800
"""Of a run of tokens; of a longer one the ends are shown, because there the mask changes."""
_LEGEND = (
    '<div class="legend"><mark>trained</mark> · masked · <span class="special">special token</span> · '
    "hold the pointer over a text to see why</div>"
)


def cut(text: str, most: int) -> str:
    """The beginning of a line, if it is longer than ``most`` characters.

    >>> cut("Lima is the capital of Peru.", 8)
    'Lima is…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def quoted(text: str) -> str:
    """The beginning of a text on one line, in quotes.

    >>> quoted("Lima.\\nIt is the capital of Peru.")
    "'Lima.↵It is the capital of Peru.'"
    """
    return f"'{cut(visible(text[: _MOST_QUOTED + 1]).replace(chr(10), ''), _MOST_QUOTED)}'"


def row_html(row: PreviewRow) -> str:
    """One row: its heading, what it lost, and its text turn by turn."""
    return panel([element(row.heading, "head"), meter(row.share), _LEGEND, *_body(row)])


def rows_html(rows: Sequence[PreviewRow], name: str) -> str:
    """The first rows, each to be opened; the first one is."""
    parts = [element(f"{name}: {counted(len(rows), 'row')}", "head"), _LEGEND if rows else ""]
    for number, row in enumerate(rows[:_MOST_ROWS]):
        parts.append(folded(row.heading, meter(row.share) + "".join(_body(row)), is_open=number == 0))
    if len(rows) > _MOST_ROWS:
        more = f"and {len(rows) - _MOST_ROWS:,} more, such as rows[{_MOST_ROWS}]; write_html(rows, path) shows them all"
        parts.append(element(more, "faint"))
    return panel(parts)


def row_diff_html(diff: RowDiff) -> str:
    """Two masks of a row, next to each other where there is space."""
    return panel([element(diff.left.name, "head"), _LEGEND, *_pair(diff)])


def mask_diff_html(diff: MaskDiff) -> str:
    """What differs in numbers, and the first rows that do."""
    parts = [element(str(diff), "head"), _LEGEND if diff.shown else ""]
    for number, row in enumerate(diff.shown[:_MOST_ROWS]):
        parts.append(folded(visible(row.left.name), "".join(_pair(row)), is_open=number == 0))
    if diff.different > _MOST_ROWS and diff.shown:
        parts.append(element(f"and {diff.different - _MOST_ROWS:,} more rows that differ", "faint"))
    return panel(parts)


def _pair(diff: RowDiff) -> Iterator[str]:
    left, right = set[int](), set[int]()
    for change in diff.changes:
        left.update(range(change.left_start, change.left_end))
        right.update(range(change.right_start, change.right_end))
    sides = zip(("left", "right"), (diff.left, diff.right), (left, right), strict=True)
    columns = "".join(
        f"<div>{element(f'{name}: {row.heading}', 'faint')}{''.join(_body(row, changed))}</div>"
        for name, row, changed in sides
    )
    yield f'<div class="pair">{columns}</div>'
    yield from _lines(list(map(visible, diff.lines())))


def _lines(lines: Sequence[str]) -> Iterator[str]:
    yield from (element(line, "warn") for line in lines[:_MOST_LINES])
    if len(lines) > _MOST_LINES:
        yield element(f"and {len(lines) - _MOST_LINES:,} more", "warn")


@dataclass(frozen=True, slots=True)
class _Place:
    """What is the same of all tokens that are drawn as one."""

    document: int
    turn: int
    role: str
    reason: str
    weight: float
    special: str
    """Text of a control token, which is drawn alone."""
    changed: bool


_Piece: TypeAlias = tuple[_Place, list[Cell]]


def _body(row: PreviewRow, changed: Collection[int] = ()) -> Iterator[str]:
    yield from _lines([f"lost: {visible(line)}" for line in row.lost])
    greatest = max((run.weight for run in row.runs), default=0.0)
    weights = sorted({run.weight for run in row.runs if run.trained} - {1.0}, reverse=True)
    if weights:
        keys = (f"<mark{_shade(weight, greatest)}>trained ×{weight:g}</mark>" for weight in weights[:_MOST_LINES])
        yield f'<div class="legend">{" · ".join(keys)}{" …" if len(weights) > _MOST_LINES else ""}</div>'
    pictures = {picture.start: picture.thumbnail for picture in row.pictures if picture.thumbnail.startswith(ADDRESS)}
    shown = list(islice(_pieces(row, changed), _MOST_RUNS))
    for document, of_document in groupby(shown, key=lambda piece: piece[0].document):
        if len(row.documents) > 1:
            tokens = counted(row.documents[document], "token")
            yield element(f"document {document + 1} of {len(row.documents)} · {tokens}", "faint group")
        for _, turn in groupby(of_document, key=lambda piece: piece[0].turn):
            yield _turn(list(turn), greatest, pictures)
    left = len(row.input_ids) - shown[-1][1][-1].end if shown else 0
    if left:
        yield element(f"and {counted(left, 'more token')}", "left-out")


def _pieces(row: PreviewRow, changed: Collection[int]) -> Iterator[_Piece]:
    size = len(row.input_ids)
    notes: list[Note | None] = [None] * size
    for note in row.notes:  # where two overlap, the later one is shown
        notes[note.start : note.end] = [note] * (note.end - note.start)
    documents = [run.document for run in row.runs for _ in range(run.start, run.end)]

    def place(cell: Cell) -> _Place:
        at = max(range(cell.start, cell.end), key=row.weights.__getitem__)
        note = notes[at]
        return _Place(
            documents[at],
            -1 if note is None or note.turn is None else note.turn,
            note.role if note else "",
            note.reason if note else "",
            row.weights[at],
            cell.text if cell.special else "",
            any(token in changed for token in range(cell.start, cell.end)),
        )

    cells = row.cells or tuple(cells_of(row.token_bytes, list(repeat(False, size))))  # a snapshot keeps bytes only
    for same, group in groupby(cells, key=place):
        yield same, list(group)


def _turn(pieces: Sequence[_Piece], greatest: float, pictures: dict[int, str]) -> str:
    role = pieces[0][0].role
    head = f'<span class="role">{escaped(visible(role))} </span>' if role else ""
    some = " some" if any(place.weight for place, _ in pieces) else ""
    runs = "".join(_run(*piece, greatest, pictures) for piece in pieces)
    return f'<div class="turn{some}" dir="auto">{head}{runs}</div>'


def _run(place: _Place, cells: Sequence[Cell], greatest: float, pictures: dict[int, str]) -> str:
    kinds = " ".join(name for name, holds in (("special", place.special), ("changed", place.changed)) if holds)
    attributes = f' class="{kinds}"' if kinds else ""
    weight = f" (weight {place.weight:g})" if place.weight not in (0, 1) else ""
    if place.reason or weight:
        attributes += f' title="{escaped(visible(place.reason + weight).strip())}"'
    attributes += _shade(place.weight, greatest)
    text = _text(place, cells)
    images = "".join(f'<img alt="" src="{escaped(pictures[cell.start])}">' for cell in cells if cell.start in pictures)
    tag = "mark" if place.weight else "span"
    return f"<{tag}{attributes}>{images}{text}</{tag}>"


def _shade(weight: float, greatest: float) -> str:
    """How strong the colour is; that of the greatest weight is the usual one."""
    return "" if weight in (0, greatest) else f' style="--shade:{0.25 + 0.75 * weight / greatest:.2f}"'


def _text(place: _Place, cells: Sequence[Cell]) -> str:
    if place.special:
        return escaped(visible(place.special) + (f"×{len(cells):,}" if len(cells) > 1 else ""))
    text = "".join(cell.text for cell in cells)
    if len(text) <= _MOST_CHARACTERS:
        return escaped(visible(text))
    head, tail = text[: _MOST_CHARACTERS // 2], text[-_MOST_CHARACTERS // 2 :]
    left_out = f'<span class="left-out"> ⋯ {len(text) - len(head) - len(tail):,} characters ⋯ </span>'
    return escaped(visible(head)) + left_out + escaped(visible(tail))
