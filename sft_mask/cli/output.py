"""What commands print: words in the terminal's width and colours, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_ENDLESS = 1_000_000


def console() -> Console:
    """Standard output; ``NO_COLOR`` and ``COLUMNS`` are respected, and what it cannot write becomes ``?``.

    A terminal wraps lines at its width; in a pipe they stay whole.
    """
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    as_wide_as_it_is = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, markup=False, emoji=False, width=None if as_wide_as_it_is else _ENDLESS)


def print_json(data: object) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def progress(rows: Any, total: int, what: str) -> Any:
    """The rows, with the progress bar of ``datasets``."""
    from datasets.utils import tqdm

    return tqdm(rows, total=total, desc=what, unit=" rows")
