"""See a mask: one row with its trained tokens bright, in a terminal, in a browser or in a figure.

``rich`` is needed by ``sft_mask.preview.terminal`` alone, and matplotlib only when a figure is drawn.
"""

from sft_mask.preview.cells import visible
from sft_mask.preview.figure import draw_figure
from sft_mask.preview.html import write_html
from sft_mask.preview.rows import Note, PreviewRow, Run, build_row
from sft_mask.preview.source import PreviewRows, preview_rows

__all__ = [
    "Note",
    "PreviewRow",
    "PreviewRows",
    "Run",
    "build_row",
    "draw_figure",
    "preview_rows",
    "visible",
    "write_html",
]
