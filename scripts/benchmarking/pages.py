"""Tables that scripts write into the docs."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def write_between(page: Path, mark: str, table: str) -> None:
    """Replaces what is between ``<!-- mark -->`` and ``<!-- /mark -->`` in a page."""
    place = rf"(?<=<!-- {mark} -->\n).*?(?=<!-- /{mark} -->)"
    made, count = re.subn(place, lambda _: table + "\n", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    if count != 1:
        sys.exit(f"{page} has no place for the table")
    page.write_text(made, encoding="utf-8")
    print(f"Written to {page}")
