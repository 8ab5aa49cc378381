"""``sft-mask``: reads the command, runs it, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from textwrap import dedent

from sft_mask.cli import check, detect, diff, preview, snapshot
from sft_mask.errors import AmbiguousRowError, NothingToTrainError, SftMaskError

CLEAN, PROBLEMS, WRONG_USE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

_ABOUT = dedent("""\
    See which tokens of a chat dataset are trained, and check that the mask is right.

    A token is trained if and only if the model would have to sample it at inference.
    """)
_EXAMPLES = dedent("""\
    examples:
      sft-mask preview Qwen/Qwen3-8B chats.jsonl               the first rows in colour, here
      sft-mask preview ./my-model chats.jsonl --html mask.html  all rows in a browser
      sft-mask check ./my-model chats.jsonl                    exit code 0 if all is well, for CI
      sft-mask detect ./my-model                               the markers, ready to be copied

    MODEL is a folder with a tokenizer, or a name on the Hub. DATA is a JSONL, JSON or Parquet file, a folder of such
    files or of save_to_disk, or a dataset on the Hub (`name`, or `name:split`).

    exit codes: 0 clean · 1 the mask has problems, or two masks differ · 2 wrong use, or data that cannot be read
    """)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all commands."""
    parser = argparse.ArgumentParser(
        prog="sft-mask", description=_ABOUT, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for module in (preview, check, detect, diff, snapshot):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    parsed = build_parser().parse_args([argument for argument in given if argument != "--debug"])
    try:
        code = int(parsed.run(parsed))
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its exit
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED
    except (SftMaskError, OSError, ImportError) as error:
        if debug:
            raise
        sys.stderr.write(f"sft-mask: {error}\n")
        return PROBLEMS if isinstance(error, NothingToTrainError | AmbiguousRowError) else WRONG_USE
    return code
