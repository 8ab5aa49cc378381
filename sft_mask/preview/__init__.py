"""See a mask: rows with their trained tokens bright, in a terminal or in a browser.

``rich`` is imported by ``sft_mask.preview.terminal`` and ``sft_mask.preview.side_by_side`` alone.
"""

from sft_mask.preview.cells import visible
from sft_mask.preview.html import write_html
from sft_mask.preview.rows import Note, PreviewRow, Run, build_row
from sft_mask.preview.source import PreviewRows, preview_rows

__all__ = [
    "Note",
    "PreviewRow",
    "PreviewRows",
    "Run",
    "build_row",
    "preview_rows",
    "visible",
    "write_html",
]
