#!/usr/bin/env python
"""How much memory a training step takes above that of the model body, with the mask's loss, TRL's and the model's own.

    python scripts/bench_memory.py                     # SmolLM2-135M, 4 x 512 tokens; some minutes on 2 cores
    python scripts/bench_memory.py --share 0.25 --kind lora
    python scripts/bench_memory.py --json memory.json --plots docs/images

Every number comes from a process of its own: it makes one step, and is then looked at every two milliseconds during the
next ones (on a GPU: the allocator's peak). The body is the forward and backward pass without the head; its peak is
taken off, so that what is left is what the loss costs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes"), str(ROOT / "scripts")]

from benchmarking import (  # noqa: E402
    Peak,
    bar,
    fresh_process,
    machine,
    machine_line,
    plot_lines,
    save_json,
    spread,
    table,
)
from local_model import smollm2_folder  # noqa: E402
from rich.console import Console  # noqa: E402

OURS, TRL, MODEL, BODY = "sft_mask", "TRL", "the model's own loss", "body alone"
ARMS = (OURS, TRL, MODEL, BODY)
STEPS = 2


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog="\n".join((__doc__ or "").splitlines()[2:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kind", action="append", choices=("full", "lora"), help="all parameters, or LoRA (both)")
    parser.add_argument("--share", action="append", type=float, help="supervised tokens (default: 0.25, 0.5 and 0.75)")
    parser.add_argument("--batch", type=int, default=4, metavar="ROWS")
    parser.add_argument("--length", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=1, help="processes of every arm")
    parser.add_argument("--model", help="folder or name (default: SmolLM2-135M-Instruct from its package)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--markdown", action="store_true", help="tables of Markdown")
    parser.add_argument("--json", type=Path, metavar="PATH")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="write bench_memory_*.svg here")
    parser.add_argument("--child", choices=ARMS, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(options: argparse.Namespace) -> None:
    """One arm in this process; bytes on the last line."""
    from benchmarking.steps import body, build, conversations, first_batch, load, plain, step, tokenizer_of

    tokenizer = tokenizer_of(options.model)
    data = conversations(tokenizer, options.batch, options.length, options.share[0])
    model = load(options.model, options.kind[0], options.device)
    trainer = build(model, tokenizer, data, options.device, batch=options.batch, masked=True)
    batch = first_batch(trainer)
    arms: dict[str, Callable[[], Callable[[], float]]] = {
        OURS: lambda: step(trainer, batch),
        TRL: lambda: step(
            build(model, tokenizer, data, options.device, batch=options.batch, masked=False),
            batch,
        ),
        MODEL: lambda: plain(trainer.model, batch),
        BODY: lambda: body(trainer.model, batch),
    }
    run = arms[options.child]()
    run()
    print(json.dumps({"bytes": peak(run, options.device)}))


def peak(run: Callable[[], float], device: str) -> int:
    """Most bytes during some steps."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        for _ in range(STEPS):
            run()
        return int(torch.cuda.max_memory_allocated())
    with Peak() as seen:
        for _ in range(STEPS):
            run()
    return seen.greatest


def measure(options: argparse.Namespace, kind: str, share: float) -> dict[str, list[float]]:
    """Bytes of every arm in every round; of the losses, above the body's median."""
    found: dict[str, list[float]] = {name: [] for name in ARMS}
    same = ["--batch", options.batch, "--length", options.length, "--device", options.device, "--model", options.model]
    with bar(f"{kind}, {share:.0%}", len(ARMS), options.rounds - 1) as advance:
        for _ in range(options.rounds):
            for name in ARMS:
                advance(name)
                asked = [*same, "--kind", kind, "--share", share, "--child", name]
                found[name].append(fresh_process(__file__, *map(str, asked))["bytes"])
    base = spread(found[BODY]).median
    return {name: [value - base for value in values] for name, values in found.items() if name != BODY}


def main() -> None:
    options = arguments()
    options.model = options.model or str(smollm2_folder())
    if options.child:
        child(options)
        return
    console = Console()
    record = {"machine": machine(), "batch": options.batch, "length": options.length}
    console.print(machine_line(machine()))
    for kind in options.kind or ("full", "lora"):
        found = {}
        for share in options.share or (0.25, 0.5, 0.75):
            found[share] = measure(options, kind, share)
            title = f"memory above the body: {kind}, {share:.0%} supervised"
            console.print(table(title, found[share], TRL, unit="B", markdown=options.markdown))
        record[kind] = found
        if options.plots:
            shares = sorted(found)
            lines = {
                name: ([s * 100 for s in shares], [spread(found[s][name]).median / 2**20 for s in shares])
                for name in ARMS[:3]
            }
            plot_lines(
                options.plots / f"bench_memory_{kind}.svg",
                lines,
                title=f"Memory above the body, {'all parameters' if kind == 'full' else 'LoRA'}",
                x="supervised tokens, %",
                y="MiB",
                note=machine_line(machine()),
            )
    if options.json:
        save_json(options.json, record)


if __name__ == "__main__":
    main()
