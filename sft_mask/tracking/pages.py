"""Masked rows and sampled answers as HTML for a tracker: no script, nothing loaded, and every text escaped."""

from __future__ import annotations

from collections.abc import Iterable

from sft_mask.preview.cells import visible
from sft_mask.preview.rows import PreviewRow
from sft_mask.report.notebook import escaped
from sft_mask.tracking.trackers import Table

_STYLE = (
    ":root{color-scheme:light dark}"
    "body{font:14px/1.5 system-ui,sans-serif;margin:12px}"
    "pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:4px 0 18px;opacity:.95}"
    "mark{background:light-dark(#c9efd0,#14532d);color:inherit;border-bottom:2px solid light-dark(#1a7f37,#4ade80)}"
    "b{font-weight:600}i{opacity:.7}"
)


def rows_page(rows: Iterable[PreviewRow]) -> str:
    """Rows with their trained tokens marked."""
    parts = ["<p><mark>trained</mark> and masked</p>"]
    for row in rows:
        runs = (_run(escaped(visible(run.text)), trained=run.trained) for run in row.runs)
        parts.append(f"<b>{escaped(row.heading)}</b><pre>{''.join(runs)}</pre>")
    return _page(parts)


def _run(text: str, *, trained: bool) -> str:
    return f"<mark>{text}</mark>" if trained and text else text


def answers_page(rows: Table) -> str:
    """Prompts with their answers, and how each ended."""
    parts = [f"<p>step {rows[0]['step']}</p>"]
    for row in rows:
        ended = "stopped after" if row["stopped"] else "cut off after"
        parts.append(
            f"<b>{escaped(str(row['prompt']))}</b><pre>{escaped(str(row['answer']))}\n"
            f"<i>({ended} {row['tokens']} tokens)</i></pre>"
        )
    return _page(parts)


def _page(parts: Iterable[str]) -> str:
    head = f'<head><meta charset="utf-8"><style>{_STYLE}</style></head>'
    return f"<!doctype html><html>{head}<body>{''.join(parts)}</body></html>"
