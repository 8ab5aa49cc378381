#!/usr/bin/env python
"""What a training step costs with the mask's loss, with TRL's, and with the model's own.

    python scripts/bench_step.py                              # SmolLM2-135M, 4 x 512 tokens; an hour on 2 cores
    python scripts/bench_step.py --part loss --kind lora --share 0.5
    python scripts/bench_step.py --part length --rounds 3     # step time against the length of rows
    python scripts/bench_step.py --plots docs/images          # also write bench_step_*.svg

A step is the forward and backward pass of one batch, as the trainer makes them, without the optimizer. All arms have
the same model, the same batch and the same labels, and take turns; a number is the median over the rounds.

loss     the mask's loss against TRL's, the model's own and the body alone, for several supervised shares
weights  token weights, and means over turns and rows, against the 0/1 mask
hook     the time of the hook on compute_loss itself, around a loss that is a constant
length   the losses with half of the tokens supervised, for several lengths of rows
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "scripts")]

import torch  # noqa: E402 - the project's folders come first
from benchmarking.arms import Measured, machine, plot_lines, ratio, table, take_turns, timed  # noqa: E402
from benchmarking.steps import (  # noqa: E402
    BODY,
    KINDS,
    MODEL,
    SHARES,
    TRL,
    Batch,
    Setup,
    Step,
    first_batch,
    parser,
    step,
)
from datasets import disable_progress_bars  # noqa: E402
from rich.console import Console  # noqa: E402

from sft_mask import Policy, Region  # noqa: E402

LENGTHS = (128, 256, 512, 1024)
CALLS = 20
"""Calls of the hook that are timed together."""
WEIGHTS: dict[str, dict[str, Any]] = {
    "0/1 mask": {},
    "mean over turns": {"reduction": "turn"},
    "mean over rows": {"reduction": "sequence"},
    "a region of weight 2": {"policy": Policy(regions=[Region(text="the", weight=2.0)])},
}
console = Console()


def measure(title: str, arms: dict[str, Step], baseline: str, options: argparse.Namespace) -> Measured:
    """Seconds of every arm, on a device that has finished."""

    def finished(run: Step) -> Callable[[], None]:
        return lambda: (run(), torch.cuda.synchronize() if options.device != "cpu" else None)

    measured = take_turns(title, {name: timed(finished(run)) for name, run in arms.items()}, options.rounds)
    console.print(table(title, measured, baseline))
    return measured


def loss(setup: Setup, options: argparse.Namespace) -> None:
    found = {}
    for share in options.share or SHARES:
        arms = losses(setup, options.length, share)
        check_same(arms)
        found[100 * share] = measure(f"loss: {setup.kind}, {share:.0%} supervised", arms, TRL, options)
    plot(options, setup.kind, "share", found, "supervised tokens, %")


def length(setup: Setup, options: argparse.Namespace) -> None:
    found = {}
    for tokens in LENGTHS:
        title = f"length: {setup.kind}, {setup.batch} x {tokens}"
        found[float(tokens)] = measure(title, losses(setup, tokens, 0.5), TRL, options)
    plot(options, setup.kind, "length", found, "tokens of a row, half of them supervised")


def losses(setup: Setup, tokens: int, share: float) -> dict[str, Step]:
    return {name: make() for name, make in setup.arms(tokens, share).items()}


def check_same(arms: dict[str, Step]) -> None:
    """Ends the program if the losses are not the same number: then the comparison would mean nothing."""
    found = {name: run() for name, run in arms.items() if name != BODY}
    for name, value in found.items():
        if abs(value - found[MODEL]) > 1e-3 * abs(found[MODEL]):
            sys.exit(f"{name} has a loss of {value}, {MODEL} {found[MODEL]}: they do not train the same tokens.")


def plot(options: argparse.Namespace, kind: str, what: str, found: dict[float, Measured], axis: str) -> None:
    if options.plots is None:
        return
    names = next(iter(found.values()))
    lines = {name: (list(found), [ratio(measured, name, TRL) for measured in found.values()]) for name in names}
    title = f"Step time against TRL's, {'all parameters' if kind == 'full' else 'LoRA'}"
    plot_lines(options.plots / f"bench_step_{what}_{kind}.svg", lines, title=title, x=axis, y="time / TRL's")


def weights(setup: Setup, options: argparse.Namespace) -> None:
    arms = {}
    for name, given in WEIGHTS.items():
        trainer = setup.trainer(options.length, 0.5, **given)
        arms[name] = step(trainer, first_batch(trainer))
    measure(f"weights: {setup.kind}, 50% supervised", arms, "0/1 mask", options)


def hook(setup: Setup, options: argparse.Namespace) -> None:
    trainer = setup.trainer(options.length, 0.5)
    batch = first_batch(trainer)
    arms = {"a step": step(trainer, batch), f"{CALLS} calls of the hook": hook_alone(trainer, batch)}
    measure(f"hook: {setup.kind}, 50% supervised", arms, "a step", options)


def hook_alone(trainer: Any, batch: Batch) -> Step:
    """``CALLS`` calls of the hooked ``compute_loss`` around a loss that is a constant."""
    constant = torch.zeros((), device=trainer.args.device)

    class Constant(type(trainer).__mro__[2]):  # type: ignore[misc]
        def compute_loss(self, *_: Any, **__: Any) -> Any:
            return constant

    class Hooked(type(trainer).__mro__[1], Constant):  # type: ignore[misc]
        pass

    items = (batch["labels"][:, 1:] != -100).sum()

    def run() -> float:
        kind, trainer.__class__ = trainer.__class__, Hooked
        for _ in range(CALLS):
            trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
        trainer.__class__ = kind
        return 0.0

    return run


PARTS: dict[str, Callable[[Setup, argparse.Namespace], None]] = {
    "loss": loss,
    "weights": weights,
    "hook": hook,
    "length": length,
}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    command.add_argument("--plots", type=Path, metavar="FOLDER", help="write bench_step_*.svg to this folder")
    options = command.parse_args()
    disable_progress_bars()
    console.print(machine())
    for kind in options.kind or KINDS:
        setup = Setup(options.model, kind, options.device, options.batch)
        for part in options.part or PARTS:
            PARTS[part](setup, options)


if __name__ == "__main__":
    main()
