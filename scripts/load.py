#!/usr/bin/env python
"""Masks very large datasets, each in its own process, and measures how much memory that takes.

    python scripts/load.py                              # 5 million short rows, 100 million tokens; some minutes
    python scripts/load.py --rows 200000 --tokens 5000000 --stream 20000

short rows      many conversations of one short turn, in one memory-mapped Arrow file
long rows       conversations of about a thousand tokens
endless stream  a stream that never ends, of which some rows are read
processes       the batch function in ``datasets.map`` with 1, 2 and 64 processes: the same labels each time

Memory is the private memory of the process (``RssAnon`` of /proc/self/status, sampled every two milliseconds) above
what it had after everything was imported and a small dataset was masked. Pages of memory-mapped files belong to the
system's cache and are not counted. "Arrow" is the peak of Arrow's own memory pool. Labels are compared with labels
computed from character offsets without the library.

Masking must take no more than 32 MB, whatever the size. The exit code is 1 if it takes more, or if a label is wrong.
Rows per second depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
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

from benchmarking.arms import fresh_process  # noqa: E402 - the clone's own folders come first
from benchmarking.memory import Peak  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

LIMIT_MB = 32
PROCESSES = (1, 2, 64)


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured in one process."""

    case: str
    rows: int
    tokens: int
    seconds: float
    memory_mb: float | None
    arrow_mb: float | None
    is_right: bool

    @property
    def is_good(self) -> bool:
        return self.is_right and (self.memory_mb is None or self.memory_mb <= LIMIT_MB)


# data


def conversations(kind: str) -> list[Any]:
    """A few hundred different conversations; the datasets repeat them."""
    from support import tiny

    if kind == "long":
        return [list(chain.from_iterable(tiny.chats(32, seed=seed))) for seed in range(64)]
    return [
        [{"role": "user", "content": word}, {"role": "assistant", "content": f"{word} {other}"}]
        for word in tiny.WORDS
        for other in tiny.WORDS
    ]


def write(kind: str, amount: int, path: Path, step: Any) -> tuple[int, int, int]:
    """Writes ``amount`` short rows, or tokens in long rows; returns the number of rows, tokens and trained tokens."""
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


# what runs in its own process


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
        is_right = (counted.rows, counted.tokens, counted.trained_tokens) == (rows, tokens, trained)
        is_right = is_right and _agree(made, case)
        arrow = pa.default_memory_pool().max_memory() / 2**20
        found = Result(f"{case} rows", rows, tokens, seconds, peak.above / 2**20, arrow, is_right)
    print(json.dumps(asdict(found)))


def _agree(made: Any, case: str) -> bool:
    """Whether the labels of the first, some middle and the last rows are those from character offsets."""
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

    def endless() -> Iterator[dict[str, Any]]:
        while True:
            for row in ids:
                yield {"input_ids": row}

    stream = iter(mask_dataset(IterableDataset.from_generator(endless), tiny.tokenizer()))
    is_right = all(next(stream)["labels"] == wanted[at % len(wanted)] for at in range(1000))
    start, tokens = time.perf_counter(), 0
    with Peak() as peak:
        for at in range(1000, rows):
            row = next(stream)
            tokens += len(row["labels"])
            is_right &= row["labels"] == wanted[at % len(wanted)]
    return Result(
        "endless stream", rows - 1000, tokens, time.perf_counter() - start, peak.above / 2**20, None, is_right
    )


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
    return Result(**fresh_process(__file__, "--child", case, path, *sizes))


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
        step(0, "reading an endless stream")
        results.append(measured("stream", short, (options.stream, 0, 0)))
        step(1)
        for processes in PROCESSES:
            step(0, f"{processes} processes")
            results.append(in_processes(str(short), min(options.rows, 20_000), processes))
            step(1)
    return results


def table(results: list[Result]) -> Table:
    made = Table(title=f"sft_mask under load; the limit is {LIMIT_MB} MB", title_justify="left")
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
            style=None if result.is_good else "red",
        )
    return made


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000, help="short rows (default: 5 million)")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="tokens in long rows (default: 100 million)")
    parser.add_argument("--stream", type=int, default=200_000, help="rows to read from the stream (default: 200,000)")
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
    return int(not all(result.is_good for result in results))


if __name__ == "__main__":
    sys.exit(main())
