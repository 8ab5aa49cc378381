"""Options that several commands share, and the settings they make."""

from __future__ import annotations

import argparse
from ast import literal_eval
from pathlib import Path
from textwrap import dedent, indent
from typing import TYPE_CHECKING, Any

from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.policy import Policy
    from sft_mask.data.as_trained import RowShape


def add_command(
    commands: Any, name: str, run: object, *, summary: str, about: str = "", examples: str = ""
) -> argparse.ArgumentParser:
    """Adds a command with its help: ``summary`` in the list of commands, ``about`` and ``examples`` on its own page."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=dedent(about).strip() or summary,
        epilog="examples:\n" + indent(dedent(examples).strip(), "  ") if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds MODEL."""
    parser.add_argument("model", metavar="MODEL", help="folder with a tokenizer, or a name on the Hub")


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds DATA and how to read it."""
    parser.add_argument(
        "data",
        metavar="DATA",
        help="JSONL, JSON, Parquet, CSV or Arrow file, folder, name or name:split on the Hub, or - for standard input",
    )
    parser.add_argument("--split", metavar="NAME", help="which split of the data (default: train, or the only one)")
    parser.add_argument("--subset", metavar="NAME", help="which configuration of a dataset on the Hub")
    parser.add_argument(
        "--columns",
        metavar="NAME=FIELD[,...]",
        help="what columns, or the keys of messages, are, where their names do not say it: ask=prompt,reply=response, "
        "dialog=messages,speaker=role; NAME= leaves a column out",
    )


def add_template(parser: argparse.ArgumentParser) -> None:
    """Adds --chat-template."""
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja file to use instead of the tokenizer's template")


def add_settings(parser: argparse.ArgumentParser, prefix: str = "") -> None:
    """Adds markers, template and policy; with a ``prefix`` those of the other side of a comparison."""
    group = parser.add_argument_group(f"what is trained{' on the other side' if prefix else ''}")

    def add(name: str, **more: Any) -> None:
        group.add_argument(f"--{prefix}{name}", **more)

    add(
        "instruction-part",
        metavar="TEXT",
        help=r"text before each user turn; \n is a newline, quotes are removed",
    )
    add(
        "response-part",
        metavar="TEXT",
        help="text before each answer; both are detected if left out",
    )
    add("chat-template", metavar="FILE", help="Jinja file to use instead of the tokenizer's template")
    add("turns", metavar="all|last|flagged", help="which answers are trained (default: all)")
    add(
        "roles",
        metavar="ROLE[,...]",
        help="whose turns are trained (default: assistant), needs messages; and NAME=ROLE: what a role of the data is, "
        "where its name does not say it (alice=user,bob=assistant)",
    )
    add("tool-calls", metavar="yes|no", help="whether the assistant's tool calls are trained (default: yes)")
    add("prompt-weight", metavar="WEIGHT", type=float, help="weight of the tokens outside answers (default: 0)")
    add("stop", metavar="always|last|never", help="which end-of-turn tokens are trained (default: always)")
    add("cut-answers", metavar="keep|mask", help="answers that the end of the row cuts off (default: keep)")
    add(
        "mask-region",
        metavar=("START", "END"),
        nargs=2,
        action="append",
        help="do not train what is between two texts in an answer, such as '<think>' '</think>'; may be repeated",
    )


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Adds what a trainer makes of the rows."""
    group = parser.add_argument_group("the rows of the trainer")
    group.add_argument("--max-length", type=int, metavar="N", help="truncate rows as SFTConfig(max_length=N) does")
    group.add_argument(
        "--packing",
        nargs="?",
        const="bfd",
        choices=("bfd", "bfd_split", "wrapped"),
        help="pack the masked rows to --max-length tokens, with TRL (default strategy: bfd)",
    )
    group.add_argument(
        "--expand", action="store_true", help="mask_dataset(expand=True): answers as inference shows them"
    )


def shape_of(args: argparse.Namespace) -> RowShape:
    """What the options of :func:`add_shape` say."""
    from sft_mask.data.as_trained import RowShape

    if args.packing is not None and args.max_length is None:
        raise DataError(
            f"--packing {args.packing} needs --max-length N: rows are packed to that many tokens (SFTConfig's own "
            "default is 1024)."
        )
    if args.max_length is not None and args.max_length < 1:
        raise DataError(f"--max-length {args.max_length}: give 1 or more.")
    return RowShape(args.max_length, args.packing, args.expand)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def marker(given: str | None) -> str | None:
    r"""The marker that was typed: with quotes it is a Python string, without quotes ``\n`` and ``\t`` are replaced.

    >>> marker(r"<|user|>\n"), marker("'<|user|>'"), marker("# Q")
    ('<|user|>\n', '<|user|>', '# Q')
    """
    if given is None:
        return None
    if len(given) > 1 and given[0] == given[-1] and given[0] in "'\"":
        try:
            return str(literal_eval(given))
        except (SyntaxError, ValueError) as error:
            raise DataError(f"The marker {given} is not a Python string: {error}") from error
    return given.replace("\\n", "\n").replace("\\t", "\t")


def settings_of(args: argparse.Namespace, prefix: str = "") -> dict[str, Any]:
    """Keyword arguments for ``preview_rows`` and ``mask_dataset``; what the other side does not set, it shares."""

    def get(name: str) -> Any:
        given = getattr(args, f"{prefix}{name}".replace("-", "_"))
        return getattr(args, name.replace("-", "_")) if given is None else given

    trained, names = _split_roles(get("roles"))
    given = {name: get(name.replace("_", "-")) for name in _POLICY}
    return {
        "instruction_part": marker(get("instruction-part")),
        "response_part": marker(get("response-part")),
        "policy": _policy({**given, "roles": trained}, get("mask-region")),
        "chat_template": template_of(get("chat-template")),
        "columns": _pairs("--columns", args.columns.split(",")) if args.columns else None,
        "roles": names or None,
    }


def _split_roles(given: str | None) -> tuple[list[str] | None, dict[str, str | None]]:
    """The roles that are trained, and what roles of the data are.

    >>> _split_roles("bob=assistant,tool")
    (['tool'], {'bob': 'assistant'})
    """
    parts = [part.strip() for part in (given or "").split(",")]
    trained = [part for part in parts if part and "=" not in part]
    return trained or None, _pairs("--roles", [part for part in parts if "=" in part])


def _pairs(option: str, given: list[str]) -> dict[str, str | None]:
    """``NAME=FIELD`` pairs; ``None`` for ``NAME=``."""
    pairs: dict[str, str | None] = {}
    for part in given:
        name, sign, field = part.strip().rpartition("=")
        if not sign or not name or (option == "--roles" and not field):
            raise DataError(f"{option} {part!r}: give NAME=FIELD, the name in the data first, such as ask=prompt.")
        pairs[name] = field or None
    return pairs


def template_of(path: str | None) -> str | None:
    """The text of a template file, if one was given.

    Raises:
        DataError: it cannot be read.
    """
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The chat template {path} cannot be read: {error}") from error


_POLICY = ("turns", "roles", "tool_calls", "prompt_weight", "stop", "cut_answers")


def _policy(given: dict[str, Any], regions: list[list[str]] | None) -> Policy:
    from sft_mask.core.policy import Policy
    from sft_mask.core.regions import Region

    chosen = {name: value for name, value in given.items() if value is not None}
    if "tool_calls" in chosen:
        chosen["tool_calls"] = _yes(chosen["tool_calls"])
    return Policy(**chosen, regions=[Region(start, end) for start, end in regions or ()])


def _yes(answer: str) -> bool:
    if answer not in ("yes", "no"):
        raise DataError(f"--tool-calls {answer}: give yes or no.")
    return answer == "yes"
