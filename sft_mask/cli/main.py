"""``sft-mask``: parses the command, runs it, and turns errors into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from textwrap import dedent

from sft_mask.cli import check, detect, diff, preview, snapshot
from sft_mask.cli.parser import WRONG_USE, Parser
from sft_mask.cli.words import in_shell_words
from sft_mask.errors import AmbiguousRowError, NothingToTrainError, SftMaskError

PROBLEMS, INTERRUPTED, BROKEN_PIPE = 1, 130, 141

_ABOUT = dedent("""\
    See which tokens of a chat dataset are trained, and check that the mask is right.

    A token is trained if and only if the model would have to sample it at inference: the words of the assistant and the
    end-of-turn token after them. Everything else is masked: its label is -100, and the loss ignores it.
    """)
_EXAMPLES = dedent("""\
    examples:
      sft-mask preview Qwen/Qwen3-8B chats.jsonl                the first rows in colour, in the terminal
      sft-mask preview ./my-model chats.jsonl --html mask.html  all rows as a page for the browser
      sft-mask check ./my-model chats.jsonl                     a report on all rows; exit code 0 without problems
      sft-mask detect ./my-model                                the markers of the chat template, ready to copy

    MODEL is a folder with a tokenizer, or a name on the Hub. Only the tokenizer is loaded, never the weights.
    DATA is a JSONL, JSON, Parquet, CSV or Arrow file (.gz, .bz2, .xz and .zst too), a folder of such files, a folder of
    save_to_disk, a dataset on the Hub (`name`, or `name:split`), or `-` for standard input.

    exit codes:
      0    no problems
      1    the mask has problems, or two masks differ
      2    wrong usage, or a model or data that cannot be read: nothing was checked
      130  interrupted (Ctrl-C)
      141  the reader of a pipe has closed it

    `sft-mask COMMAND --help` explains a command.
    """)


def build_parser() -> Parser:
    """Returns the parser with all commands."""
    parser = Parser(
        prog="sft-mask", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in (preview, check, detect, diff, snapshot):
        module.add_parser(commands)
    return parser


class _Version(argparse.Action):
    """Prints the version, which is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        sys.stdout.write(f"sft-mask {version('sft-mask')}\n")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        try:
            parsed = build_parser().parse_args([argument for argument in given if argument != "--debug"])
            code = int(parsed.run(parsed))
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at exit
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SftMaskError, OSError, ImportError) as error:
        if debug:
            raise
        sys.stderr.write(f"sft-mask: {in_shell_words(str(error))}\n")
        return PROBLEMS if isinstance(error, NothingToTrainError | AmbiguousRowError) else WRONG_USE
    return code
