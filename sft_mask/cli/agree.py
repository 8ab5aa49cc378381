"""``sft-mask agree``: the same rows by several roads, and where they disagree."""

from __future__ import annotations

import argparse
from typing import Any

from sft_mask.cli.options import add_command, add_data, add_json, add_model, add_template, template_of


def add_parser(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        "agree",
        run,
        summary="one mask by four roads, and where these disagree",
        about="""
        Masks the same rows by markers, by messages, by the template's {% generation %} blocks where it has them, and by
        prefix rendering, and holds each against the library's mask. Disagreements are grouped by cause, each with the
        first row in colour. The exit code is 1 if markers or messages disagree; the other two are no oracles.
        """,
        examples="""
          sft-mask agree Qwen/Qwen3-8B chats.jsonl
          sft-mask agree ./my-model chats.jsonl --chat-template training.jinja --rows 200
        """,
    )
    add_model(parser)
    add_data(parser)
    add_template(parser)
    parser.add_argument("--rows", type=int, metavar="N", help="only the first N rows")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Shows the agreement."""
    from sft_mask.cli.inputs import load_data, load_tokenizer
    from sft_mask.cli.output import console, print_json
    from sft_mask.preview.compare import CAUSES, ROADS, compare_roads
    from sft_mask.preview.side_by_side import DiffView

    tokenizer = load_tokenizer(args.model)
    data = load_data(args)
    if args.rows is not None:
        data = data.select(range(min(max(args.rows, 0), len(data))))
    agreement = compare_roads(data, tokenizer, chat_template=template_of(args.chat_template))
    roads = agreement.roads
    code = 1 if any(roads[name].equal < roads[name].rows for name in ("markers", "messages")) else 0
    if args.json:
        print_json(agreement.to_dict())
        return code
    out = console()
    for name, road in roads.items():
        for cause, found in road.disagreements.items():
            if found.first is not None:
                out.print(f"{name}, {cause}: {CAUSES[cause]}", style="bold yellow")
                out.print(DiffView(found.first, names=("sft_mask", ROADS[name])))
                out.print()
    out.print(str(agreement))
    return code
