"""``sft-mask diff``: masks the same rows twice and shows where the two masks differ."""

from __future__ import annotations

import argparse

from sft_mask.cli.options import add_command, add_data, add_json, add_model, add_settings, settings_of
from sft_mask.errors import DataError

_OTHERS = ("model", "instruction_part", "response_part", "chat_template", "turns", "stop", "cut_answers", "mask_region")
_LINES = 12


def add_parser(commands: object) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "diff",
        run,
        summary="compare two masks of the same rows",
        about="""
        Masks the same rows twice and shows where the two masks differ: two settings, two tokenizers, two chat
        templates. Options that begin with --other- are for the second mask; whatever they leave out is the same.

        exit codes: 0 all rows are equal, 1 a row differs
        """,
        examples="""
          sft-mask diff ./my-model chats.jsonl --other-turns last
          sft-mask diff ./my-model chats.jsonl --other-model ./my-model-v2
          sft-mask diff ./my-model chats.jsonl --other-chat-template new.jinja --json
        """,
    )
    add_model(parser)
    add_data(parser)
    parser.add_argument("--rows", type=int, metavar="N", help="compare only the first N rows")
    parser.add_argument("--show", type=int, metavar="N", default=3, help="rows to show side by side (default: 3)")
    add_json(parser)
    add_settings(parser)
    parser.add_argument("--other-model", metavar="MODEL", help="tokenizer of the second mask")
    add_settings(parser, prefix="other-")


def run(args: argparse.Namespace) -> int:
    """Shows the differences."""
    from sft_mask.cli.inputs import first_rows, load_data, load_tokenizer
    from sft_mask.cli.output import console, print_json, progress
    from sft_mask.preview import preview_rows
    from sft_mask.preview.diff import compare_masks
    from sft_mask.preview.side_by_side import DiffView

    if all(getattr(args, f"other_{name}") is None for name in _OTHERS):
        raise DataError(
            "The two masks are the same: say what the second one is, such as --other-turns last or --other-model ./v2."
        )
    data = first_rows(load_data(args), args.rows)
    tokenizer = load_tokenizer(args.model, data)
    left = preview_rows(data, tokenizer, **settings_of(args))
    other = tokenizer if args.other_model is None else load_tokenizer(args.other_model, data)
    right = preview_rows(data, other, **settings_of(args, "other-"))
    diff = compare_masks(progress(left, len(left), "Comparing"), right)
    if args.json:
        print_json(diff.to_dict())
        return 1 if diff.different else 0
    out = console()
    for row in diff.shown[: max(args.show, 0)]:
        out.print(DiffView(row, most_lines=_LINES))
        out.print()
    out.print(str(diff), style="bold")
    return 1 if diff.different else 0
