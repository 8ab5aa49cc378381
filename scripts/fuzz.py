#!/usr/bin/env python
"""Runs random cases against slow references until time is up, and prints what came out wrong.

    python scripts/fuzz.py --minutes 15 --jobs 2 --seed 1           # every part, side by side
    python scripts/fuzz.py --minutes 2 --only policies              # one part
    python scripts/fuzz.py --seed 1 --only policies --case 17       # that case again, with all that is wrong in it

The parts stand in ``tests/fuzzing``, each with a reference that shares no code with the library. A case depends on the
seed, the part and its number alone, whatever ran before it; the time is shared evenly between the parts.

cases    random settings: a vocabulary, markers, a policy, a packing
rows     rows whose every label was compared with the reference
named    refusals by name, and rows that were left out as ambiguous; they are no failures
wrong    rows whose labels differ from the reference
crashed  cases that raised something else than an SftMaskError, or took longer than five minutes

The exit code is 0 if nothing was wrong and nothing crashed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rich.console import Console  # noqa: E402
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn  # noqa: E402
from rich.table import Table  # noqa: E402
from support.fuzzing.outcome import Outcome, case, library  # noqa: E402 - the parts live among the tests
from support.fuzzing.parts import PARTS  # noqa: E402

LONGEST_CASE = 300
"""Seconds after which a case is given up."""
SHOWN_FAILURES = 20


@dataclass
class Failure:
    """A case that came out wrong or crashed, and how to see it again."""

    part: str
    number: int
    what: str
    command: str


@dataclass
class Line:
    """What became of one part."""

    cases: int = 0
    crashed: int = 0
    seconds: float = 0.0
    found: Outcome = field(default_factory=Outcome)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to go on (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side (default: 1)")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="only this part; may be repeated")
    parser.add_argument("--case", type=int, metavar="N", help="only case N of the part given with --only")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write counts and failures there")
    options = parser.parse_args()
    if options.case is not None and len(options.only or ()) != 1:
        parser.error("--case needs one part: --only NAME")
    return options


def quiet() -> None:
    """Leaves the terminal to the progress bar; cases warn about rows that are meant to be strange."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    logging.disable(logging.WARNING)


def give_up(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise TimeoutError(f"the case took longer than {LONGEST_CASE} seconds")


def run(seed: int, part: str, number: int) -> tuple[Outcome, float]:
    """One case, and the seconds it took."""
    start = time.monotonic()
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LONGEST_CASE)
    found = PARTS[part](case(seed, part, number), library())
    signal.alarm(0)
    return found, time.monotonic() - start


class Fuzz:
    """Cases of all parts, in flight and done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.seed: int = options.seed
        self.jobs: int = options.jobs
        self.lines = {name: Line() for name in options.only or PARTS}
        self.failures: list[Failure] = []
        self._begun = Counter[str]()
        self._flying: dict[Future[tuple[Outcome, float]], tuple[str, int, float]] = {}

    def go(self, seconds: float, progress: Progress, task: TaskID) -> None:
        """Begins cases until time is up, then waits for those that are under way."""
        start = time.monotonic()
        with ProcessPoolExecutor(self.jobs, initializer=quiet) as pool:
            while self._flying or time.monotonic() - start < seconds:
                while time.monotonic() - start < seconds and len(self._flying) < 2 * self.jobs:
                    self._begin(pool)
                done, _ = wait(self._flying, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    self._end(future)
                rows = sum(line.found.rows for line in self.lines.values())
                text = f"{rows:,} rows, {len(self.failures)} failures"
                progress.update(task, completed=min(time.monotonic() - start, seconds), description=text)

    def _begin(self, pool: ProcessPoolExecutor) -> None:
        part = min(self.lines, key=lambda name: (self.lines[name].seconds, self._begun[name]))
        number = self._begun[part]
        self._begun[part] += 1
        self.lines[part].seconds += 0.05  # so that a part whose first case is still under way is not begun again
        self._flying[pool.submit(run, self.seed, part, number)] = (part, number, time.monotonic())

    def _end(self, future: Future[tuple[Outcome, float]]) -> None:
        part, number, begun = self._flying.pop(future)
        line = self.lines[part]
        line.cases += 1
        error = future.exception()
        if error is not None:
            line.crashed += 1
            line.seconds += time.monotonic() - begun
            self._failed(part, number, "".join(traceback.format_exception_only(error)).strip())
            return
        found, seconds = future.result()
        line.found.add(found)
        line.seconds += seconds
        if found.wrong:
            self._failed(part, number, f"{len(found.wrong)} wrong; {min(found.wrong, key=len)}")

    def _failed(self, part: str, number: int, what: str) -> None:
        command = f"python scripts/fuzz.py --seed {self.seed} --case {number} --only {part}"
        self.failures.append(Failure(part, number, what, command))


def cells(name: str, line: Line) -> list[str]:
    named = ", ".join(f"{count:,} {what}" for what, count in sorted(line.found.errors.items()))
    numbers = (line.cases, line.found.rows, line.found.tokens)
    return [name, *(f"{number:,}" for number in numbers), named, f"{len(line.found.wrong):,}", f"{line.crashed:,}"]


def total(lines: dict[str, Line]) -> Line:
    whole = Line()
    for line in lines.values():
        whole.cases += line.cases
        whole.crashed += line.crashed
        whole.found.add(line.found)
    return whole


def print_table(fuzz: Fuzz, seconds: float, console: Console) -> None:
    table = Table(title=f"seed {fuzz.seed}, {seconds / 60:.1f} minutes, {fuzz.jobs} jobs", title_justify="left")
    for heading in ("part", "cases", "rows", "tokens", "named", "wrong", "crashed"):
        table.add_column(heading, justify="left" if heading in ("part", "named") else "right", overflow="fold")
    for name, line in fuzz.lines.items():
        table.add_row(*cells(name, line), style="red" if line.crashed or line.found.wrong else None)
    table.add_section()
    table.add_row(*cells("all", total(fuzz.lines)), style="bold")
    console.print(table)


def print_failures(failures: list[Failure], console: Console) -> None:
    for failure in failures[:SHOWN_FAILURES]:
        console.print(f"{failure.part} {failure.number}: {failure.what[:600]}", markup=False, highlight=False)
        console.print(f"    {failure.command}", markup=False, highlight=False, soft_wrap=True)
    if len(failures) > SHOWN_FAILURES:
        console.print(f"and {len(failures) - SHOWN_FAILURES} more failures; --json PATH has them all")


def write_json(path: Path, fuzz: Fuzz, seconds: float) -> None:
    parts = {
        name: {
            "cases": line.cases,
            "rows": line.found.rows,
            "tokens": line.found.tokens,
            "named": dict(line.found.errors),
            "wrong": len(line.found.wrong),
            "crashed": line.crashed,
        }
        for name, line in fuzz.lines.items()
    }
    failures = [vars(failure) for failure in fuzz.failures]
    record = {"seed": fuzz.seed, "seconds": round(seconds, 1), "parts": parts, "failures": failures}
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")


def again(options: argparse.Namespace, console: Console) -> int:
    """One case, with all that is wrong in it; a crash shows its traceback."""
    quiet()
    (part,) = options.only
    found, seconds = run(options.seed, part, options.case)
    for what in found.wrong:
        console.print(what, markup=False, highlight=False)
    named = dict(found.errors)
    console.print(f"{found.rows:,} rows, {len(found.wrong):,} wrong, named {named}, {seconds:.1f} s", markup=False)
    return int(bool(found.wrong))


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.case is not None:
        return again(options, console)
    fuzz, start = Fuzz(options), time.monotonic()
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        fuzz.go(options.minutes * 60, progress, progress.add_task("0 rows", total=options.minutes * 60))
    seconds = time.monotonic() - start
    print_table(fuzz, seconds, console)
    print_failures(fuzz.failures, console)
    if options.json:
        write_json(options.json, fuzz, seconds)
    return int(bool(fuzz.failures))


if __name__ == "__main__":
    sys.exit(main())
