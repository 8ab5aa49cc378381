"""One row as a matplotlib figure, for a paper or a notebook: a grid of characters, trained ones on a green ground."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from sft_mask.preview.cells import visible
from sft_mask.preview.rows import PreviewRow, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINED, NEGATIVE, INK, MASKED = "#2fae63", "#c2459d", "#0f2418", "#7a7d84"
FONTS = ("DejaVu Sans Mono", "Noto Sans Mono CJK JP", "Noto Sans CJK JP", "Hiragino Sans", "Yu Gothic", "Symbola")
"""Tried in this order for each character; those that are not installed are left out."""
FONT_SIZE = 9.0
ADVANCE = 0.602
"""Width of a character of DejaVu Sans Mono, in parts of the font size."""
LEADING = 1.7
"""Distance of two lines, in parts of the font size."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one run on one line of the grid; a wide character takes two columns and is a piece of its own."""

    line: int
    column: int
    columns: int
    text: str
    run: Run


def draw_figure(row: PreviewRow, *, width: int = 88, max_lines: int = 80) -> Figure:
    """The row as text in ``width`` columns; the weight is the shade, a negative weight another hue.

    The figure belongs to no window and to no ``pyplot`` state: ``draw_figure(row).savefig("row.pdf")``. Lines after
    ``max_lines`` are counted and not drawn.

    Raises:
        ImportError: matplotlib is not installed; it comes with ``pip install 'sft-mask[viz]'``.
    """
    pieces = list(layout(row, width))
    lines = 1 + max((piece.line for piece in pieces), default=0)
    drawn = min(lines, max_lines)
    size = ((width + 2) * ADVANCE * FONT_SIZE / 72, (drawn + 2) * LEADING * FONT_SIZE / 72)
    figure = new_figure(size)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0), xlim=(-1, width + 1), ylim=(drawn + 0.5, -1.5), facecolor="white")
    axes.axis("off")
    _write(axes, 0, -1, row.heading, INK)
    greatest = max((abs(run.weight) for run in row.runs), default=0.0)
    for above, piece in pairwise([None, *pieces]):
        if piece and piece.line < drawn:
            _draw(axes, piece, greatest)
            if above and above.run.document != piece.run.document:
                axes.axhline(piece.line - 0.5, color=MASKED, linewidth=0.6, linestyle=":")
    if lines > drawn:
        _write(axes, 0, drawn, f"… {lines - drawn:,} more lines", MASKED)
    return figure


def new_figure(size: tuple[float, float]) -> Figure:
    """An empty figure, in inches, that belongs to no window.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a figure needs matplotlib: pip install 'sft-mask[viz]'") from error
    return Figure(figsize=size, facecolor="white")


def layout(row: PreviewRow, width: int) -> Iterator[Piece]:
    """The pieces of each line: broken after newlines, else after the last blank that fits, else anywhere.

    A new document begins on a new line.
    """
    line = 0
    for _, runs in groupby(row.runs, key=lambda run: run.document):
        characters = [(character, run) for run in runs for character in _shown(run)]
        for start, stop in _broken([character for character, _ in characters], width):
            yield from _pieces(characters[start:stop], line)
            line += 1


def _shown(run: Run) -> list[str]:
    """Characters of a run, each with the marks that take no column of their own."""
    found: list[str] = []
    for segment in run.segments:
        count = f"×{segment.count}" if segment.count > 1 else ""
        for character in visible(segment.text).replace("\t", "   ") + count:
            if found and character != "\n" and not _columns(character):
                found[-1] += character
            else:
                found.append(character)
    return found


def _columns(character: str) -> int:
    first = character[0]
    if unicodedata.category(first) in {"Mn", "Me", "Cf", "Cc"}:
        return 0
    return 2 if unicodedata.east_asian_width(first) in "WF" else 1


def _broken(characters: list[str], width: int) -> Iterator[tuple[int, int]]:
    """Half-open lines over the characters."""
    start, used, blank = 0, 0, 0
    for at, character in enumerate(characters):
        if used + _columns(character) > width:
            stop = blank if blank > start else at
            yield start, stop
            start, used = stop, sum(_columns(moved) for moved in characters[stop:at])
        used += _columns(character)
        if character == "\n":
            yield start, at + 1
            start, used = at + 1, 0
        elif character == " ":
            blank = at + 1
    if start < len(characters):
        yield start, len(characters)


def _pieces(characters: list[tuple[str, Run]], line: int) -> Iterator[Piece]:
    column = 0
    keyed = groupby(enumerate(characters), key=lambda item: (item[1][1].start, _columns(item[1][0]) > 1 and item[0]))
    for _, group in keyed:
        members = [character for _, character in group]
        text = "".join(character for character, _ in members).rstrip("\n")
        columns = sum(_columns(character) for character, _ in members)
        if columns:
            yield Piece(line, column, columns, text, members[0][1])
        column += columns


def _draw(axes: Axes, piece: Piece, greatest: float) -> None:
    if not piece.run.trained:
        _write(axes, piece.column, piece.line, piece.text, MASKED)
        return
    hue = TRAINED if piece.run.weight > 0 else NEGATIVE
    shade = 0.12 + 0.30 * abs(piece.run.weight) / greatest
    left, right = piece.column, piece.column + piece.columns
    axes.fill_between([left, right], piece.line - 0.45, piece.line + 0.45, color=hue, alpha=shade, linewidth=0)
    _write(axes, piece.column, piece.line, piece.text, INK)


def _write(axes: Axes, column: int, line: int, text: str, colour: str) -> None:
    """Text in short stretches, each at its column: hinting makes letters a little wider or narrower than the grid.

    A dollar sign opens no formula, whatever the reader's settings say.
    """
    style: dict[str, Any] = {
        "color": colour,
        "fontsize": FONT_SIZE,
        "fontfamily": fonts(),
        "verticalalignment": "center",
    }
    for stretch in re.finditer(r"[!-~]{1,8}|[^\s!-~]+", text):
        at = column + sum(map(_columns, text[: stretch.start()]))
        axes.text(at, line, stretch.group(), parse_math=False, usetex=False, **style)


@cache
def fonts() -> list[str]:
    """The fonts that are installed, of those that are tried."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [name for name in FONTS if name in installed]
