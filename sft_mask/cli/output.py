"""What commands print: text in the terminal's width and colours, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNLIMITED = 1_000_000


def console() -> Console:
    """Standard output for ``rich``; respects ``NO_COLOR`` and ``COLUMNS``, and writes ``?`` for unknown characters.

    Lines wrap at the width of a terminal; in a pipe they stay whole.
    """
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, emoji=False, width=None if has_width else _UNLIMITED)


def print_json(data: object) -> None:
    """Prints one JSON object on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def progress(rows: object, total: int, what: str) -> Any:
    """Yields the rows with the progress bar of ``datasets``."""
    from datasets.utils import tqdm

    return tqdm(rows, total=total, desc=what, unit=" rows")
