"""What commands print: text in the terminal's width and colours, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from sft_mask.cli.words import in_shell_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

_UNLIMITED = 1_000_000


def console() -> Console:
    """Standard output for ``rich``; respects ``NO_COLOR`` and ``COLUMNS``, and writes ``?`` for unknown characters.

    Lines wrap at the width of a terminal; in a pipe they stay whole.
    """
    from rich.console import Console

    class Printing(Console):
        def on_broken_pipe(self) -> None:
            """Has the command end with the shell's own code; rich ends with 1."""
            raise BrokenPipeError

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Printing(highlight=False, markup=False, emoji=False, width=None if has_width else _UNLIMITED)


def in_words_for_the_shell(report: object) -> Text:
    """What an object prints, with the options of the command line for the arguments of Python."""
    from rich.text import Text

    lines = report.__rich__().split("\n")  # type: ignore[attr-defined]
    return Text("\n").join(Text(in_shell_words(line.plain), style=line.style or _style(line)) for line in lines)


def _style(line: Text) -> str:
    return str(line.spans[0].style) if line.spans else ""


def print_json(data: object) -> None:
    """Prints one JSON object on standard output."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def progress(rows: object, total: int, what: str) -> Any:
    """Yields the rows with the progress bar of ``datasets``."""
    from datasets.utils import tqdm

    return tqdm(rows, total=total, desc=what, unit=" rows")
