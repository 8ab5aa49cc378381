"""Two masks of one row in a terminal: beside each other where it is wide enough, else below each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sft_mask.preview.cells import visible
from sft_mask.preview.terminal import draw_row

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sft_mask.preview.diff import RowDiff

_WIDE = 100


@dataclass(frozen=True, slots=True)
class DiffView:
    """A row with two masks for ``rich``: both coloured, and the token diff below.

    Attributes:
        row: of :func:`sft_mask.preview.diff.diff_rows`.
        names: what the two sides are called.
        most_lines: of the token diff; the rest is counted.
    """

    row: RowDiff
    names: tuple[str, str] = ("one", "other")
    most_lines: int = 8

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colour = console.color_system is not None and not console.no_color
        sides = [(name, side) for name, side in zip(self.names, (self.row.left, self.row.right), strict=True)]
        heads = [Text(f"{name}: {side.heading}", style="bold") for name, side in sides]
        texts = [draw_row(side, colour=colour) for _, side in sides]
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
        yield from self._lines()

    def _lines(self) -> RenderResult:
        lines = self.row.lines()
        for line in lines[: self.most_lines]:
            yield Text(f"  {visible(line)}", style="yellow")
        if len(lines) > self.most_lines:
            yield Text(f"  and {len(lines) - self.most_lines} more", style="dim")
