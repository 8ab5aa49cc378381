"""What the benchmark scripts share: the machine in words, arms that take turns, a table of ratios, JSON and plots.

A number of a benchmark is a ratio of medians, both measured in one run on one machine while the arms took turns, so
that a slow minute of the machine is a slow minute for all of them.
"""

from benchmarking.machine import machine, machine_line
from benchmarking.memory import Peak
from benchmarking.output import bar, plot_lines, save_json, summary, table
from benchmarking.timing import (
    Spread,
    alternate,
    alternate_values,
    fresh_process,
    ratio,
    spread,
    timed,
)

__all__ = [
    "Peak",
    "Spread",
    "alternate",
    "alternate_values",
    "bar",
    "fresh_process",
    "machine",
    "machine_line",
    "plot_lines",
    "ratio",
    "save_json",
    "spread",
    "summary",
    "table",
    "timed",
]
