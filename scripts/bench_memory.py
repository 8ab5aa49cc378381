#!/usr/bin/env python
"""How much memory a training step takes above that of the model body: with the mask's loss, TRL's and the model's own.

    python scripts/bench_memory.py                     # SmolLM2-135M, 4 x 512 tokens; some minutes on 2 cores
    python scripts/bench_memory.py --share 0.25 --kind lora

Every number comes from its own process: it makes one step to warm up, and its private memory is sampled every two
milliseconds during the next two (on a GPU: the allocator's peak). The body is the forward and backward pass without the
head; its peak is subtracted, so that what is left is what the loss costs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "scripts")]

import torch  # noqa: E402 - the project's folders come first
from benchmarking.arms import Measured, fresh_process, machine, table, take_turns  # noqa: E402
from benchmarking.memory import Peak  # noqa: E402
from benchmarking.steps import ARMS, BODY, KINDS, SHARES, TRL, Setup, parser  # noqa: E402
from rich.console import Console  # noqa: E402


def measure_one(options: argparse.Namespace) -> None:
    """One arm in this process; bytes on the last line."""
    setup = Setup(options.model, options.kind[0], options.device, options.batch)
    run = setup.arms(options.length, options.share[0])[options.child]()
    run()
    if options.device == "cpu":
        with Peak() as peak:
            run()
            run()
        print(json.dumps({"bytes": peak.greatest}))
    else:
        torch.cuda.reset_peak_memory_stats()
        run()
        run()
        print(json.dumps({"bytes": torch.cuda.max_memory_allocated()}))


def measure_all(options: argparse.Namespace, kind: str, share: float) -> Measured:
    """Bytes of every loss in every round, above the median of the body."""
    same = ["--batch", options.batch, "--length", options.length, "--device", options.device, "--model", options.model]
    same += ["--kind", kind, "--share", share, "--child"]

    def bytes_of(arm: str) -> float:
        return float(fresh_process(__file__, *same, arm)["bytes"])

    arms = {arm: partial(bytes_of, arm) for arm in ARMS}
    found = take_turns(f"{kind}, {share:.0%}", arms, options.rounds, warm_up=False)
    body = statistics.median(found.pop(BODY))
    return {arm: [value - body for value in values] for arm, values in found.items()}


def main() -> None:
    command = parser(__doc__)
    command.set_defaults(rounds=1, device="cpu")
    command.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.child:
        measure_one(options)
        return
    console = Console()
    console.print(machine())
    for kind in options.kind or KINDS:
        for share in options.share or SHARES:
            title = f"memory above the body: {kind}, {share:.0%} supervised"
            console.print(table(title, measure_all(options, kind, share), TRL, unit="B"))


if __name__ == "__main__":
    main()
