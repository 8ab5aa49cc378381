#!/usr/bin/env python
"""How fast labels are made: the search in ids, a whole dataset on disk, next to a trainer, and as data grows.

    python scripts/bench_mask.py                                   # everything, about 8 minutes on two cores
    python scripts/bench_mask.py --part kernel --part import       # only these parts
    python scripts/bench_mask.py --tokens 1000000 --rounds 3       # a quick look
    python scripts/bench_mask.py --part end_to_end --dataset "ids, special markers" --tokens 100000000

kernel      ids to labels, in blocks as the library reads them, against copying the same ids; labels are checked
            against labels counted from character offsets
end_to_end  from a tokenized dataset on disk to one with labels, without the rows that train nothing, nothing cached:
            against copying its files, against datasets.map of a loop over tokens followed by a filter, and against the
            function of unsloth_zoo if it is installed
trainer     building a first SFTTrainer, and what train_on_responses_only adds
scaling     time against the number of tokens, for long and for short rows
import      a fresh `import sft_mask`, and the command's --help, above a bare Python

Every number is a ratio of medians, measured in one run while the arms took turns; seconds are of this machine only. The
exit code is 1 if a label differs from the counted one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "recipes")]

import datasets  # noqa: E402 - the clone's own folders come first
import numpy as np  # noqa: E402
import pyarrow.compute as pc  # noqa: E402
from benchmarking.arms import fresh_process, machine, plot_lines, ratio, table, take_turns, timed  # noqa: E402
from benchmarking.chats import LONG, MARKERS, SHORT, Corpus, corpus, expected_labels  # noqa: E402
from benchmarking.loops import fast_loop, plain_loop  # noqa: E402
from local_model import smollm2_folder  # noqa: E402
from rich.console import Console  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from sft_mask import mask_dataset, train_on_responses_only  # noqa: E402
from sft_mask.constants import IGNORE_INDEX  # noqa: E402
from sft_mask.core.labels import make_labels  # noqa: E402
from sft_mask.data.setup import MaskSettings, build_masker, read_tokenizer  # noqa: E402

CHILDREN = ROOT / "scripts" / "benchmarking" / "children.py"
BLOCK = 1 << 20  # tokens that the library reads at once
CHECKED_ROWS = 200
UNANSWERED = 100  # every so many rows hold no answer, and are dropped
TRL_COLUMNS = ("input_ids", "labels")
DATASETS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "ids, special markers": ("special", TRL_COLUMNS, False),
    "ids, special markers, an index mapping": ("special", TRL_COLUMNS, True),
    "ids, plain-text markers": ("text", TRL_COLUMNS, False),
    "ids and messages": ("special", (*TRL_COLUMNS, "messages"), False),
}
"""Of end_to_end: style of the markers, columns, and whether rows are left out by an index mapping."""

console = Console(width=None if sys.stdout.isatty() else 160)


def marker_ids(tokenizer: Any, style: str) -> dict[str, Any]:
    """What the loops need: the ids of both markers by themselves."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in MARKERS[style]]
    return {"instruction": ids[0], "response": ids[1], "ignored": IGNORE_INDEX}


# kernel: ids to labels


def kernel(options: argparse.Namespace, tokenizer: Any) -> None:
    for style in MARKERS:
        data = corpus(options.tokens, tokenizer, style)
        label = label_function(data, style, tokenizer)
        check_labels(data.head(min(CHECKED_ROWS, data.rows)), style, label, tokenizer)
        arms: dict[str, Callable[[], object]] = {
            "copy": data.ids.copy,
            "copy in blocks": lambda data=data: [ids.copy() for ids, _ in blocks(data)],
            "sft_mask": lambda data=data, label=label: [label(*block) for block in blocks(data)],
        }
        title = f"kernel, {style} markers"
        measured = take_turns(title, {name: timed(run) for name, run in arms.items()}, options.rounds)
        part = data.head(max(1, data.rows // 40))
        batch = {"input_ids": [part.row(number).tolist() for number in range(part.rows)]}
        loop = timed(partial(fast_loop, batch, **marker_ids(tokenizer, style)))
        seconds = take_turns(title, {"loop": loop}, options.rounds)["loop"]
        measured["fast loop over tokens"] = [each * len(data.ids) / len(part.ids) for each in seconds]
        caption = f"{data.rows:,} rows, {len(data.ids):,} tokens; the loop on {part.rows:,} rows, scaled up"
        console.print(table(title, measured, "copy", caption=caption))


def label_function(data: Corpus, style: str, tokenizer: Any) -> Callable[[Any, Any], Any]:
    """From ids and offsets to labels, as the library does it for these rows."""
    instruction, response = MARKERS[style]
    rows = [data.row(number) for number in np.unique(np.linspace(0, data.rows - 1, 256).astype(int))]
    finder = build_masker(read_tokenizer(tokenizer), rows, MaskSettings(instruction, response)).finder
    return lambda ids, offsets: make_labels(ids, finder.find(ids, offsets))


def blocks(data: Corpus) -> Iterator[tuple[Any, Any]]:
    """Ids and offsets of some rows at a time."""
    first = 0
    while first < data.rows:
        full = int(np.searchsorted(data.offsets, data.offsets[first] + BLOCK, side="right")) - 1
        last = min(first + 4000, max(first + 1, full))
        offsets = data.offsets[first : last + 1]
        yield data.ids[offsets[0] : offsets[-1]], offsets - offsets[0]
        first = last


def check_labels(data: Corpus, style: str, label: Callable[[Any, Any], Any], tokenizer: Any) -> None:
    """Ends the program if a label differs from the one counted by characters."""
    counted = [expected_labels(messages, tokenizer, style, IGNORE_INDEX) for messages in data.messages]
    wrong = int((label(data.ids, data.offsets) != np.concatenate(counted)).sum())
    if wrong:
        sys.exit(f"{wrong} labels with {style} markers differ from those counted by characters.")


# end_to_end: a dataset on disk


@contextmanager
def on_disk(tokenizer: Any, style: str, *, filtered: bool = False, **given: Any) -> Iterator[tuple[Path, Any]]:
    """A tokenized dataset in a temporary folder; ``filtered`` as TRL leaves it, with an index mapping.

    Another process writes it: a heap that has held millions of texts stays slower afterwards.
    """
    with tempfile.TemporaryDirectory(prefix="bench_mask_") as name:
        fresh_process(CHILDREN, "write", name, style, tokenizer.name_or_path, json.dumps(given))
        made = datasets.load_from_disk(name)
        if filtered:
            made = made.select([number for number in range(len(made)) if number % 50 != 7])
        yield Path(name), made


def tokens_in(dataset: Any) -> int:
    """Tokens of all rows in the file of a dataset."""
    return int(pc.sum(pc.list_value_length(dataset.data["input_ids"])).as_py())


def forget_labels(folder: Path) -> None:
    """Removes the labels that the library caches next to a dataset."""
    for path in folder.glob("cache-sft-mask-*"):
        path.unlink()


def end_to_end(options: argparse.Namespace, tokenizer: Any) -> None:
    for title in options.dataset or DATASETS:
        style, columns, filtered = DATASETS[title]
        given = {"tokens": options.tokens, "columns": columns, "unanswered": UNANSWERED}
        with on_disk(tokenizer, style, filtered=filtered, **given) as (folder, dataset):
            measured = take_turns(title, mask_arms(folder, dataset, style, tokenizer), options.rounds)
            measured |= take_turns(title, map_arms(folder, dataset, style, tokenizer), options.map_rounds)
            forget_labels(folder)
            extra = fresh_process(CHILDREN, "memory", folder, style, tokenizer.name_or_path)["bytes"]
            caption = f"{len(dataset):,} rows, {tokens_in(dataset):,} tokens; extra memory {extra / 2**20:.1f} MiB"
        console.print(table(title, measured, "sft_mask", caption=caption))
        copies = ratio(measured, "sft_mask", "copy the files")
        console.print(f"sft_mask takes {copies:.1f} times as long as copying the files\n")


def mask_arms(folder: Path, dataset: Any, style: str, tokenizer: Any) -> dict[str, Callable[[], float]]:
    files = [Path(file["filename"]) for file in dataset.cache_files if Path(file["filename"]).name.startswith("data-")]
    target = folder / "copy.bin"

    def copy() -> float:
        target.unlink(missing_ok=True)
        return timed(lambda: [shutil.copyfile(file, target) for file in files])()

    def mask() -> None:
        mask_dataset(dataset, tokenizer, *MARKERS[style])

    def cold() -> float:
        forget_labels(folder)
        return timed(mask)()

    def cached() -> float:
        mask()
        return timed(mask)()

    return {"copy the files": copy, "sft_mask": cold, "sft_mask, cached": cached}


def map_arms(folder: Path, dataset: Any, style: str, tokenizer: Any) -> dict[str, Callable[[], float]]:
    """The approaches that go through Python lists; rows that train nothing are dropped, as ``sft_mask`` does."""

    def run(loop: Callable[..., Any], processes: int | None) -> None:
        given = {"num_proc": processes, "load_from_cache_file": False}
        markers = marker_ids(tokenizer, style)
        labelled = dataset.map(loop, batched=True, fn_kwargs=markers, new_fingerprint=uuid.uuid4().hex, **given)
        labelled.filter(has_label, input_columns="labels", new_fingerprint=uuid.uuid4().hex, **given)

    arms = {
        "map of a plain loop": timed(lambda: run(plain_loop, None)),
        "map of a fast loop": timed(lambda: run(fast_loop, None)),
        "map of a fast loop, 2 processes": timed(lambda: run(fast_loop, 2)),
    }
    unsloth = partial(fresh_process, CHILDREN, "unsloth", folder, style, tokenizer.name_or_path)
    tried = unsloth()
    console.print(f"unsloth_zoo: {tried.get('version') or tried['missing']}")
    return {**arms, "Unsloth's function": lambda: unsloth()["seconds"]} if "version" in tried else arms


def has_label(labels: list[int]) -> bool:
    return any(label != IGNORE_INDEX for label in labels)


# trainer: what one call adds


def trainer(options: argparse.Namespace, tokenizer: Any) -> None:
    """Building a trainer whose data was never tokenized before, and masking it."""
    from trl import SFTConfig, SFTTrainer

    count = options.conversations
    chats = corpus(count * 1200, tokenizer, "special").messages[:count]
    built: list[Any] = []

    def build() -> float:
        folder = tempfile.mkdtemp(dir=scratch)
        datasets.Dataset.from_list([{"messages": messages} for messages in chats]).save_to_disk(folder)
        args = SFTConfig(folder, use_cpu=True, bf16=False, max_length=2048, report_to=[], disable_tqdm=True)
        rows = datasets.load_from_disk(folder)

        def make() -> None:
            built[:] = [SFTTrainer(tokenizer.name_or_path, args=args, train_dataset=rows)]

        return timed(make)()

    def mask() -> float:
        if not built:
            build()
        return timed(partial(train_on_responses_only, built.pop()))()

    with tempfile.TemporaryDirectory(prefix="bench_mask_") as scratch:
        arms = {"build the trainer": build, "train_on_responses_only": mask}
        measured = take_turns("trainer", arms, options.map_rounds)
    caption = f"{len(chats):,} conversations, SmolLM2-135M-Instruct, loaded and tokenized each time"
    console.print(table("with a trainer", measured, "build the trainer", caption=caption))


# scaling: as data grows


def scaling(options: argparse.Namespace, tokenizer: Any) -> None:
    kinds = {
        "special markers, long rows": ("special", LONG),
        "special markers, short rows": ("special", SHORT),
        "plain-text markers, long rows": ("text", LONG),
    }
    sizes = [10**power * step for power in range(5, 9) for step in (1, 3)]
    lines: dict[str, tuple[list[int], list[float]]] = {name: ([], []) for name in kinds}
    for name, (style, lengths) in kinds.items():
        for size in (size for size in sizes if size <= options.largest):
            given = {"tokens": size, "columns": ["input_ids"], "lengths": lengths}
            with on_disk(tokenizer, style, **given) as (folder, dataset):
                cold = mask_arms(folder, dataset, style, tokenizer)["sft_mask"]
                seconds = take_turns(f"scaling, {size:,}", {"sft_mask": cold}, options.map_rounds)["sft_mask"]
                lines[name][0].append(tokens_in(dataset))
            lines[name][1].append(statistics.median(seconds))
            console.print(f"{name}: {lines[name][0][-1]:,} tokens, {lines[name][1][-1]:.3f} s")
    plot_lines(options.plot, lines, title="Labels for a dataset on disk", x="tokens", y="seconds", log=True)


# import: fresh processes


def importing(options: argparse.Namespace, tokenizer: Any) -> None:
    del tokenizer
    without_torch = "import sft_mask, sys; assert 'torch' not in sys.modules, 'sft_mask imported torch'"
    commands = {
        "python": ["-c", "pass"],
        "import sft_mask": ["-c", without_torch],
        "python -m sft_mask --help": ["-m", "sft_mask", "--help"],
    }
    run = partial(subprocess.run, check=True, capture_output=True, cwd=ROOT)
    arms = {name: timed(partial(run, [sys.executable, *given])) for name, given in commands.items()}
    console.print(table("fresh processes", take_turns("import", arms, max(options.rounds, 9)), "python"))


PARTS: dict[str, Callable[[argparse.Namespace, Any], None]] = {
    "kernel": kernel,
    "end_to_end": end_to_end,
    "trainer": trainer,
    "scaling": scaling,
    "import": importing,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    add("--tokens", type=int, default=20_000_000, help="of kernel and end_to_end (default 20,000,000)")
    add("--dataset", action="append", choices=DATASETS, help="of end_to_end; may be repeated")
    add("--rounds", type=int, default=5, help="after a warm-up (default 5)")
    add("--map-rounds", type=int, default=3, help="of maps, trainers and scaling (default 3)")
    add("--conversations", type=int, default=2000, help="of the trainer (default 2,000)")
    add("--largest", type=int, default=100_000_000, help="tokens, of scaling (default 100,000,000)")
    add("--plot", type=Path, default=ROOT / "docs/images/bench_mask_scaling.svg", help="of scaling, .svg or .png")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    console.print(machine(), highlight=False)
    for name in options.part or PARTS:
        PARTS[name](options, tokenizer)


if __name__ == "__main__":
    main()
