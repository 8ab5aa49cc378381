"""Two masks of one row in a terminal: side by side if it is wide enough, else one below the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sft_mask.preview.cells import visible
from sft_mask.preview.terminal import draw_row, has_colour

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sft_mask.preview.diff import RowDiff

_WIDE = 100


@dataclass(frozen=True, slots=True)
class DiffView:
    """A row with two masks for ``rich``: both coloured, and the token diff below.

    Attributes:
        row: made by :func:`sft_mask.preview.diff.diff_rows`.
        names: names of the two sides.
        most_lines: lines of the token diff to show; the rest is counted.
    """

    row: RowDiff
    names: tuple[str, str] = ("one", "other")
    most_lines: int = 8

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        sides = (self.row.left, self.row.right)
        heads = [Text(f"{name}: {side.heading}", style="bold") for name, side in zip(self.names, sides, strict=True)]
        texts = [draw_row(side, colour=has_colour(console)) for side in sides]
        if options.max_width >= _WIDE and console.is_terminal:
            table = Table(box=None, expand=True, padding=(0, 1), show_header=True)
            for head in heads:
                table.add_column(head, ratio=1, overflow="fold")
            table.add_row(*texts)
            yield table
        else:
            for head, text in zip(heads, texts, strict=True):
                yield head
                yield text
        lines = self.row.lines()
        for line in lines[: self.most_lines]:
            yield Text(f"  {visible(line)}", style="yellow")
        if len(lines) > self.most_lines:
            yield Text(f"  and {len(lines) - self.most_lines} more", style="dim")
