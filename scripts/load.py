#!/usr/bin/env python
"""Masks very large datasets, in a process of their own each, and measures how much memory that takes.

    python scripts/load.py                              # 5 million short rows, 100 million tokens; some minutes
    python scripts/load.py --rows 200000 --tokens 5000000 --stream 20000
    python scripts/load.py --json load.json

short rows  many conversations of one short turn, in one Arrow file that is read where it lies
long rows   conversations of about a thousand tokens
no end      a stream that never ends, of which some rows are read
processes   the batch function in ``datasets.map`` with 1, 2 and 64 processes: the same labels each time

Memory is what the process has for itself (``RssAnon`` of /proc/self/status, looked at every two milliseconds), above
what it had before, when all was imported and a small dataset had been masked. Pages of the mapped files belong to the
system's cache and are not in it. "Arrow" is the most that Arrow's own pool held. Labels are counted against character
offsets that are computed without the library.

The promise is that masking takes no more than 32 MB, whatever the size; the exit code is 1 if it is broken, or if a
label is wrong. Rows a second are for information: they depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarking.memory import Peak  # noqa: E402
from rich.console import Console  # noqa: E402 - the repository is put in front first
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

PROMISE_MB = 32
PROCESSES = (1, 2, 64)


@dataclass(frozen=True, slots=True)
class Result:
    """What one process measured."""

    case: str
    rows: int
    tokens: int
    seconds: float
    memory_mb: float | None
    arrow_mb: float | None
    is_right: bool

    @property
    def is_kept(self) -> bool:
        return self.is_right and (self.memory_mb is None or self.memory_mb <= PROMISE_MB)


# measuring


# data


def conversations(kind: str) -> list[Any]:
    """A few hundred different ones, which are repeated."""
    from support import tiny

    if kind == "long":
        return [list(chain.from_iterable(tiny.chats(32, seed=seed))) for seed in range(64)]
    return [
        [{"role": "user", "content": word}, {"role": "assistant", "content": f"{word} {other}"}]
        for word in tiny.WORDS
        for other in tiny.WORDS
    ]


def write(kind: str, amount: int, path: Path, step: Any) -> tuple[int, int, int]:
    """Writes rows (of tokens, for long ones) batch by batch; the number of rows, tokens and trained tokens."""
    import numpy as np
    import pyarrow as pa
    from support import tiny

    chats = conversations(kind)
    ids = [tiny.tokenized(chat) for chat in chats]
    trained = sum(label != -100 for chat in chats for label in tiny.expected(chat))
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])]).astype(np.int32)
    block = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(ids).astype(np.int32)))
    batch = pa.record_batch([block], names=["input_ids"])
    blocks = -(-amount // (len(block) if kind == "short" else int(offsets[-1])))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, batch.schema) as stream:
        for _ in range(blocks):
            stream.write_batch(batch)
            step(1 / blocks)
    return blocks * len(block), blocks * int(offsets[-1]), blocks * trained


# what runs in a process of its own


def child(case: str, path: str, rows: int, tokens: int, trained: int) -> None:
    import pyarrow as pa
    from datasets import Dataset, disable_progress_bars
    from support import tiny

    from sft_mask import mask_dataset

    disable_progress_bars()
    mask_dataset(tiny.messages_dataset(200), tiny.tokenizer())
    if case == "stream":
        found = _stream(rows)
    else:
        small = Dataset.from_dict({"input_ids": [tiny.tokenized(chat) for chat in tiny.chats(200)]})
        mask_dataset(small, tiny.tokenizer())
        dataset = Dataset.from_file(path)
        start = time.perf_counter()
        with Peak() as peak:
            made, report = mask_dataset(dataset, tiny.tokenizer(), return_report=True)
        seconds = time.perf_counter() - start
        counted = report.splits["train"]
        is_right = (counted.rows, counted.tokens, counted.trained_tokens) == (rows, tokens, trained) and _agree(
            made, case
        )
        arrow = pa.default_memory_pool().max_memory() / 2**20
        found = Result(f"{case} rows", rows, tokens, seconds, peak.above / 2**20, arrow, is_right)
    print(json.dumps(asdict(found)))


def _agree(made: Any, case: str) -> bool:
    """Whether the first rows, some in the middle and the last are labelled as character offsets say."""
    from support import tiny

    wanted = [tiny.expected(chat) for chat in conversations(case)]
    places = [*range(200), *range(len(made) // 2, len(made) // 2 + 200), *range(len(made) - 200, len(made))]
    return all(made[place]["labels"] == wanted[place % len(wanted)] for place in places if 0 <= place < len(made))


def _stream(rows: int) -> Result:
    from datasets import IterableDataset
    from support import tiny

    from sft_mask import mask_dataset

    chats = conversations("short")
    ids, wanted = [tiny.tokenized(chat) for chat in chats], [tiny.expected(chat) for chat in chats]

    def forever() -> Iterator[dict[str, Any]]:
        while True:
            for row in ids:
                yield {"input_ids": row}

    stream = iter(mask_dataset(IterableDataset.from_generator(forever), tiny.tokenizer()))
    is_right = all(next(stream)["labels"] == wanted[at % len(wanted)] for at in range(1000))
    start, tokens = time.perf_counter(), 0
    with Peak() as peak:
        for at in range(1000, rows):
            row = next(stream)
            tokens += len(row["labels"])
            is_right &= row["labels"] == wanted[at % len(wanted)]
    return Result("no end", rows - 1000, tokens, time.perf_counter() - start, peak.above / 2**20, None, is_right)


def in_processes(path: str, count: int, processes: int) -> Result:
    """The batch function under ``datasets.map``."""
    from datasets import Dataset, disable_progress_bars
    from support import tiny

    from sft_mask import train_on_responses_only

    disable_progress_bars()
    label = train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)
    dataset = Dataset.from_file(path).select(range(count))
    start = time.perf_counter()
    made = dataset.map(label, batched=True, num_proc=processes, load_from_cache_file=False)
    seconds = time.perf_counter() - start
    wanted = [tiny.expected(chat) for chat in conversations("short")]
    is_right = all(row["labels"] == wanted[at % len(wanted)] for at, row in enumerate(made))
    tokens = sum(map(len, made["labels"]))
    return Result(f"{processes} processes", count, tokens, seconds, None, None, is_right)


# the table


def measured(case: str, path: Path, sizes: tuple[int, int, int]) -> Result:
    command = [sys.executable, __file__, "--child", case, str(path), *map(str, sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"The process of {case} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def run(options: argparse.Namespace, progress: Progress) -> list[Result]:
    results = []
    task = progress.add_task("", total=5 + len(PROCESSES))

    def step(part: float, what: str = "") -> None:
        progress.update(task, advance=part, description=what or None)

    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder, "short.arrow"), Path(folder, "long.arrow")
        for kind, amount, path in (("short", options.rows, short), ("long", options.tokens, long)):
            step(0, f"writing {kind} rows")
            sizes = write(kind, amount, path, step)
            step(0, f"masking {kind} rows")
            results.append(measured(kind, path, sizes))
            step(1)
        step(0, "reading a stream without end")
        results.append(measured("stream", short, (options.stream, 0, 0)))
        step(1)
        for processes in PROCESSES:
            step(0, f"{processes} processes")
            results.append(in_processes(str(short), min(options.rows, 20_000), processes))
            step(1)
    return results


def table(results: list[Result]) -> Table:
    made = Table(title=f"sft_mask under load; no case may take more than {PROMISE_MB} MB", title_justify="left")
    for heading in ("case", "rows", "tokens", "seconds", "rows/s", "memory", "Arrow", "labels"):
        made.add_column(heading, justify="left" if heading in ("case", "labels") else "right")
    for result in results:
        made.add_row(
            result.case,
            f"{result.rows:,}",
            f"{result.tokens:,}",
            f"{result.seconds:.1f}",
            f"{result.rows / result.seconds:,.0f}",
            "–" if result.memory_mb is None else f"{result.memory_mb:.1f} MB",
            "–" if result.arrow_mb is None else f"{result.arrow_mb:.1f} MB",
            "right" if result.is_right else "WRONG",
            style=None if result.is_kept else "red",
        )
    return made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="short rows (default: 5 million)")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="tokens in long rows (default: 100 million)")
    parser.add_argument("--stream", type=int, default=200_000, help="rows read of the stream (default: 200,000)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the figures there")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    if options.child:
        case, path, *sizes = options.child
        child(case, path, *map(int, sizes))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120)
    with Progress(console=Console(stderr=True)) as progress:
        results = run(options, progress)
    console.print(table(results))
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return int(not all(result.is_kept for result in results))


if __name__ == "__main__":
    sys.exit(main())
