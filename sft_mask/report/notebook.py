"""What a notebook shows of a report, a row, a diagnosis: HTML without scripts, with every text escaped.

The colours are those of the page of ``write_html``, light or dark as the notebook is. Where a viewer removes styles
(GitHub does), trained text is still marked, since it is in ``<mark>``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

_LINE = re.compile(r"  (?P<what>[a-z][a-z -]*?)(?:: +| {2,})(?P<text>.+)", re.DOTALL)


def escaped(text: str) -> str:
    """Text for HTML, also inside an attribute; half a character pair, which no file can hold, becomes ``?``.

    >>> escaped('<b title="x">')
    '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(text.encode("utf-8", "replace").decode())


def panel(parts: Iterable[str]) -> str:
    """One output of a notebook: the style, and parts that are HTML already."""
    return f'<div class="sft-mask"><style>{_style()}</style>{"".join(parts)}</div>'


def element(text: str, kind: str) -> str:
    """A line of text in a class of the style sheet.

    >>> element("a < b", "faint")
    '<div class="faint">a &lt; b</div>'
    """
    return f'<div class="{kind}">{escaped(text)}</div>'


def meter(share: float) -> str:
    """A bar filled to ``share``; the text beside it says the number."""
    return f'<span class="meter" aria-hidden="true"><i style="width:{100 * share:.1f}%"></i></span>'


def fact(what: str, text: str) -> str:
    """A name, and what is to say about it.

    >>> fact("cure", "Mask.")
    '<div class="fact"><b>cure</b> <span>Mask.</span></div>'
    """
    return f'<div class="fact"><b>{escaped(what)}</b> <span>{escaped(text)}</span></div>'


def line_fact(line: str) -> str:
    """The same of an indented line of a report.

    >>> line_fact("  not rendered: 4 of 4 tool calls") == fact("not rendered", "4 of 4 tool calls")
    True
    """
    found = _LINE.fullmatch(line)
    assert found, f"{line!r} names nothing"
    return fact(found["what"], found["text"])


def folded(title: str, body: str, *, is_open: bool) -> str:
    """A part that opens at a click, without a script; ``body`` is HTML already."""
    return f"<details{' open' if is_open else ''}><summary>{escaped(title)}</summary>{body}</details>"


@cache
def _style() -> str:
    return files("sft_mask.report").joinpath("notebook.css").read_text("utf-8")
