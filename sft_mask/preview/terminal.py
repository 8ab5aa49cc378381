"""The coloured row in a terminal; without colour, trained text is in ⟦brackets⟧.

Colours come from the terminal's own palette, so that they are readable on dark and on light: trained text is green (a
smaller weight is less bold), masked text is dim, a trained special token is a green block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, zip_longest
from typing import TYPE_CHECKING

from rich.cells import cell_len
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


@dataclass(frozen=True, slots=True)
class ReasonsView:
    """Why the tokens of a row are trained or not, for ``rich``: a part per line, each column wrapped under itself.

    >>> from rich.console import Console
    >>> from sft_mask.preview import Note
    >>> row = PreviewRow((7,), (7,), (1.0,), (b"Hi",), (), (), (Note(0, 1, "", "trained: the answer"),), (1,), (), "")
    >>> Console(width=26).print(ReasonsView(row))
    0-0  Hi  trained: the
             answer
    """

    row: PreviewRow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        notes = self.row.notes
        spans = [f"{note.start}-{note.end - 1}" for note in notes]
        texts = [_short(b"".join(self.row.token_bytes[note.start : note.end])) for note in notes]
        first = max(map(len, spans), default=0)
        second = min(max(map(cell_len, texts), default=0), options.max_width // 4)
        third = max(options.max_width - first - second - 4, 1)
        for note, span, text in zip(notes, spans, texts, strict=True):
            style = "" if note.reason.startswith("trained") else "dim"
            left = Text(text).wrap(console, max(second, 1), overflow="fold")
            right = Text(visible(note.reason)).wrap(console, third, overflow="fold")
            for number, (part, words) in enumerate(zip_longest(left, right, fillvalue=Text())):
                part.truncate(second, pad=True)
                head = span if number == 0 else ""
                yield Text(f"{head:>{first}}  {part.plain}  {words.plain.rstrip()}".rstrip(), style=style)


def _short(token_bytes: bytes, width: int = 30) -> str:
    text = visible(token_bytes.decode(errors="replace")).replace("\n", "")
    return text if len(text) <= width else f"{text[: width - 1]}…"


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
