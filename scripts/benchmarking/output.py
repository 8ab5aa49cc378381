"""What a benchmark leaves behind: a table, a JSON file, a plot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarking.timing import Advance, ratio, spread

Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
INK, QUIET = "#0f2418", "#7a7d84"
COLOURS = ("#2fae63", "#c2459d", "#3b78c2", "#d98a1f", "#7a7d84", "#0f2418")
"""The first line of a plot is the library, in the green of its pictures."""


@contextmanager
def bar(what: str, arms: int, rounds: int, console: Console | None = None) -> Iterator[Advance]:
    """A progress bar over ``arms`` in a warm-up and ``rounds``; give what it yields to :func:`benchmarking.alternate`.

    It is drawn on the error stream, so that a table can go to a file.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console or Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=arms * (rounds + 1))
        started = False

        def advance(name: str) -> None:
            nonlocal started
            progress.update(task, advance=int(started), description=f"{what}: {name}")
            started = True

        yield advance


_UNITS = {"s": (("s", 1.0), ("ms", 1e3), ("µs", 1e6)), "B": (("GiB", 2.0**-30), ("MiB", 2.0**-20), ("KiB", 2.0**-10))}


def _shown(value: float, unit: str) -> str:
    """A value with three digits that count, in the unit that suits its size."""
    scales = _UNITS.get(unit, ((unit, 1.0),))
    name, scale = next(((name, scale) for name, scale in scales if abs(value) * scale >= 1), scales[-1])
    scaled = value * scale
    digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    return f"{scaled:,.{digits}f} {name}"


def table(
    title: str,
    measured: Mapping[str, Sequence[float]],
    baseline: str,
    *,
    notes: Mapping[str, str] | None = None,
    caption: str = "",
    unit: str = "s",
    markdown: bool = False,
) -> Table:
    """A row an arm: median, range, and the ratio of its median to the baseline's.

    Args:
        title: above the table.
        measured: values of every arm, seconds or (``unit="B"``) bytes.
        baseline: the arm that ratios are taken to.
        notes: something to say of an arm, in a last column.
        caption: below the table.
        unit: ``"s"``, ``"B"``, or a unit to print as it stands.
        markdown: drawn as a table of Markdown.
    """
    made = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    made.box = MARKDOWN if markdown else made.box
    made.add_column("arm", overflow="fold")
    for heading in ("median", "range", f"× {baseline}"):
        made.add_column(heading, justify="right")
    if notes:
        made.add_column("", overflow="fold")
    for name, values in measured.items():
        found = spread(values)
        between = f"{_shown(found.low, unit)} to {_shown(found.high, unit)}" if found.rounds > 1 else ""
        share = ratio(measured, name, baseline)
        cells = [
            name,
            _shown(found.median, unit),
            between,
            f"{share:,.{2 if share < 10 else 1 if share < 100 else 0}f}",
        ]
        made.add_row(*cells, *([notes.get(name, "")] if notes else []), style="bold" if name == baseline else None)
    return made


def summary(measured: Mapping[str, Sequence[float]], baseline: str) -> dict[str, dict[str, Any]]:
    """Median, range, rounds and ratio of every arm, ready for JSON."""
    return {
        name: {**asdict(spread(values)), "ratio": ratio(measured, name, baseline), "values": list(values)}
        for name, values in measured.items()
    }


def save_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def plot_lines(
    path: Path,
    lines: Lines,
    *,
    title: str,
    x: str,
    y: str,
    log: bool = False,
    note: str = "",
    size: tuple[float, float] = (6.4, 3.8),
) -> None:
    """One line an arm, on white; ``.svg`` or ``.png`` by the path's name.

    Args:
        path: where the picture goes; the same numbers make the same file.
        lines: by name ``(x values, y values)``; the first is drawn in the library's green.
        title: above the plot.
        x: label of the axis.
        y: label of the axis.
        log: both axes logarithmic.
        note: small, below.
        size: in inches.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "benchmark", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, facecolor="white", layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y)
        axes.set_title(title, loc="left", color=INK)
        for number, (name, (across, up)) in enumerate(lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(
                across, up, color=colour, marker="o", markersize=4, linewidth=2 if number == 0 else 1.4, label=name
            )
        if log:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.grid(True, color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        if note:
            figure.supxlabel(note, fontsize=7, color=QUIET, x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
