#!/usr/bin/env python
"""Breaks the library on purpose, one small change at a time, and sees whether a test turns red.

    python scripts/mutate.py                            # every mutant of scripts/mutants.toml
    python scripts/mutate.py --only spans --only policy # those with one of these texts in their names
    python scripts/mutate.py --jobs 2 --json mutants.json
    python scripts/mutate.py --list                     # what there is; nothing is run

A mutant is a text that stands exactly once in a file, another text in its place, and the tests that must notice.
The files of the working tree (those that git tracks, and new ones that it does not ignore) are copied once; the tests
must be green there. Then each mutant gets a copy of its own, with only its own change in it, and the tests that it
names run on that. The working tree is never touched.

killed    a test that it names failed; the table shows which
survived  every test that it names passed: nothing would notice such a mistake
bad       its text does not stand exactly once, the change does not compile, or the tests did not run (an error at
          import, collection or set-up, or no end within --timeout)

The exit code is 0 if every mutant was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
MUTANTS = ROOT / "scripts" / "mutants.toml"
PACKAGE = "sft_mask"
STYLES = {"killed": "green", "survived": "bold red", "bad": "bold yellow"}


class MutationError(Exception):
    """A mutant, or a copy of the project, that shows nothing."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One small change.

    Attributes:
        name: the module, and what goes wrong there.
        file: path in the project.
        old: text that stands in it exactly once.
        new: what takes its place.
        tests: files or node ids of pytest, of which one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied(self, source: str) -> str:
        """The source with the change.

        Raises:
            MutationError: it cannot be made, changes nothing, or does not compile.
        """
        count = source.count(self.old)
        if count != 1:
            raise MutationError(f"its text stands {count} times in {self.file}, not once")
        if self.old == self.new:
            raise MutationError("it changes nothing")
        changed = source.replace(self.old, self.new)
        try:
            compile(changed, self.file, "exec")
        except SyntaxError as error:
            raise MutationError(f"{self.file} does not compile with it: {error}") from error
        return changed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one mutant.

    Attributes:
        mutant: its name.
        file: that was changed.
        verdict: ``"killed"``, ``"survived"`` or ``"bad"``.
        told_by: the test that failed, or why nothing can be said.
        seconds: it took.
    """

    mutant: str
    file: str
    verdict: str
    told_by: str
    seconds: float


def read_mutants(path: Path = MUTANTS) -> list[Mutant]:
    """The mutants of a list, in its order."""
    entries = tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]
    return [Mutant(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def arguments() -> argparse.Namespace:
    text = __doc__ or ""
    parser = argparse.ArgumentParser(
        description=text.partition("\n")[0],
        epilog=text.partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="mutants with this in their name")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="run N at the same time (default: 1)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the outcomes there")
    parser.add_argument("--list", action="store_true", help="print the mutants and their tests, and run nothing")
    parser.add_argument("--timeout", type=float, default=300, metavar="SECONDS", help="for one mutant (default: 300)")
    return parser.parse_args()


# copies


def files_of(root: Path) -> list[Path]:
    """Files that git tracks or does not ignore, as paths in the project."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, check=False)
    if listed.returncode:
        raise MutationError(f"git does not list the files of {root}: {listed.stderr.decode().strip()}. Use a clone.")
    names = dict.fromkeys(listed.stdout.decode().split("\0"))
    return [Path(name) for name in names if name and (root / name).is_file()]


def copied(files: Iterable[Path], source: Path, target: Path) -> Path:
    """The folder ``target``, with the files of another in it."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / file, target / file)
    return target


def environment(copy: Path) -> dict[str, str]:
    """Everything from the copy, nothing from a hub, one thread, and the same examples in each run."""
    fixed = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    return {**os.environ, **fixed, "PYTHONPATH": str(copy)}


def check_import(copy: Path) -> None:
    """Makes sure that whoever runs in a copy imports the package from there.

    Raises:
        MutationError: it comes from somewhere else, or cannot be imported.
    """
    command = [sys.executable, "-c", f"import {PACKAGE}; print({PACKAGE}.__file__)"]
    shown = subprocess.run(command, cwd=copy.parent, env=environment(copy), capture_output=True, text=True, check=False)
    if shown.returncode:
        raise MutationError(f"{PACKAGE} cannot be imported: {shown.stderr.strip().splitlines()[-1]}")
    if not Path(shown.stdout.strip()).resolve().is_relative_to(copy.resolve()):
        raise MutationError(f"{PACKAGE} was imported from {shown.stdout.strip()} and not from the copy")


# tests


def run_tests(copy: Path, tests: Sequence[str], timeout: float) -> tuple[str, str]:
    """Runs tests in a copy, up to the first that fails: the verdict, and who told it."""
    report = copy.parent / f"{copy.name}.xml"
    options = ["-x", "-q", "--hypothesis-seed=0", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", *options, *tests]
    try:
        check_import(copy)
        done = subprocess.run(
            command, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False, timeout=timeout
        )
    except MutationError as error:
        return "bad", str(error)
    except subprocess.TimeoutExpired:
        return "bad", f"no end within {timeout:g} seconds"
    failed = failures(report) if report.exists() else []
    if done.returncode == 1 and failed:
        return "killed", failed[0]
    if done.returncode == 0:
        return "survived", ""
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "bad", next((line for line in reversed(said) if line.startswith(("ERROR", "E  "))), said[-1] if said else "")


def failures(report: Path) -> list[str]:
    """Tests that failed when they were called; an error at import, collection or set-up is no failure."""
    cases = ET.parse(report).iter("testcase")
    return [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("failure") is not None]


def outcome_of(mutant: Mutant, clean: Path, files: Sequence[Path], copy: Path, timeout: float) -> Outcome:
    """Copies the project, changes the copy, and runs the tests that must notice."""
    begun = time.monotonic()
    copied(files, clean, copy)
    try:
        changed = mutant.applied((copy / mutant.file).read_text(encoding="utf-8"))
    except (MutationError, OSError) as error:
        verdict, told_by = "bad", str(error)
    else:
        (copy / mutant.file).write_text(changed, encoding="utf-8")
        verdict, told_by = run_tests(copy, mutant.tests, timeout)
    shutil.rmtree(copy)
    return Outcome(mutant.name, mutant.file, verdict, told_by, round(time.monotonic() - begun, 1))


def unlike(tests: Iterable[str]) -> list[str]:
    """The tests, each once, without those of a file that is there as a whole."""
    named = list(dict.fromkeys(tests))
    return [test for test in named if "::" not in test or test.partition("::")[0] not in named]


def outcomes(mutants: Sequence[Mutant], options: argparse.Namespace, console: Console) -> list[Outcome]:
    """Every mutant's outcome, in order.

    Raises:
        MutationError: a test is red in the unchanged copy, so that it can show nothing.
    """
    with TemporaryDirectory(prefix="mutants-") as name, Progress(console=console, transient=True) as progress:
        folder = Path(name).resolve()
        task = progress.add_task("unchanged", total=len(mutants) + 1)
        files = files_of(ROOT)
        clean = copied(files, ROOT, folder / "unchanged")
        tests = unlike(test for mutant in mutants for test in mutant.tests)
        verdict, told_by = run_tests(clean, tests, options.timeout * 4)
        if verdict != "survived":
            raise MutationError(f"a test is red without any change: {told_by}")
        progress.update(task, advance=1, description="mutants")
        with ThreadPoolExecutor(options.jobs) as pool:
            jobs = [
                pool.submit(outcome_of, mutant, clean, files, folder / f"mutant{number}", options.timeout)
                for number, mutant in enumerate(mutants)
            ]
            try:
                for job in as_completed(jobs):
                    made = job.result()
                    progress.update(task, advance=1)
                    if made.verdict != "killed":
                        progress.console.print(f"[{STYLES[made.verdict]}]{made.verdict}[/] {made.mutant}")
            finally:
                pool.shutdown(cancel_futures=True)  # Ctrl-C waits for what is running and for nothing else
        return [job.result() for job in jobs]


# output


def print_list(mutants: Sequence[Mutant], console: Console) -> None:
    table = Table(title=f"{len(mutants)} mutants", title_justify="left")
    for heading in ("mutant", "file", "tests"):
        table.add_column(heading, overflow="fold")
    for mutant in mutants:
        table.add_row(escape(mutant.name), escape(mutant.file), escape("\n".join(mutant.tests)))
    console.print(table)


def print_table(found: Sequence[Outcome], console: Console) -> None:
    table = Table(title="Which mistakes the tests notice", title_justify="left")
    for heading in ("mutant", "file", "verdict", "seconds", "told by"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left", overflow="fold")
    for made in found:
        style = STYLES[made.verdict]
        shown = (escape(made.mutant), escape(made.file), f"[{style}]{made.verdict}[/]", f"{made.seconds:.1f}")
        table.add_row(*shown, escape(made.told_by))
    console.print(table)
    counts = Counter(made.verdict for made in found)
    console.print(", ".join(f"{counts[verdict]} {verdict}" for verdict in STYLES) + f" of {len(found)} mutants.")


def main() -> int:
    options = arguments()
    console = Console(width=None if sys.stdout.isatty() else 200)
    every = read_mutants()
    mutants = [one for one in every if not options.only or any(text in one.name for text in options.only)]
    if not mutants:
        console.print(f"[red]no mutant's name holds[/] {escape(', '.join(options.only))}: see --list")
        return 2
    if options.list:
        print_list(mutants, console)
        return 0
    try:
        found = outcomes(mutants, options, console)
    except MutationError as error:
        console.print(f"[red]nothing can be shown:[/] {escape(str(error))}")
        return 1
    print_table(found, console)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(made) for made in found], indent=1) + "\n", encoding="utf-8")
    return int(any(made.verdict != "killed" for made in found))


if __name__ == "__main__":
    sys.exit(main())
