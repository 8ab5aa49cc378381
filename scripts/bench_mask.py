#!/usr/bin/env python
"""How fast labels are made: a search over ids, a whole dataset on disk, beside a trainer, and as data grows.

    python scripts/bench_mask.py                                   # everything, about 8 minutes on two cores
    python scripts/bench_mask.py --part kernel --part import       # parts of it
    python scripts/bench_mask.py --tokens 1000000 --rounds 3       # a quick look
    python scripts/bench_mask.py --part end_to_end --dataset "ids, special markers" --tokens 100000000
    python scripts/bench_mask.py --json bench.json --markdown      # parts of several runs come together in one file

Every number is a ratio of medians, measured in one run while the arms took turns; seconds are of this machine only.

kernel      ids to labels, in blocks as the library reads them, against copying the same ids; exactness is checked
            against labels counted from character offsets
end_to_end  a tokenized dataset on disk to one with labels, without the rows that train nothing, nothing cached,
            against copying its files, against datasets.map of a loop over tokens with a filter behind it, and against
            the function of unsloth_zoo where that is installed
trainer     building a first SFTTrainer, and what train_on_responses_only adds
scaling     time against the number of tokens, for long and for short rows
import      a fresh `import sft_mask`, and the command's --help, above a bare Python

The exit code is 1 if a label differs from the counted one. A target that is missed is shown, and is no failure: nobody
promises seconds on a machine that others use too.
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
from dataclasses import asdict, dataclass, field
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
from benchmarking import (  # noqa: E402  # noqa: E402
    alternate,
    alternate_values,
    bar,
    fresh_process,
    machine,
    machine_line,
    plot_lines,
    ratio,
    save_json,
    summary,
    table,
    timed,
)
from benchmarking.chats import LONG, MARKERS, SHORT, Corpus, Style, corpus, expected_labels  # noqa: E402
from benchmarking.scan import ScanRow, plain_scan, scan, scan_batch, trains_something  # noqa: E402
from local_model import smollm2_folder  # noqa: E402
from rich.box import MARKDOWN  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from sft_mask import mask_dataset  # noqa: E402
from sft_mask.constants import IGNORE_INDEX  # noqa: E402
from sft_mask.core.labels import paint  # noqa: E402
from sft_mask.core.spans import SpanFinder  # noqa: E402
from sft_mask.data.dataset import _ROWS_AT_ONCE, _TOKENS_AT_ONCE  # noqa: E402
from sft_mask.data.setup import MaskSettings, build_masker, read_tokenizer  # noqa: E402

CHILDREN = ROOT / "scripts" / "benchmarking" / "children.py"
IMAGE = ROOT / "docs" / "images" / "bench_mask_scaling.svg"
STYLES: tuple[Style, ...] = ("special", "text")
LIKE_TRL = ("input_ids", "labels")
DATASETS: dict[str, tuple[Style, tuple[str, ...], bool]] = {
    "ids, special markers": ("special", LIKE_TRL, False),
    "ids, special markers, an index mapping": ("special", LIKE_TRL, True),
    "ids, plain-text markers": ("text", LIKE_TRL, False),
    "ids and messages": ("special", (*LIKE_TRL, "messages"), False),
}
"""Of end_to_end: whose markers, which columns, and whether rows are left out by an index mapping."""
_CHECKED_ROWS = 200
UNSLOTH = "Unsloth's function"
PLAIN, QUICK = "map of a plain loop", "map of a quick loop"
_MAPS: dict[str, tuple[ScanRow, int | None]] = {
    PLAIN: (plain_scan, None),
    QUICK: (scan, None),
    f"{QUICK}, 2 processes": (scan, 2),
}
_SILENT = 100  # every so many rows hold no answer, and are dropped


@dataclass(frozen=True, slots=True)
class Target:
    """A number to reach."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def is_met(self) -> bool:
        """Whether it is reached."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit


@dataclass(slots=True)
class Bench:
    """One run: what was asked, where it says something, and what was measured."""

    options: argparse.Namespace
    console: Console
    tokenizer: Any
    record: dict[str, Any] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    wrong: int = 0

    def show(self, part: str, title: str, measured: dict[str, list[float]], baseline: str, **words: Any) -> None:
        """Prints the arms of a comparison, and keeps them."""
        self.console.print(table(title, measured, baseline, markdown=self.options.markdown, **words))
        self.record.setdefault(part, {})[title] = summary(measured, baseline)

    def target(self, name: str, value: float, limit: float, *, at_least: bool = False) -> None:
        """Keeps a number that has a limit."""
        self.targets.append(Target(name, value, limit, at_least))


# ids to labels


def finder_for(data: Corpus, style: Style, tokenizer: Any) -> SpanFinder:
    """The search as the library builds it for these rows."""
    rows = [data.row(number) for number in np.unique(np.linspace(0, data.rows - 1, 256).astype(int))]
    instruction, response = MARKERS[style]
    return build_masker(read_tokenizer(tokenizer), rows, MaskSettings(instruction, response)).finder


def blocks(data: Corpus) -> Iterator[tuple[Any, Any]]:
    """Ids and offsets of some rows at a time, as the library reads a dataset."""
    first = 0
    while first < data.rows:
        full = int(np.searchsorted(data.offsets, data.offsets[first] + _TOKENS_AT_ONCE, side="right")) - 1
        last = min(first + _ROWS_AT_ONCE, max(first + 1, full))
        offsets = data.offsets[first : last + 1]
        yield data.ids[offsets[0] : offsets[-1]], offsets - offsets[0]
        first = last


def wrong_labels(data: Corpus, style: Style, finder: SpanFinder, tokenizer: Any) -> int:
    """Labels of the first rows that differ from those counted by characters."""
    part = data.head(min(_CHECKED_ROWS, data.rows))
    found = paint(part.ids, finder.find(part.ids, part.offsets))
    counted = [expected_labels(said, tokenizer, style, IGNORE_INDEX) for said in part.messages]
    return int((found != np.concatenate([np.asarray(row) for row in counted])).sum())


def bench_kernel(bench: Bench) -> None:
    """Ids to labels against copying the ids."""
    for style in STYLES:
        data = corpus(bench.options.tokens, bench.tokenizer, style)
        finder = finder_for(data, style, bench.tokenizer)
        bench.wrong += wrong_labels(data, style, finder, bench.tokenizer)
        arms: dict[str, Callable[[], Any]] = {
            "copy": data.ids.copy,
            "copy in blocks": partial(_copy_blocks, data),
            "sft_mask": partial(_each_block, data, finder),
        }
        with bar(f"kernel, {style} markers", len(arms), bench.options.rounds) as advance:
            measured = alternate(arms, bench.options.rounds, advance)
        part = data.head(max(1, data.rows // 40))
        measured["loop over tokens"] = _scaled(data, part, bench, style)
        words = f"{data.rows:,} rows, {len(data.ids):,} tokens; the loop on {part.rows:,} rows, scaled"
        bench.show("kernel", f"kernel, {style} markers", measured, "copy", caption=words)
        limit = 8 if style == "special" else 25
        bench.target(f"kernel, {style} markers: × copy", ratio(measured, "sft_mask", "copy"), limit)


def _copy_blocks(data: Corpus) -> None:
    for ids, _ in blocks(data):
        ids.copy()


def _each_block(data: Corpus, finder: SpanFinder) -> None:
    for ids, offsets in blocks(data):
        paint(ids, finder.find(ids, offsets))


def marker_ids(tokenizer: Any, style: Style) -> tuple[list[int], list[int]]:
    """The ids of both markers by themselves, which is what a loop over tokens looks for."""
    instruction, response = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in MARKERS[style])
    return instruction, response


def _scaled(data: Corpus, part: Corpus, bench: Bench, style: Style) -> list[float]:
    instruction, response = marker_ids(bench.tokenizer, style)
    rows = [part.row(number).tolist() for number in range(part.rows)]

    def loop() -> None:
        for row in rows:
            scan(row, instruction, response, IGNORE_INDEX)

    with bar(f"loop, {style} markers", 1, bench.options.rounds) as advance:
        seconds = alternate({"loop": loop}, bench.options.rounds, advance)["loop"]
    return [each * len(data.ids) / len(part.ids) for each in seconds]


# a dataset on disk


def tokens_in(dataset: Any) -> int:
    """Tokens of a dataset, of all rows in its file."""
    return int(pc.sum(pc.list_value_length(dataset.data["input_ids"])).as_py())


def forget_labels(folder: Path) -> None:
    """Removes the labels that the library keeps beside a dataset."""
    for path in folder.glob("cache-sft-mask-*"):
        path.unlink()


@contextmanager
def on_disk(
    bench: Bench, tokens: int, style: Style, columns: tuple[str, ...], *, filtered: bool = False, **words: Any
) -> Iterator[tuple[Path, Any]]:
    """A tokenized dataset in a folder that goes when it is done; ``filtered`` as TRL leaves it, with an index mapping.

    Another process makes it: a heap that has held millions of texts is slower ever after.
    """
    with tempfile.TemporaryDirectory(prefix="bench_mask_") as name:
        _child(bench, "write", Path(name), style, json.dumps({"tokens": tokens, "columns": columns, **words}))
        made = datasets.load_from_disk(name)
        if filtered:
            made = made.select([number for number in range(len(made)) if number % 50 != 7])
        yield Path(name), made


def bench_end_to_end(bench: Bench) -> None:
    """A dataset on disk to one with labels, nothing cached but the pages of its file."""
    for name in bench.options.dataset or DATASETS:
        style, columns, filtered = DATASETS[name]
        _compare_on_disk(bench, style, columns, name, filtered=filtered)


def _compare_on_disk(
    bench: Bench, style: Style, columns: tuple[str, ...], title: str, *, filtered: bool = False
) -> None:
    asked = {"filtered": filtered, "silent": _SILENT}
    with on_disk(bench, bench.options.tokens, style, columns, **asked) as (folder, dataset):
        arms = _disk_arms(bench, folder, dataset, style)
        with bar(title, len(arms), bench.options.rounds) as advance:
            measured = alternate_values(arms, bench.options.rounds, advance)
        measured |= _maps(bench, folder, dataset, style)
        extra = _memory(bench, folder, style)
        words = f"{len(dataset):,} rows, {tokens_in(dataset):,} tokens, columns {', '.join(columns)}"
    bench.show("end_to_end", title, measured, "copy the files", caption=words)
    bench.record["end_to_end"][title]["extra_memory"] = extra
    mib = extra["extra_bytes"] / 2**20
    bench.console.print(f"extra memory {mib:.1f} MiB, of which Arrow {extra['arrow_bytes'] / 2**20:.1f} MiB\n")
    bench.target(f"{title}: × copying the files", ratio(measured, "sft_mask", "copy the files"), 3)
    for peer in (PLAIN, QUICK, UNSLOTH):
        if peer in measured:
            bench.target(f"{title}: {peer}, × sft_mask", ratio(measured, peer, "sft_mask"), 40, at_least=True)
    bench.record["end_to_end"][title]["found_ms"] = 1000 * statistics.median(measured["sft_mask, found"])
    bench.target(f"{title}: extra memory, MiB", mib, 32)


def _disk_arms(bench: Bench, folder: Path, dataset: Any, style: Style) -> dict[str, Callable[[], float]]:
    files = [Path(file["filename"]) for file in dataset.cache_files if Path(file["filename"]).name.startswith("data-")]
    target = folder / "copy.bin"

    def mask() -> None:
        masked = mask_dataset(dataset, bench.tokenizer, *MARKERS[style])
        assert len(masked) < len(dataset) or len(dataset) < _SILENT, "rows without an answer are dropped"

    def cold() -> float:
        forget_labels(folder)
        return timed(mask)

    def copy() -> float:
        target.unlink(missing_ok=True)
        return timed(lambda: [shutil.copyfile(file, target) for file in files])

    def found() -> float:
        mask()
        return timed(mask)

    return {"copy the files": copy, "sft_mask": cold, "sft_mask, found": found}


def _maps(bench: Bench, folder: Path, dataset: Any, style: Style) -> dict[str, list[float]]:
    """Seconds of the ways that go through Python lists; rows that train nothing are dropped, as by ``sft_mask``."""
    arms = {name: partial(_map, bench, style, dataset, *way) for name, way in _MAPS.items()}
    if _unsloth(bench, folder, style) is not None:
        arms[UNSLOTH] = partial(_unsloth_call, bench, folder, style)
    with bar("maps", len(arms), bench.options.map_rounds) as advance:
        return alternate_values(arms, bench.options.map_rounds, advance)


def _map(bench: Bench, style: Style, dataset: Any, scan_row: ScanRow, processes: int | None) -> float:
    instruction, response = marker_ids(bench.tokenizer, style)
    given = {"scan_row": scan_row, "instruction": instruction, "response": response, "ignored": IGNORE_INDEX}

    def run() -> None:
        options = {"num_proc": processes, "load_from_cache_file": False}
        labelled = dataset.map(scan_batch, batched=True, fn_kwargs=given, new_fingerprint=uuid.uuid4().hex, **options)
        kept = labelled.filter(
            trains_something,
            input_columns="labels",
            fn_kwargs={"ignored": IGNORE_INDEX},
            new_fingerprint=uuid.uuid4().hex,
            **options,
        )
        assert len(kept) < len(dataset) or len(dataset) < _SILENT, "rows without an answer are dropped"

    return timed(run)


def _unsloth_call(bench: Bench, folder: Path, style: Style) -> float:
    return float(_child(bench, "unsloth", folder, style)["seconds"])


def _unsloth(bench: Bench, folder: Path, style: Style) -> str | None:
    """The version of ``unsloth_zoo``; ``None``, and a word about it, where it is not there."""
    tried = _child(bench, "unsloth", folder, style)
    version: str | None = tried.get("version")
    bench.record["unsloth_zoo"] = version or tried["missing"]
    bench.console.print(f"unsloth_zoo: {bench.record['unsloth_zoo']}")
    return version


def _child(bench: Bench, kind: str, folder: Path, style: Style, *more: str) -> dict[str, Any]:
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    given = (kind, str(folder), style, bench.tokenizer.name_or_path, *more)
    return fresh_process(CHILDREN, *given, environment=environment)


def _memory(bench: Bench, folder: Path, style: Style) -> dict[str, Any]:
    forget_labels(folder)
    return _child(bench, "memory", folder, style)


# beside a trainer


def bench_trainer(bench: Bench) -> None:
    """What one call adds to building a trainer whose data was never tokenized before."""
    from trl import SFTConfig, SFTTrainer

    from sft_mask import train_on_responses_only

    count = bench.options.conversations
    said = corpus(count * 1200, bench.tokenizer, "special").messages[:count]
    built: list[Any] = []

    def build() -> float:
        folder = tempfile.mkdtemp(dir=scratch)
        datasets.Dataset.from_list([{"messages": messages} for messages in said]).save_to_disk(folder)
        args = SFTConfig(folder, use_cpu=True, bf16=False, max_length=2048, report_to=[], disable_tqdm=True)
        rows = datasets.load_from_disk(folder)

        def make() -> None:
            built[:] = [SFTTrainer(bench.tokenizer.name_or_path, args=args, train_dataset=rows)]

        return timed(make)

    def mask() -> float:
        trainer = built.pop() if built else None
        if trainer is None:
            build()
            trainer = built.pop()
        return timed(lambda: train_on_responses_only(trainer))

    with tempfile.TemporaryDirectory(prefix="bench_mask_") as scratch:
        arms = {"build the trainer": build, "train_on_responses_only": mask}
        with bar("trainer", len(arms), bench.options.map_rounds) as advance:
            measured = alternate_values(arms, bench.options.map_rounds, advance)
    words = f"{len(said):,} conversations, SmolLM2-135M-Instruct, loaded and tokenized each time"
    bench.show("trainer", "beside a trainer", measured, "build the trainer", caption=words)
    share = 100 * ratio(measured, "train_on_responses_only", "build the trainer")
    bench.target("added to building a trainer, %", share, 5)


# as data grows


def bench_scaling(bench: Bench) -> None:
    """Seconds against tokens, for conversations that are long and short, and for both kinds of markers."""
    kinds: dict[str, tuple[Style, tuple[int, int]]] = {
        "special markers, long rows": ("special", LONG),
        "special markers, short rows": ("special", SHORT),
        "plain-text markers, long rows": ("text", LONG),
    }
    points: dict[str, list[dict[str, float]]] = {
        name: [_point(bench, size, *kind) for size in _sizes(bench.options.largest)] for name, kind in kinds.items()
    }
    lines = {name: ([at["tokens"] for at in made], [at["seconds"] for at in made]) for name, made in points.items()}
    plot_lines(
        bench.options.plot,
        lines,
        title="Labels for a dataset on disk",
        x="tokens",
        y="seconds",
        log=True,
        note=machine_line(machine()).split("; ")[0],
    )
    bench.record["scaling"] = points
    shown = Table(title="scaling", title_justify="left", box=MARKDOWN if bench.options.markdown else None)
    for heading in ("kind", "tokens", "rows", "seconds", "tokens per second"):
        shown.add_column(heading, justify="left" if heading == "kind" else "right")
    for name, made in points.items():
        for at in made:
            rate = at["tokens"] / at["seconds"]
            shown.add_row(name, f"{at['tokens']:,.0f}", f"{at['rows']:,.0f}", f"{at['seconds']:.3f}", f"{rate:,.0f}")
    bench.console.print(shown)


def _sizes(largest: int) -> list[int]:
    sizes = [10**power * step for power in range(5, 9) for step in (1, 3)]
    return [size for size in sizes if size <= largest]


def _point(bench: Bench, tokens: int, style: Style, lengths: tuple[int, int]) -> dict[str, float]:
    with on_disk(bench, tokens, style, ("input_ids",), lengths=lengths) as (folder, dataset):
        found = {"tokens": tokens_in(dataset), "rows": len(dataset)}

        def cold() -> float:
            forget_labels(folder)
            return timed(lambda: mask_dataset(dataset, bench.tokenizer, *MARKERS[style]))

        with bar(f"scaling, {tokens:,} tokens", 1, bench.options.map_rounds) as advance:
            seconds = alternate_values({"sft_mask": cold}, bench.options.map_rounds, advance)["sft_mask"]
    return {**found, "seconds": statistics.median(seconds)}


# import


def bench_import(bench: Bench) -> None:
    """Fresh processes; an import above a bare interpreter."""
    without_torch = "import sft_mask, sys; assert 'torch' not in sys.modules, 'sft_mask imported torch'"
    commands = {
        "python": ["-c", "pass"],
        "import sft_mask": ["-c", without_torch],
        "python -m sft_mask --help": ["-m", "sft_mask", "--help"],
    }
    arms = {name: _process(arguments) for name, arguments in commands.items()}
    rounds = max(bench.options.rounds, 9)
    with bar("import", len(arms), rounds) as advance:
        measured = alternate(arms, rounds, advance)
    bench.show("import", "fresh processes", measured, "python")
    bare = statistics.median(measured["python"])
    added = 1000 * (statistics.median(measured["import sft_mask"]) - bare)
    bench.record["import"]["import sft_mask adds, ms"] = added
    bench.console.print(f"import sft_mask adds {added:.1f} ms, without torch")


def _process(arguments: list[str]) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, capture_output=True, cwd=ROOT)


# the command

PARTS: dict[str, Callable[[Bench], None]] = {
    "kernel": bench_kernel,
    "end_to_end": bench_end_to_end,
    "trainer": bench_trainer,
    "scaling": bench_scaling,
    "import": bench_import,
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, default=[], help="only this one; may be repeated")
    parser.add_argument("--tokens", type=int, default=20_000_000, help="of kernel and end_to_end (default 20,000,000)")
    parser.add_argument(
        "--dataset", action="append", choices=DATASETS, default=[], help="of end_to_end; may be repeated"
    )
    parser.add_argument("--rounds", type=int, default=5, help="after a warm-up (default 5)")
    parser.add_argument("--map-rounds", type=int, default=3, help="of maps, trainers and scaling (default 3)")
    parser.add_argument("--conversations", type=int, default=2000, help="of the trainer (default 2,000)")
    parser.add_argument("--largest", type=int, default=100_000_000, help="tokens, of scaling (default 100,000,000)")
    parser.add_argument("--plot", type=Path, default=IMAGE, help="picture of scaling, .svg or .png")
    parser.add_argument("--json", type=Path, help="write, or add to, this file")
    parser.add_argument("--markdown", action="store_true", help="tables as Markdown")
    return parser.parse_args()


def print_targets(bench: Bench) -> None:
    shown = Table(title="targets", title_justify="left", box=MARKDOWN if bench.options.markdown else None)
    for heading in ("target", "measured", "limit", ""):
        shown.add_column(heading, justify="left" if heading in ("target", "") else "right", overflow="fold")
    for each in bench.targets:
        limit = f"{'≥' if each.at_least else '≤'} {each.limit:g}"
        shown.add_row(each.name, f"{each.value:,.1f}", limit, "met" if each.is_met else "missed")
    bench.console.print(shown)


def save(bench: Bench) -> None:
    """Adds the parts of this run to those that the file has."""
    path: Path = bench.options.json
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    targets = {each["name"]: each for each in before.get("targets", [])}
    targets |= {each.name: {**asdict(each), "met": each.is_met} for each in bench.targets}
    save_json(path, {**before, "machine": machine(), **bench.record, "targets": list(targets.values())})


def main() -> int:
    options = arguments()
    datasets.disable_progress_bars()
    width = None if sys.stdout.isatty() else 160
    bench = Bench(options, Console(width=width), AutoTokenizer.from_pretrained(smollm2_folder()))
    bench.console.print(machine_line(machine()), highlight=False)
    for name in options.part or PARTS:
        PARTS[name](bench)
    if bench.targets:
        print_targets(bench)
    if options.json:
        save(bench)
    if bench.wrong:
        bench.console.print(f"[red]{bench.wrong} labels differ from those counted by characters[/]")
    return int(bench.wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
