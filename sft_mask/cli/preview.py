"""``sft-mask preview``: shows the mask in colour, in the terminal or in a browser."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft_mask.cli.options import (
    add_command,
    add_data,
    add_json,
    add_model,
    add_settings,
    add_shape,
    settings_of,
    shape_of,
)
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.data.as_trained import RowShape
    from sft_mask.preview import PreviewRow, PreviewRows

_SHOWN = 3
_ENOUGH = 512
"""Rows that are tokenized if only a few are shown: detection learns from the first ones."""


def add_parser(commands: object) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "preview",
        run,
        summary="show which tokens are trained, in colour",
        about="""
        Shows rows as the loss will see them: trained tokens bright, masked ones dim. In a pipe, trained text is in
        brackets. --why adds the reason for each token. --html writes all rows to one page that needs no network: point
        at a token (or move with the arrow keys) for the reason, step through the rows, search and sort them,
        filter those that are dropped, cut or ambiguous, or that lost words.
        """,
        examples="""
          sft-mask preview Qwen/Qwen3-8B chats.jsonl
          sft-mask preview ./my-model chats.jsonl --row 17 --why
          sft-mask preview ./my-model chats.jsonl --html mask.html --open
          sft-mask preview ./my-model chats.jsonl --turns last | less -R
          head -n 100 chats.jsonl | sft-mask preview ./my-model - --row 99
        """,
    )
    add_model(parser)
    add_data(parser)
    _add_shown(parser)
    add_json(parser)
    add_shape(parser)
    add_settings(parser)


def _add_shown(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, metavar="N", help=f"the first N rows (default: {_SHOWN}, with --html all)")
    parser.add_argument("--row", type=int, metavar="K", help="only row K, counted from 0")
    parser.add_argument("--why", action="store_true", help="list under each row why its tokens are trained or not")
    parser.add_argument("--html", metavar="FILE", help="write a page for the browser instead")
    parser.add_argument("--open", action="store_true", help="with --html: open the page in the browser")


def run(args: argparse.Namespace) -> int:
    """Shows the rows."""
    from sft_mask.cli.inputs import first_rows, load_data, load_tokenizer
    from sft_mask.cli.output import console, print_json

    _check(args)
    data, shape = load_data(args), shape_of(args)
    tokenizer = load_tokenizer(args.model, data)
    if args.html is None and shape.packing is None:
        data = first_rows(data, max(_ENOUGH, (args.row or 0) + 1, args.rows or 0))
    rows = _rows(data, tokenizer, settings_of(args), shape)
    chosen = _chosen(rows, args)
    if args.html is not None:
        return _write(chosen, args)
    if args.json:
        print_json([_as_dict(row) for row in chosen])
        return 0
    _show(chosen, console(), why=args.why)
    return 0


def _rows(data: object, tokenizer: object, settings: dict[str, Any], shape: RowShape) -> PreviewRows:
    """The rows of the trainer; packed ones come with the labels that they had before."""
    from sft_mask.data.as_trained import packed_rows
    from sft_mask.data.setup import MaskSettings, read_tokenizer
    from sft_mask.preview import preview_rows

    if shape.packing is None:
        return preview_rows(data, tokenizer, **settings, max_length=shape.max_length, expand=shape.expand)
    template = settings["chat_template"]
    own = MaskSettings(settings["instruction_part"], settings["response_part"], settings["policy"], "drop")
    packed = packed_rows(data, read_tokenizer(tokenizer, template), own, template, shape, "train")
    return preview_rows(packed, tokenizer, **settings)


def _check(args: argparse.Namespace) -> None:
    if args.rows is not None and args.rows < 1:
        raise DataError(f"--rows {args.rows}: show at least one row.")
    if args.open and args.html is None:
        raise DataError("--open opens the page of --html FILE: give that too.")


def _chosen(rows: PreviewRows, args: argparse.Namespace) -> Sequence[PreviewRow]:
    if args.row is not None:
        if not 0 <= args.row < len(rows):
            raise DataError(f"There is no row {args.row}: the data has the rows 0 to {len(rows) - 1}.")
        return rows[args.row : args.row + 1]
    shown = args.rows or (len(rows) if args.html is not None else _SHOWN)
    return rows[:shown]


def _write(rows: Sequence[PreviewRow], args: argparse.Namespace) -> int:
    from sft_mask.cli.files import STDIN
    from sft_mask.cli.output import console, progress
    from sft_mask.preview import write_html

    name = "standard input" if args.data == STDIN else Path(args.data).name
    title = f"What is trained of {name}"
    path = write_html(progress(rows, len(rows), "Writing"), args.html, title=title)
    console().print(f"{len(rows):,} rows: {path.resolve().as_uri()}", soft_wrap=True)
    if args.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0


def _show(rows: Sequence[PreviewRow], out: Any, *, why: bool) -> None:
    from sft_mask.preview.terminal import ReasonsView, RowView

    for number, row in enumerate(rows):
        if number:
            out.print()
        out.print(RowView(row))
        if why:
            out.print(ReasonsView(row))


def _as_dict(row: PreviewRow) -> dict[str, object]:
    return {
        "name": row.name,
        "tokens": len(row.input_ids),
        "trained": row.trained_tokens,
        "status": list(row.status),
        "lost": list(row.lost),
        "runs": [{"start": run.start, "end": run.end, "weight": run.weight, "text": run.text} for run in row.runs],
        "parts": [
            {"start": note.start, "end": note.end, "role": note.role, "turn": note.turn, "reason": note.reason}
            for note in row.notes
        ],
    }
