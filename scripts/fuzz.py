#!/usr/bin/env python
"""Runs random cases against slow references until time is up, and prints what was wrong.

    python scripts/fuzz.py --minutes 15 --jobs 2 --seed 1           # every part, in two processes
    python scripts/fuzz.py --minutes 2 --only policies              # one part
    python scripts/fuzz.py --seed 1 --only policies --case 17       # that case again, with all that is wrong in it

The parts are in ``tests/support/fuzzing``, each with a reference that shares no code with the library. A case depends
only on the seed, the part and its number, not on what ran before it; the time is shared evenly between the parts.

cases    random settings: a vocabulary, markers, a policy, a packing
rows     rows whose every label was compared with the reference
refused  errors of the library, and rows that were left out as ambiguous; these are not failures
wrong    rows whose labels differ from the reference
crashed  cases that raised an error other than an SftMaskError, or took longer than five minutes

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
"""Seconds after which a case counts as crashed."""
SHOWN_FAILURES = 20


@dataclass
class Failure:
    """A case that was wrong or crashed, and the command that runs it again."""

    part: str
    number: int
    what: str
    command: str


@dataclass
class Line:
    """The results of one part."""

    cases: int = 0
    crashed: int = 0
    seconds: float = 0.0
    found: Outcome = field(default_factory=Outcome)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to run (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="a different seed makes different cases (default: 0)")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default: 1)")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="only this part; may be repeated")
    parser.add_argument("--case", type=int, metavar="N", help="only case N of the part given with --only")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write counts and failures to this file")
    options = parser.parse_args()
    if options.case is not None and len(options.only or ()) != 1:
        parser.error("--case needs one part: --only NAME")
    return options


def quiet() -> None:
    """Turns off other progress bars, and warnings, since rows are strange on purpose."""
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
    """Cases of all parts, running and done."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.seed: int = options.seed
        self.jobs: int = options.jobs
        self.lines = {name: Line() for name in options.only or PARTS}
        self.failures: list[Failure] = []
        self._started = Counter[str]()
        self._running: dict[Future[tuple[Outcome, float]], tuple[str, int, float]] = {}

    def run_cases(self, seconds: float, progress: Progress, task: TaskID) -> None:
        """Starts cases until time is up, then waits for those that are still running."""
        start = time.monotonic()
        with ProcessPoolExecutor(self.jobs, initializer=quiet) as pool:
            while self._running or time.monotonic() - start < seconds:
                while time.monotonic() - start < seconds and len(self._running) < 2 * self.jobs:
                    self._start(pool)
                done, _ = wait(self._running, timeout=1, return_when=FIRST_COMPLETED)
                for future in done:
                    self._finish(future)
                rows = sum(line.found.rows for line in self.lines.values())
                text = f"{rows:,} rows, {len(self.failures)} failures"
                progress.update(task, completed=min(time.monotonic() - start, seconds), description=text)

    def _start(self, pool: ProcessPoolExecutor) -> None:
        part = min(self.lines, key=lambda name: (self.lines[name].seconds, self._started[name]))
        number = self._started[part]
        self._started[part] += 1
        self.lines[part].seconds += 0.05  # so that a part whose first case is still running is not started again
        self._running[pool.submit(run, self.seed, part, number)] = (part, number, time.monotonic())

    def _finish(self, future: Future[tuple[Outcome, float]]) -> None:
        part, number, started = self._running.pop(future)
        line = self.lines[part]
        line.cases += 1
        error = future.exception()
        if error is not None:
            line.crashed += 1
            line.seconds += time.monotonic() - started
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
    refused = ", ".join(f"{count:,} {what}" for what, count in sorted(line.found.errors.items()))
    numbers = (line.cases, line.found.rows, line.found.tokens)
    return [name, *(f"{number:,}" for number in numbers), refused, f"{len(line.found.wrong):,}", f"{line.crashed:,}"]


def total(lines: dict[str, Line]) -> Line:
    whole = Line()
    for line in lines.values():
        whole.cases += line.cases
        whole.crashed += line.crashed
        whole.found.add(line.found)
    return whole


def print_table(fuzz: Fuzz, seconds: float, console: Console) -> None:
    table = Table(title=f"seed {fuzz.seed}, {seconds / 60:.1f} minutes, {fuzz.jobs} jobs", title_justify="left")
    for heading in ("part", "cases", "rows", "tokens", "refused", "wrong", "crashed"):
        table.add_column(heading, justify="left" if heading in ("part", "refused") else "right", overflow="fold")
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
            "refused": dict(line.found.errors),
            "wrong": len(line.found.wrong),
            "crashed": line.crashed,
        }
        for name, line in fuzz.lines.items()
    }
    failures = [vars(failure) for failure in fuzz.failures]
    record = {"seed": fuzz.seed, "seconds": round(seconds, 1), "parts": parts, "failures": failures}
    path.write_text(json.dumps(record, ensure_ascii=False, indent=1) + "\n", "utf-8")


def again(options: argparse.Namespace, console: Console) -> int:
    """One case, with everything that is wrong in it; a crash shows its traceback."""
    quiet()
    (part,) = options.only
    found, seconds = run(options.seed, part, options.case)
    for what in found.wrong:
        console.print(what, markup=False, highlight=False)
    refused = dict(found.errors)
    console.print(f"{found.rows:,} rows, {len(found.wrong):,} wrong, refused {refused}, {seconds:.1f} s", markup=False)
    return int(bool(found.wrong))


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 160)
    if options.case is not None:
        return again(options, console)
    fuzz, start = Fuzz(options), time.monotonic()
    columns = (BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        fuzz.run_cases(options.minutes * 60, progress, progress.add_task("0 rows", total=options.minutes * 60))
    seconds = time.monotonic() - start
    print_table(fuzz, seconds, console)
    print_failures(fuzz.failures, console)
    if options.json:
        write_json(options.json, fuzz, seconds)
    return int(bool(fuzz.failures))


if __name__ == "__main__":
    sys.exit(main())
