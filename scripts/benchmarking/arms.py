"""Arms of a benchmark that take turns, and what is shown of them: a table of medians, and a plot.

Only ratios of medians that were measured in one run, on one machine, while the arms took turns, are compared: a slow
minute of the machine is then a slow minute for all arms.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

Measured = dict[str, list[float]]
"""By arm: one value for each round."""
Lines = Mapping[str, tuple[Sequence[float], Sequence[float]]]
COLOURS = ("#2fae63", "#c2459d", "#3b78c2", "#d98a1f", "#7a7d84", "#0f2418")
_UNITS = {"s": (("s", 1.0), ("ms", 1e3), ("µs", 1e6)), "B": (("GiB", 2.0**-30), ("MiB", 2.0**-20), ("KiB", 2.0**-10))}
_PACKAGES = ("torch", "trl", "transformers", "datasets", "pyarrow", "numpy")


def timed(run: Callable[[], object]) -> Callable[[], float]:
    """An arm that measures how many seconds a call takes."""

    def seconds() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return seconds


def take_turns(title: str, arms: Mapping[str, Callable[[], float]], rounds: int, *, warm_up: bool = True) -> Measured:
    """What every arm measured in every round; the progress bar goes to the error stream.

    First all arms run once as a warm-up that does not count. Then every arm runs once per round, each round begins with
    a different arm, and garbage is collected before each run.

    >>> order = []
    >>> measured = take_turns("", {name: lambda name=name: order.append(name) or 1.0 for name in "abc"}, 2)
    >>> "".join(order), measured["b"]
    ('abcabcbca', [1.0, 1.0])
    """
    names = list(arms)
    measured: Measured = {name: [] for name in names}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=len(names) * (rounds + warm_up))
        for number in range(-1 if warm_up else 0, rounds):
            first = max(number, 0) % len(names)
            for name in names[first:] + names[:first]:
                progress.update(task, description=f"{title}: {name}")
                gc.collect()
                value = arms[name]()
                progress.advance(task)
                if number >= 0:
                    measured[name].append(value)
    return measured


def ratio(measured: Mapping[str, Sequence[float]], arm: str, baseline: str) -> float:
    """Median of an arm over the median of another.

    >>> ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    2.0
    """
    return statistics.median(measured[arm]) / statistics.median(measured[baseline])


def fresh_process(script: str | Path, *arguments: object) -> dict[str, Any]:
    """Runs a Python script in its own process and reads the JSON on the last line of its output.

    Raises:
        RuntimeError: it failed, with the end of its error output.
    """
    command = [sys.executable, str(script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(title: str, measured: Measured, baseline: str, *, caption: str = "", unit: str = "s") -> Table:
    """One row per arm: median and range in seconds (``unit="B"``: bytes), and the ratio to the baseline's median."""
    made = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    made.add_column("arm", overflow="fold")
    for heading in ("median", "range", f"× {baseline}"):
        made.add_column(heading, justify="right")
    for name, values in measured.items():
        between = f"{shown(min(values), unit)} to {shown(max(values), unit)}" if len(values) > 1 else ""
        share = digits(ratio(measured, name, baseline))
        style = "bold" if name == baseline else None
        made.add_row(name, shown(statistics.median(values), unit), between, share, style=style)
    return made


def shown(value: float, unit: str) -> str:
    """A value with three significant digits, in the unit that suits its size.

    >>> shown(0.0123, "s"), shown(3 * 2**20, "B")
    ('12.3 ms', '3 MiB')
    """
    scales = _UNITS[unit]
    name, scale = next(((name, scale) for name, scale in scales if abs(value) * scale >= 1), scales[-1])
    return f"{digits(value * scale)} {name}"


def digits(value: float) -> str:
    """Three significant digits.

    >>> digits(1234.5), digits(12.345), digits(0.012345)
    ('1,234', '12.3', '0.0123')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def plot_lines(path: Path, lines: Lines, *, title: str, x: str, y: str, log: bool = False) -> None:
    """Plots lines ``{name: (x values, y values)}`` to ``.svg`` or ``.png``; the same numbers make the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "benchmark", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 3.8), facecolor="white", layout="constrained")
        axes = figure.add_subplot(xlabel=x, ylabel=y, **({"xscale": "log", "yscale": "log"} if log else {}))
        axes.set_title(title, loc="left")
        for colour, (name, (across, up)) in zip(COLOURS, lines.items(), strict=False):
            axes.plot(across, up, color=colour, marker="o", markersize=4, label=name)
        axes.grid(True, color="#e6e8eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.supxlabel(machine().split("; ")[0], fontsize=7, color=COLOURS[4], x=0.01, ha="left")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)


def machine() -> str:
    """Processor, cores, memory, GPU (if the benchmark has imported torch), and versions, on one line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    torch = sys.modules.get("torch")
    gpu = f", {torch.cuda.get_device_name()}" if torch is not None and torch.cuda.is_available() else ""
    versions = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return f"{cpu}, {os.cpu_count()} cores, {gib:.0f} GiB{gpu}; Python {platform.python_version()}, {versions}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"
