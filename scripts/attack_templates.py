#!/usr/bin/env python
"""Masks rows of random chat templates and counts wrong tokens, by an oracle that writes every template's text itself.

    python scripts/attack_templates.py --rows 20000 --seed 1                      # tokenizers that need no network
    python scripts/attack_templates.py --rows 20000 --tokenizers FOLDER           # a folder of tokenizer folders
    python scripts/attack_templates.py --rows 3000 --kind stops --show 5          # one kind, five failures in full

The kinds of templates are listed in ``tests/support/conformance/random_templates.py``. Each template is tried four
times: with and without messages, markers passed and detected. Rows with typed markers are checked only if they have
their messages.

lost        tokens of an answer, or of its end-of-turn token, that are not trained
leaked      tokens of other turns, of headers, or after an end-of-turn token, that are trained
uneven      rows in which the separator after an answer without an end-of-turn token is trained in one place but not in
            another
left out    rows that were dropped as ambiguous
crashed     calls that raised an error that is not a refusal
refused     templates; unexpected are those of ``plain`` and ``stops`` with markers passed and none typed

The exit code is 0 if nothing was lost and nothing leaked.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), *([] if os.environ.get("PYTHONPATH") else [str(ROOT)])]

from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from support.conformance.attack import (  # noqa: E402 - the suite lives among the tests
    COUNTS,
    MODES,
    Attack,
    Mode,
    Score,
    Subject,
    attacks,
    minimised,
    run,
    small_tokenizers,
    told,
)
from support.conformance.random_templates import KINDS  # noqa: E402
from support.conformance.tokenizers import folders_in, load  # noqa: E402

Scores = dict[tuple[str, str], Score]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="stop after so many checked rows (default: 20,000)")
    parser.add_argument("--seed", type=int, default=0, help="a different seed makes different templates (default: 0)")
    parser.add_argument(
        "--tokenizers", type=Path, help="folder of tokenizer folders (default: small tokenizers of the tests)"
    )
    parser.add_argument("--tokenizer", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--kind", action="append", default=[], choices=KINDS, help="only this kind; may be repeated")
    parser.add_argument("--mode", choices=[mode.name for mode in MODES], help="only this one")
    parser.add_argument(
        "--show", type=int, default=3, metavar="N", help="print N kinds of failures in full (default: 3)"
    )
    parser.add_argument(
        "--templates", type=int, default=7, metavar="N", help="templates of a tokenizer before the next one (7)"
    )
    parser.add_argument("--reasons", action="store_true", help="print a template for each reason for a refusal")
    parser.add_argument("--minimise", type=int, default=20, metavar="N", help="calls to minimise a failure (20)")
    return parser.parse_args()


def tokenizers_of(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if options.tokenizers is None:
        found: dict[str, Any] = small_tokenizers()
        yield from ((name, found[name]) for name in found if not options.tokenizer or name in options.tokenizer)
        return
    for name, folder in folders_in(options.tokenizers).items():
        if not options.tokenizer or name in options.tokenizer:
            yield name, load(folder)


def library() -> Subject:
    from sft_mask import mask_dataset
    from sft_mask.errors import SftMaskError

    return Subject(mask_dataset, SftMaskError)


@dataclass
class Findings:
    """Everything that a run has found.

    Attributes:
        scores: by kind and mode.
        failures: how often each signature failed, and one failure with that signature in full.
        calls: how often the library may be called to minimise a failure.
    """

    calls: int
    scores: Scores = field(default_factory=lambda: defaultdict(Score))
    failures: dict[tuple[str, ...], tuple[int, str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(score.rows for score in self.scores.values())

    def add(self, attack: Attack, mode: Mode, score: Score, name: str, subject: Subject) -> None:
        for failure in sorted(score.failures, key=lambda failure: len(failure.row.sample.text)):
            count, text = self.failures.get(failure.signature, (0, ""))
            failure.tokenizer = name
            self.failures[failure.signature] = (count + 1, text or told(minimised(failure, subject, self.calls)))
        score.failures = []  # they would keep the tokenizer in memory
        self.scores[attack.kind, mode.name].add(score)


def attacked(options: argparse.Namespace, console: Console) -> Findings:
    """Rounds over all tokenizers until there are enough rows, or until Ctrl-C."""
    found, turn, before = Findings(options.minimise), 0, -1
    with suppress(KeyboardInterrupt):
        while before < found.rows < options.rows:
            before = found.rows
            for place, (name, tokenizer) in enumerate(tokenizers_of(options)):
                if found.rows < options.rows:
                    one_tokenizer(options, found, name, tokenizer, turn + place)
                    kinds = len(found.failures)
                    console.print(f"{turn} {name}: {found.rows:,} rows, {kinds} kinds of failures", style="dim")
            turn += 1
    return found


def one_tokenizer(options: argparse.Namespace, found: Findings, name: str, tokenizer: Any, place: int) -> None:
    """Some templates of a tokenizer; the kinds rotate from tokenizer to tokenizer too."""
    subject, first = library(), place * options.templates
    modes = [mode for mode in MODES if options.mode in (None, mode.name)]
    numbers = range(first, first + options.templates)
    for rng, attack in attacks(options.seed, name, tokenizer, numbers, options.kind or KINDS):
        for mode in modes:
            found.add(attack, mode, run(rng, attack, subject, mode), name, subject)


def print_table(scores: Scores, title: str, console: Console) -> None:
    table = Table(title=title, title_justify="left")
    for heading in ("kind", "mode"):
        table.add_column(heading)
    for heading in COUNTS:
        table.add_column(heading.replace("_", " "), justify="right")
    for (kind, mode), score in sorted(scores.items(), key=lambda item: KINDS.index(item[0][0])):
        style = "red" if score.lost or score.leaked or score.unexpected else None
        table.add_row(kind, mode, *(f"{getattr(score, name):,}" for name in COUNTS), style=style)
    table.add_section()
    whole = Score()
    for score in scores.values():
        whole.add(score)
    table.add_row("all", "", *(f"{getattr(whole, name):,}" for name in COUNTS), style="bold")
    console.print(table)


def print_reasons(scores: Scores, console: Console) -> None:
    """Why templates and rows were refused, by kind and mode."""
    reasons = Counter[tuple[str, str]]()
    for (kind, mode), score in scores.items():
        for reason, count in score.reasons.items():
            reasons[reason, f"{kind} ({mode})"] += count
    table = Table(title="refused", title_justify="left")
    for heading in ("why", "where", "templates"):
        table.add_column(heading, overflow="fold")
    whole = Counter[str]()
    for (reason, _), count in reasons.items():
        whole[reason] += count
    for reason, _ in whole.most_common():
        where = sorted(((count, at) for (why, at), count in reasons.items() if why == reason), reverse=True)
        table.add_row(reason, "; ".join(f"{at} {count}" for count, at in where), str(whole[reason]))
    console.print(table)


def print_examples(found: Findings, console: Console) -> None:
    """One template for each reason."""
    examples: dict[str, str] = {}
    for score in found.scores.values():
        examples |= score.examples
    for reason, example in examples.items():
        console.print(f"\n{reason}\n    {example}", markup=False, highlight=False, soft_wrap=True)


def print_failures(found: Findings, count: int, console: Console) -> None:
    console.print(f"{len(found.failures)} kinds of failures")
    failures = sorted(found.failures.values(), key=lambda failure: -failure[0])
    for rows, text in failures[:count]:
        console.print(f"\n{rows} rows | {text}", markup=False, highlight=False, soft_wrap=True)


def main() -> int:
    from datasets import disable_progress_bars

    disable_progress_bars()
    logging.disable(logging.WARNING)
    options = arguments()
    console, start = Console(width=None if sys.stdout.isatty() else 170), time.monotonic()
    found = attacked(options, console)
    print_table(found.scores, f"seed {options.seed}, {(time.monotonic() - start) / 60:.1f} minutes", console)
    print_reasons(found.scores, console)
    if options.reasons:
        print_examples(found, console)
    print_failures(found, options.show, console)
    return int(any(score.lost or score.leaked for score in found.scores.values()))


if __name__ == "__main__":
    sys.exit(main())
