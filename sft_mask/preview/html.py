"""The coloured rows as one HTML file that needs no network and trusts nothing in the dataset.

Rows are written one by one, as JSON lines inside the page: the file may be larger than memory, and the browser parses
and draws only the row on screen. Three measures keep the data from running as code: the JSON has no ``<``, ``>`` or
``&``, the script sets text through ``textContent`` alone, and the page's content security policy allows only the two
blocks whose hashes it names, and loads nothing from anywhere; pictures are small JPEGs inside the page, drawn anew.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain
from pathlib import Path
from string import Template
from typing import IO

from sft_mask.errors import DataError
from sft_mask.preview.cells import Cell, visible
from sft_mask.preview.rows import PreviewRow

_ROWS_HERE = "<!-- rows -->"
_TABLES_HERE = "<!-- tables -->"
_SCRIPTS = ("data.js", "row.js", "rows.js", "page.js")
_UNSAFE = str.maketrans({sign: f"\\u{ord(sign):04x}" for sign in "<>&"})


def write_html(rows: Iterable[PreviewRow], path: str | Path, *, title: str = "What is trained") -> Path:
    """Writes ``rows`` to one self-contained page and returns its path; a generator is read once, row by row.

    The page steps through rows, filters them by ``status``, shows the trained share over all rows, and for each token
    its id, bytes, weight, role, turn, span and reason. ``page.html#17`` opens the row at index 17. An existing page is
    replaced only after all rows are written.

    Raises:
        DataError: ``rows`` is one row or a dataset, or the folder of ``path`` does not exist.
    """
    path = Path(path)
    rows = _checked(rows)
    check_folder(path)
    head, rest = _page(title).split(_ROWS_HERE)
    middle, tail = rest.split(_TABLES_HERE)
    unfinished = path.with_name(f"{path.name}.part")
    with unfinished.open("w", encoding="utf-8", newline="\n") as out:
        out.write(head)
        tables = _write_rows(rows, out)
        out.write(middle + embed(tables.to_dict(title)) + tail)
    return unfinished.replace(path)


def check_folder(path: Path) -> None:
    """Refuses a path whose folder does not exist.

    Raises:
        DataError: that.
    """
    if not path.parent.is_dir():
        raise DataError(f"{path} cannot be written: there is no folder {path.parent}. Create it, or choose another.")


def _checked(rows: object) -> Iterator[PreviewRow]:
    """The rows, after a look at the first, before anything is written."""
    way_out = "Give rows of preview_rows(dataset, tokenizer) or preview_rows(trainer), or a list of build_row(...)."
    if isinstance(rows, PreviewRow):
        raise DataError("write_html takes several rows, and this is one. Put it in a list: write_html([row], path).")
    if not isinstance(rows, Iterable) or isinstance(rows, Mapping | str):
        raise DataError(f"write_html was given a {type(rows).__name__}, not rows. {way_out}")
    several = iter(rows)
    first = next(several, None)
    if first is None:
        return several
    if not isinstance(first, PreviewRow):
        raise DataError(f"The rows given to write_html are of type {type(first).__name__}, not PreviewRow. {way_out}")
    return chain([first], several)


def embed(data: object) -> str:
    r"""JSON on one line that is safe inside a ``<script>`` block: plain ASCII, without ``<``, ``>`` and ``&``.

    >>> embed("</script> & \u2028")
    '"\\u003c/script\\u003e \\u0026 \\u2028"'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)


@dataclass(slots=True)
class _Tables:
    """What the page needs of all rows before it parses any, and each token's text once."""

    overview: list[tuple[str, int, int, tuple[str, ...]]] = field(default_factory=list)
    vocabulary: dict[int, tuple[str, str, int]] = field(default_factory=dict)

    def to_dict(self, title: str) -> dict[str, object]:
        return {"title": visible(title), "overview": self.overview, "vocabulary": self.vocabulary}


def _write_rows(rows: Iterable[PreviewRow], out: IO[str]) -> _Tables:
    tables = _Tables()
    for number, row in enumerate(rows):
        status = tuple(visible(flag) for flag in row.status)
        tables.overview.append((visible(row.name), len(row.input_ids), row.trained_tokens, status))
        out.write(("\n" if number else "") + embed(_row(row, tables.vocabulary)))
    return tables


def _row(row: PreviewRow, vocabulary: dict[int, tuple[str, str, int]]) -> dict[str, object]:
    """One row for the page; a cell that is one token with its usual text is left to the vocabulary."""
    special = {cell.start for cell in row.cells if cell.special}
    for at, token in enumerate(row.input_ids):
        if token not in vocabulary:
            vocabulary[token] = _token(row.token_bytes[at], special=at in special)
    return {
        "ids": row.input_ids,
        "runs": [(run.start, run.weight, run.document) for run in row.runs],
        "cells": [cell for cell in map(_cell, row.cells) if not _usual(cell, row.input_ids, vocabulary)],
        "notes": [(note.start, note.end, visible(note.role), visible(note.reason), note.turn) for note in row.notes],
        "labels": [(at, row.labels[at]) for at in row.wrong_labels],
        "documents": row.documents,
        "pictures": [(picture.start, picture.thumbnail) for picture in row.pictures],
        "lost": [visible(line) for line in row.lost],
    }


def _cell(cell: Cell) -> tuple[int, int, str]:
    return cell.start, cell.end, visible(cell.text)


def _usual(cell: tuple[int, int, str], ids: Sequence[int], vocabulary: Mapping[int, tuple[str, str, int]]) -> bool:
    start, end, text = cell
    return end - start == 1 and text == vocabulary[ids[start]][0]


def _token(token_bytes: bytes, *, special: bool) -> tuple[str, str, int]:
    """(text, bytes in hex, whether special)."""
    return visible(token_bytes.decode(errors="replace")), token_bytes.hex(" ").upper(), int(special)


def _page(title: str) -> str:
    """The page without its data; the policy names style and script by their hashes."""
    folder = files("sft_mask.preview") / "page"
    style, *scripts = (folder.joinpath(name).read_text("utf-8") for name in ("page.css", *_SCRIPTS))
    script = '"use strict";\n{\n' + "\n".join(scripts) + "}\n"
    policy = f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'"
    page = Template(folder.joinpath("page.html").read_text("utf-8"))
    return page.substitute(title=html.escape(visible(title)), policy=policy, style=style, script=script)


def _hash(block: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
