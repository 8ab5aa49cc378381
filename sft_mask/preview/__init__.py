"""See a mask: one row with its trained tokens bright, in a terminal, in a browser or in a figure."""

from sft_mask.preview.cells import visible
from sft_mask.preview.rows import Note, PreviewRow, Run, build_row

__all__ = ["Note", "PreviewRow", "Run", "build_row", "visible"]
