"""Arms of a benchmark that take turns, and what their numbers come to."""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Advance = Callable[[str], object]
"""Told the name of the arm that is about to run; see :func:`benchmarking.bar`."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and how far the rounds lie apart, in the unit of the measurements."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest.

    >>> spread([3.0, 1.0, 2.0])
    Spread(median=2.0, low=1.0, high=3.0, rounds=3)
    """
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(measured: Mapping[str, Sequence[float]], arm: str, baseline: str) -> float:
    """Median of an arm over the median of another.

    >>> ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 2.0]}, "a", "b")
    2.0
    """
    return statistics.median(measured[arm]) / statistics.median(measured[baseline])


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def alternate(
    arms: Mapping[str, Callable[[], Any]], rounds: int, progress: Advance | None = None
) -> dict[str, list[float]]:
    """Seconds of every arm in every round; see :func:`alternate_values`."""
    return alternate_values({name: _stopwatch(run) for name, run in arms.items()}, rounds, progress)


def _stopwatch(run: Callable[[], Any]) -> Callable[[], float]:
    return lambda: timed(run)


def alternate_values(
    arms: Mapping[str, Callable[[], float]], rounds: int, progress: Advance | None = None
) -> dict[str, list[float]]:
    """What every arm measured of itself in every round.

    All arms run once as a warm-up that does not count; then in every round, each round beginning with another arm, and
    every run after a collection of garbage.

    >>> order = []
    >>> measured = alternate_values({name: lambda name=name: order.append(name) or 1.0 for name in "abc"}, 2)
    >>> "".join(order), measured["b"]
    ('abcabcbca', [1.0, 1.0])
    """
    names = list(arms)
    measured: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-1, rounds):
        first = max(number, 0) % len(names)
        for name in names[first:] + names[:first]:
            if progress is not None:
                progress(name)
            gc.collect()
            value = arms[name]()
            if number >= 0:
                measured[name].append(value)
    return measured


def fresh_process(script: str | Path, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Runs a Python script in a process of its own and reads the JSON on its last line of output.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
