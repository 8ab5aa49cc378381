"""``sft-mask check``: masks a dataset, prints the report, and exits with a code for CI."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sft_mask.cli.options import add_command, add_data, add_json, add_model, add_settings, settings_of
from sft_mask.cli.words import in_shell_words

if TYPE_CHECKING:
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
    add_settings(parser)


def _add_on_ambiguous(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-ambiguous",
        metavar="error|drop|mask",
        default="drop",
        help="rows that neither markers nor messages decide: stop at the first, drop them, or keep them all masked "
        "(default: drop)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report."""
    from sft_mask import mask_dataset
    from sft_mask.cli.inputs import load_data, load_tokenizer
    from sft_mask.cli.output import console, in_words_for_the_shell, print_json

    tokenizer = load_tokenizer(args.model)
    data = load_data(args)
    settings = settings_of(args)
    _, report = mask_dataset(data, tokenizer, on_ambiguous=args.on_ambiguous, return_report=True, **settings)
    problems = [in_shell_words(problem) for problem in problems_of(report)]
    if args.json:
        print_json({**report.to_dict(), "problems": problems})
    else:
        out = console()
        out.print(in_words_for_the_shell(report))
        for problem in problems[len(report.warnings) :]:  # the report has printed its warnings
            out.print(f"problem: {problem}", style="yellow")
        verdict = f"{len(problems)} problem{'' if len(problems) == 1 else 's'}" if problems else "no problems"
        out.print(verdict, style="bold yellow" if problems else "bold green")
    return 1 if problems else 0


def problems_of(report: MaskReport) -> list[str]:
    """The report's warnings, then one for each split with rows that could not be decided."""
    found = list(report.warnings)
    for name, split in report.splits.items():
        if split.rows_ambiguous:
            found.append(
                f"{name}: {split.rows_ambiguous:,} rows are decided by neither markers nor messages: see them with "
                "`sft-mask preview --html`, filtered by `ambiguous`."
            )
    return found
