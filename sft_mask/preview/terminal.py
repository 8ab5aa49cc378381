"""The coloured row in a terminal; without colour, trained text is in ⟦brackets⟧.

Colours come from the terminal's own palette, so that they are readable on dark and on light: trained text is green (a
smaller weight is less bold), masked text is dim, a trained special token is a green block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.text import Text

from sft_mask.preview.cells import visible
from sft_mask.preview.rows import PreviewRow, Run, Segment

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_BRACKETS = ("⟦⟧", "⟪⟫", "【】")


def draw_row(row: PreviewRow, *, colour: bool = True) -> Text:
    """The row as text; with ``colour=False`` trained runs are in brackets, with their weight unless it is 1."""
    text = Text(overflow="fold")
    greatest = max((run.weight for run in row.runs), default=0.0)
    brackets = _brackets(row)
    for document, runs in groupby(row.runs, key=lambda run: run.document):
        if len(row.documents) > 1:
            text.append(_document_rule(row, document, first=not text), "dim")
        for run in runs:
            text.append_text(_coloured(run, greatest) if colour else _bracketed(run, brackets))
    return text


@dataclass(frozen=True, slots=True)
class RowView:
    """A row for ``rich``: ``console.print(RowView(row))`` prints its heading, its text, what it lost, and a legend."""

    row: PreviewRow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = has_colour(console)
        yield Text(self.row.heading, style="bold")
        yield draw_row(self.row, colour=colour)
        yield from (Text(f"lost: {visible(line)}", style="yellow") for line in self.row.lost)
        yield legend(self.row, colour=colour)


def has_colour(console: Console) -> bool:
    """Whether a console shows colours."""
    return console.color_system is not None and not console.no_color


def legend(row: PreviewRow, *, colour: bool = True) -> Text:
    """What the colours or brackets of this row mean, one entry per weight in it."""
    weights = sorted({run.weight for run in row.runs if run.trained} or {1.0}, reverse=True)
    brackets = _brackets(row)
    if not colour:
        return Text(f"legend: {brackets[0]}trained{brackets[1]} masked")
    entries = [Text("legend:", style="dim")]
    for weight in weights:
        label = "trained" if weight == 1 else f"trained ×{weight:g}"
        entries.append(Text(label, style=_style(weight, weights[0])))
    entries.append(Text("masked", style="dim"))
    entries.append(Text("special token", style=_special_style(0.0, 1.0)))
    return Text("  ").join(entries)


def _brackets(row: PreviewRow) -> str:
    """A pair that does not occur in the row, or the first one if all do."""
    text = row.text
    return next((pair for pair in _BRACKETS if not set(pair) & set(text)), _BRACKETS[0])


def _document_rule(row: PreviewRow, document: int, *, first: bool) -> str:
    tokens = row.documents[document]
    trained = sum(run.end - run.start for run in row.runs if run.document == document and run.trained)
    rule = f"── document {document + 1} of {len(row.documents)} · {tokens:,} tokens, {trained:,} trained ──\n"
    return rule if first else "\n" + rule


def _bracketed(run: Run, brackets: str) -> Text:
    text = "".join(_shown(segment) for segment in run.segments)
    if not run.trained:
        return Text(text)
    weight = "" if run.weight == 1 else f"×{run.weight:g} "
    return Text(f"{brackets[0]}{weight}{text}{brackets[1]}")


def _coloured(run: Run, greatest: float) -> Text:
    text = Text()
    for segment in run.segments:
        style = (_special_style if segment.special else _style)(run.weight, greatest)
        for part, edge in _edges(_shown(segment)) if run.trained else [(_shown(segment), False)]:
            text.append(part, f"{style} underline" if edge else style)
    return text


def _edges(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a trained text, and whether they are spaces at its edge, which are invisible without underline."""
    body = text.strip(" ")
    left = len(text) - len(text.lstrip(" "))
    parts = ((text[:left], True), (body, False), (text[left + len(body) :], True))
    yield from ((part, edge) for part, edge in parts if part)


def _shown(segment: Segment) -> str:
    return visible(segment.text) + (f"×{segment.count}" if segment.count > 1 else "")


def _style(weight: float, greatest: float) -> str:
    if weight == 0:
        return "dim"
    part = weight / greatest
    return "bold green" if part > 2 / 3 else "green" if part > 1 / 3 else "dim green"


def _special_style(weight: float, greatest: float) -> str:
    return "dim cyan" if weight == 0 else f"{_style(weight, greatest)} reverse"
