"""``sft-mask check``: masks a dataset, prints the report, and exits with a code for CI."""

from __future__ import annotations

import argparse
from dataclasses import replace
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
from sft_mask.cli.words import in_shell_words

if TYPE_CHECKING:
    from sft_mask.data.as_trained import RowShape
    from sft_mask.data.masker import OnAmbiguous
    from sft_mask.report import MaskReport


def add_parser(commands: object) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "check",
        run,
        summary="mask all rows and print a report, for CI",
        about="""
        Masks every row and prints what is trained: shares, end-of-turn tokens, cut and dropped rows, and whether
        markers or messages decided the rows.

        exit codes: 0 no problems, 1 problems (a warning, a row that cannot be decided, nothing to train), 2 the model
        or the data cannot be read, so nothing was checked
        """,
        examples="""
          sft-mask check Qwen/Qwen3-8B chats.jsonl
          sft-mask check ./my-model org/chats:train --json > report.json
          sft-mask check ./my-model chats.jsonl --on-ambiguous error
        """,
    )
    add_model(parser)
    add_data(parser)
    _add_on_ambiguous(parser)
    add_json(parser)
    add_shape(parser)
    add_settings(parser)


def _add_on_ambiguous(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-ambiguous",
        metavar="error|drop|mask",
        default="drop",
        help="rows that neither markers nor messages decide: stop at the first, drop them, or keep them all masked "
        "(default: drop)",
    )
    parser.add_argument(
        "--allow-lost",
        action="store_true",
        help="exit with 0 although the chat template does not write all that the assistant's messages say",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from sft_mask.cli.inputs import load_data, load_tokenizer
    from sft_mask.cli.output import console, in_words_for_the_shell, print_json

    data = load_data(args)
    tokenizer = load_tokenizer(args.model, data)
    settings = settings_of(args)
    report, packed = report_of(data, tokenizer, args.on_ambiguous, settings, shape_of(args))
    problems = problems_of(report, allow_lost=args.allow_lost)
    unprinted = [in_shell_words(problem) for problem in problems if problem not in report.warnings]
    problems = [in_shell_words(problem) for problem in problems]
    if args.json:
        print_json({**report.to_dict(), **({} if packed is None else {"rows_packed": packed}), "problems": problems})
    else:
        out = console()
        out.print(in_words_for_the_shell(report))
        if packed is not None:
            out.print(f"packed: {packed:,} rows of at most {args.max_length:,} tokens ({args.packing})")
        for problem in unprinted:
            out.print(f"problem: {problem}", style="yellow")
        verdict = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}" if problems else "no problems"
        out.print(verdict, style="bold yellow" if problems else "bold green")
    return 1 if problems else 0


def report_of(
    data: object, tokenizer: object, on_ambiguous: OnAmbiguous, settings: dict[str, Any], shape: RowShape
) -> tuple[MaskReport, int | None]:
    """The report before packing, which knows the messages, and the number of rows after it."""
    from sft_mask.data.as_trained import packed_rows, report_as_trained
    from sft_mask.data.formats.read import read_chats
    from sft_mask.data.setup import MaskSettings, read_tokenizer

    template = settings["chat_template"]
    info = read_tokenizer(tokenizer, template)
    own = MaskSettings(
        settings["instruction_part"], settings["response_part"], settings["policy"], on_ambiguous, shape.truncated_at
    )
    data, told = read_chats(data, "train", info.template, settings["columns"], settings["roles"])
    report = report_as_trained(data, info, own, template, shape, "train")
    report = replace(report, read_as={"train": told} if told else {})
    packed = None if shape.packing is None else len(packed_rows(data, info, own, template, shape, "train"))
    return report, packed


def problems_of(report: MaskReport, *, allow_lost: bool = False) -> list[str]:
    """The report's warnings, then one for each split with rows that could not be decided.

    Args:
        report: of the check.
        allow_lost: leave out what follows from fields of the assistant that the chat template does not write.
    """
    if allow_lost:
        report = report.accepting_losses()
    found = list(report.warnings)
    for name, split in report.splits.items():
        if split.rows_ambiguous:
            found.append(
                f"{name}: {split.rows_ambiguous:,} rows are decided by neither markers nor messages: see them with "
                "`sft-mask preview --html`, filtered by `ambiguous`."
            )
    return found
