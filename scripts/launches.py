"""Every launch configuration on two CPU processes against one process, and the table of docs/launch.md.

    scripts/test_launch.sh --table               installs what is needed, and writes the table (half an hour)
    scripts/test_launch.sh --table fsdp2 zero3   prints the rows of these

Each configuration of recipes/accelerate is launched with ``accelerate launch``; tests/launch/jobs.py is what its
processes run, tests/launch/compared.py says which trainings these are. Losses and parameters of full fine-tuning with
SGD are compared with a plain loop in float64, those of everything else with the same training in one process.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "launch.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarking.pages import write_between  # noqa: E402
from launch.compared import Differences, differences, found, jobs_of  # noqa: E402  the tests are not installed
from launch.launching import CONFIGURATIONS, launch_jobs  # noqa: E402

HEADER = (
    "| configuration | trainings | loss | parameters | evaluation | saved file | with the normalization broken "
    "| peak memory, library's head / TRL's |\n|---|--:|--:|--:|--:|--:|--:|--:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Launch every configuration on two CPU processes.")
    parser.add_argument("names", nargs="*", default=list(CONFIGURATIONS), help=", ".join(CONFIGURATIONS))
    args = parser.parse_args()
    rows, failed = [], []
    for name in args.names:
        made = row(name)
        print(made or f"{name} failed", flush=True)
        (rows if made else failed).append(made or name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    if len(rows) == len(CONFIGURATIONS):
        write_between(PAGE, "launches", "\n".join([HEADER, *rows]))


def row(name: str) -> str | None:
    """Launches a configuration with all of its jobs: a line of the table, or nothing if it failed."""
    jobs = jobs_of(name, fast=False)
    with tempfile.TemporaryDirectory() as folder:
        ended = launch_jobs(name, [vars(job) for job in jobs], Path(folder))
        if ended.code:
            print(f"{ended.output[-6000:]}\n{name} ended with {ended.code}")
            return None
        equal = [job for job in jobs if not job.name.startswith("fault")]
        most = Differences.largest(differences(name, job, Path(folder)) for job in equal)
        broken = [differences(name, job, Path(folder)).parameters for job in jobs if job.fault]
        peaks = [max(rank["peak"] for rank in found(Path(folder), job)) for job in jobs if job.vocabulary]
    apart = [f"{value:.0e}" for value in (most.loss, most.parameters, most.evaluation)]
    seen = f"{min(broken):.0e}" if broken else ""
    memory = " / ".join(f"{peak:.0f} MB" for peak in peaks)
    saved = "equal" if most.saved == 0 else f"{most.saved:.0e}"
    return f"| `{name}` | {len(equal)} | {' | '.join(apart)} | {saved} | {seen} | {memory} |"


if __name__ == "__main__":
    main()
