"""``sft-mask snapshot``: writes a golden snapshot of a mask to commit, or checks one."""

from __future__ import annotations

import argparse
from pathlib import Path

from sft_mask.cli.options import (
    add_command,
    add_data,
    add_json,
    add_model,
    add_settings,
    add_template,
    settings_of,
    template_of,
)
from sft_mask.errors import DataError


def add_parser(commands: object) -> None:
    """Adds the command and its two subcommands."""
    parser = add_command(
        commands,
        "snapshot",
        None,
        summary="write a golden snapshot of a mask, or check one",
        about="""
        A snapshot is a small file to commit: the tokens of some rows, and which of them are trained. After an upgrade
        of a tokenizer, a template or a library, `check` shows the tokens whose mask changed, and exits with 1.
        """,
        examples="""
          sft-mask snapshot write ./my-model chats.jsonl tests/mask.jsonl
          sft-mask snapshot check ./my-model chats.jsonl tests/mask.jsonl
        """,
    )
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", dest="verb", required=True)
    write = add_command(verbs, "write", run_write, summary="write a snapshot")
    add_model(write)
    add_data(write)
    write.add_argument("file", metavar="FILE", help="the snapshot to write, a JSONL file")
    write.add_argument(
        "--rows", type=int, metavar="N", default=32, help="number of rows, spread over the data (default: 32)"
    )
    write.add_argument("--force", action="store_true", help="replace FILE if it is there")
    add_settings(write)
    check = add_command(
        verbs,
        "check",
        run_check,
        summary="compare the current mask with a snapshot",
        about="""
        Masks the rows of a snapshot again, with the markers and the policy it was written with.

        exit codes: 0 no token changed, 1 a token changed
        """,
    )
    add_model(check)
    add_data(check)
    check.add_argument("file", metavar="FILE", help="the snapshot")
    add_template(check)
    add_json(check)


def run_write(args: argparse.Namespace) -> int:
    """Writes a snapshot."""
    from sft_mask.cli.inputs import load_data, load_tokenizer
    from sft_mask.cli.output import console
    from sft_mask.preview.snapshot import write_snapshot

    if Path(args.file).exists() and not args.force:
        raise DataError(
            f"{args.file} exists, and what it records would be lost. Compare with it (sft-mask snapshot check), give "
            "another name, or replace it with --force."
        )
    data = load_data(args)
    tokenizer = load_tokenizer(args.model, data)
    count = write_snapshot(args.file, data, tokenizer, rows=args.rows, **settings_of(args))
    console().print(f"{args.file}: {count:,} rows. Commit it, and run `sft-mask snapshot check` after upgrades.")
    return 0


def run_check(args: argparse.Namespace) -> int:
    """Checks a snapshot."""
    from sft_mask.cli.inputs import load_data, load_tokenizer
    from sft_mask.cli.output import console, print_json
    from sft_mask.preview.snapshot import check_snapshot

    data = load_data(args)
    tokenizer = load_tokenizer(args.model, data)
    found = check_snapshot(args.file, data, tokenizer, chat_template=template_of(args.chat_template))
    if args.json:
        print_json({"equal": found.is_equal, **found.diff.to_dict(), "notes": list(found.notes)})
    else:
        console().print(str(found))
    return 0 if found.is_equal else 1
