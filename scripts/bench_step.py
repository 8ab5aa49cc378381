#!/usr/bin/env python
"""What a training step costs: with the mask's loss, with TRL's, and with the model's own.

    python scripts/bench_step.py                              # SmolLM2-135M, 4 x 512 tokens; an hour on 2 cores
    python scripts/bench_step.py --part loss --kind lora --share 0.5
    python scripts/bench_step.py --part length --rounds 3     # step time against the length of rows
    python scripts/bench_step.py --json step.json --plots docs/images

A step is the forward and backward pass of one batch, as the trainer makes them, without the optimizer. All arms have
the same model, the same batch and the same labels, and take turns; a number is the median over the rounds.

loss     the mask's loss against TRL's, the model's own and the body alone, at several supervised shares
weights  token weights, and reductions by turn and by sequence, against the 0/1 mask
hook     what the hook on compute_loss itself takes, with a loss behind it that does nothing
length   the loss at half of the tokens supervised, for several lengths of rows
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "scripts")]

import torch  # noqa: E402 - the project's folders come first
from benchmarking import alternate, bar, machine, machine_line, plot_lines, ratio, save_json, summary, table  # noqa: E402
from benchmarking.steps import (  # noqa: E402
    KINDS,
    Batch,
    body,
    build,
    conversations,
    first_batch,
    load,
    peers,
    plain,
    step,
    tokenizer_of,
)
from datasets import disable_progress_bars  # noqa: E402
from local_model import smollm2_folder  # noqa: E402
from rich.console import Console  # noqa: E402

from sft_mask import Policy, Region  # noqa: E402

OURS, TRL, MODEL, BODY = "sft_mask", "TRL", "the model's own loss", "body alone"
PARTS = ("loss", "weights", "hook", "length")
Measured = dict[str, list[float]]
WEIGHTS: dict[str, dict[str, Any]] = {
    "0/1 mask": {},
    "mean over turns": {"reduction": "turn"},
    "mean over rows": {"reduction": "sequence"},
    "a region that counts twice": {"policy": Policy(regions=[Region(text="the", weight=2.0)])},
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--kind", action="append", choices=KINDS, help="all parameters, or LoRA (default: both)")
    parser.add_argument("--share", action="append", type=float, help="supervised tokens (default: 0.25, 0.5 and 0.75)")
    parser.add_argument("--batch", type=int, default=4, metavar="ROWS")
    parser.add_argument("--length", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", help="folder or name (default: SmolLM2-135M-Instruct from its package)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", action="store_true", help="tables of Markdown")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write bench_step_*.svg here")
    return parser.parse_args()


class Bench:
    """One model after the other, and what is measured with it."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.name = options.model or str(smollm2_folder())
        self.tokenizer = tokenizer_of(self.name)
        self.record: dict[str, Any] = {"machine": machine(), "rows": options.batch, "tokens_a_row": options.length}

    def run(self) -> None:
        """Every part that was asked for."""
        parts: dict[str, Callable[[str, Any], None]] = {
            "loss": self.losses,
            "weights": self.weights,
            "hook": self.hook,
            "length": self.lengths,
        }
        self.console.print(machine_line(self.record["machine"]))
        for kind in self.options.kind or KINDS:
            model = load(self.name, kind, self.options.device)
            for part in self.options.part or PARTS:
                parts[part](kind, model)

    def trainer(self, model: Any, share: float, length: int, **weights: Any) -> tuple[Any, Batch]:
        """A trainer whose batches have so large a supervised share, and its first batch."""
        data = conversations(self.tokenizer, self.options.batch, length, share)
        device, batch = self.options.device, self.options.batch
        trainer = build(model, self.tokenizer, data, device, batch=batch, masked=True, **weights)
        return trainer, first_batch(trainer)

    def without(self, model: Any, share: float, length: int) -> Any:
        """TRL's trainer as it is."""
        data = conversations(self.tokenizer, self.options.batch, length, share)
        device = self.options.device
        return build(model, self.tokenizer, data, device, batch=self.options.batch, masked=False)

    def arms(self, model: Any, share: float, length: int) -> dict[str, Callable[[], float]]:
        """The losses that are compared."""
        trainer, batch = self.trainer(model, share, length)
        others = {name: make(trainer.model, batch) for name, make in peers(self.options.device).items()}
        return {
            OURS: step(trainer, batch),
            TRL: step(self.without(model, share, length), batch),
            MODEL: plain(trainer.model, batch),
            BODY: body(trainer.model, batch),
            **others,
        }

    def measure(self, title: str, arms: dict[str, Callable[[], Any]]) -> Measured:
        """Seconds of every arm, on a device that has finished."""
        finished = {name: self._finished(run) for name, run in arms.items()}
        with bar(title, len(arms), self.options.rounds) as advance:
            return alternate(finished, self.options.rounds, advance)

    def _finished(self, run: Callable[[], Any]) -> Callable[[], None]:
        def wait() -> None:
            run()
            if self.options.device != "cpu":
                torch.cuda.synchronize()

        return wait

    def show(self, part: str, name: str, measured: Measured, baseline: str) -> None:
        """A table, and an entry of the record."""
        self.console.print(table(f"{part}: {name}", measured, baseline, markdown=self.options.markdown))
        self.record.setdefault(part, {})[name] = summary(measured, baseline)

    # parts

    def losses(self, kind: str, model: Any) -> None:
        found: dict[float, Measured] = {}
        for share in self.options.share or (0.25, 0.5, 0.75):
            arms = self.arms(model, share, self.options.length)
            self.check(arms)
            found[share] = self.measure(f"loss, {kind}, {share:.0%}", arms)
            self.show("loss", f"{kind}, {share:.0%} supervised", found[share], TRL)
        self.plot(kind, "share", {share * 100: measured for share, measured in found.items()}, "supervised tokens, %")

    def lengths(self, kind: str, model: Any) -> None:
        found: dict[float, Measured] = {}
        for length in (128, 256, 512, 1024):
            found[length] = self.measure(f"length, {kind}, {length}", self.arms(model, 0.5, length))
            self.show("length", f"{kind}, {self.options.batch} x {length}", found[length], TRL)
        self.plot(kind, "length", found, "tokens of a row, half of them supervised")

    def weights(self, kind: str, model: Any) -> None:
        arms = {}
        for name, weights in WEIGHTS.items():
            arms[name] = step(*self.trainer(model, 0.5, self.options.length, **weights))
        self.show("weights", f"{kind}, 50% supervised", self.measure(f"weights, {kind}", arms), "0/1 mask")

    def hook(self, kind: str, model: Any) -> None:
        trainer, batch = self.trainer(model, 0.5, self.options.length)
        arms = {"a step": step(trainer, batch), "the hook alone": hook_alone(trainer, batch)}
        measured = self.measure(f"hook, {kind}", arms)
        measured["the hook alone"] = [seconds / REPEATS for seconds in measured["the hook alone"]]
        self.show("hook", f"{kind}, 50% supervised", measured, "a step")

    def check(self, arms: dict[str, Callable[[], float]]) -> None:
        """All losses are the same number, or the comparison means nothing."""
        losses = {name: run() for name, run in arms.items() if name != BODY}
        for name, loss in losses.items():
            if abs(loss - losses[MODEL]) > 1e-3 * abs(losses[MODEL]):
                raise SystemExit(f"{name} has a loss of {loss}, {MODEL} {losses[MODEL]}: they do not grade the same.")

    def plot(self, kind: str, what: str, found: dict[float, Measured], axis: str) -> None:
        if self.options.plots is None:
            return
        across = sorted(found)
        lines = {name: (across, list(self._ratios(found, across, name))) for name in found[across[0]]}
        path = self.options.plots / f"bench_step_{what}_{kind}.svg"
        title = f"Step time against TRL's, {'all parameters' if kind == 'full' else 'LoRA'}"
        plot_lines(path, lines, title=title, x=axis, y="time / TRL's", note=machine_line(self.record["machine"]))

    def _ratios(self, found: dict[float, Measured], across: list[float], name: str) -> Iterator[float]:
        return (ratio(found[x], name, TRL) for x in across)


REPEATS = 20


def hook_alone(trainer: Any, batch: Batch) -> Callable[[], None]:
    """``REPEATS`` calls of the hooked ``compute_loss`` with a loss behind it that is one number."""
    loss = torch.zeros((), device=trainer.args.device)

    class Behind(type(trainer).__mro__[2]):  # type: ignore[misc]
        def compute_loss(self, *_: Any, **__: Any) -> Any:
            return loss

    class Hooked(type(trainer).__mro__[1], Behind):  # type: ignore[misc]
        pass

    items = (batch["labels"][:, 1:] != -100).sum()

    def run() -> None:
        kind, trainer.__class__ = trainer.__class__, Hooked
        for _ in range(REPEATS):
            trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=items)
        trainer.__class__ = kind

    return run


def main() -> None:
    disable_progress_bars()
    options = arguments()
    bench = Bench(options, Console())
    bench.run()
    if options.json:
        save_json(options.json, bench.record)


if __name__ == "__main__":
    main()
