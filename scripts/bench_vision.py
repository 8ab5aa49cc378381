"""What masking adds to a vision collator: four rows with a picture each, through TRL's collator alone and inside ours.

Twice: for conversations like earlier ones, and for such as were not seen before, which are rendered. What masking adds
is the time that our call spends outside of TRL's collator: the difference of two calls would be the noise of pictures.

The processors have the image sizes of the released models, on real tokenizers (as in ``check_vision.py``), without
torchvision: with it the collator itself is faster, and the share of masking higher.

    PYTHONPATH=.:tests .venv/bin/python scripts/bench_vision.py
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from benchmarking.arms import take_turns, timed
from support.conformance.tokenizers import cache_folder, fetch_all
from support.vision_families import FAMILIES, build
from support.vision_rows import IMAGE, picture, said
from transformers import Gemma3Processor
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import ResponseOnlyCollator

ROWS = 4
SIZES = ((224, 224), (640, 480), (1024, 768))
RELEASED: Mapping[str, Mapping[str, Any]] = {
    "qwen2_5_vl": {"size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}},
    "qwen3_vl": {"size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
    "gemma3": {"size": {"height": 896, "width": 896}},
    "smolvlm": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
    "llava": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
}


def processor_of(name: str, folder: Path) -> Any:
    """The family's processor with the image size of the released model."""
    processor, _ = build(name, real=folder)
    for key, value in RELEASED[name].items():
        setattr(processor.image_processor, key, type(getattr(processor.image_processor, key))(**value))
    if name == "gemma3":
        parts = (processor.image_processor, processor.tokenizer)
        return Gemma3Processor(*parts, image_seq_length=256, chat_template=processor.chat_template)
    return processor


class Stopwatch:
    """A collator that sums up the seconds it takes."""

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self.collate, self.seconds = collate, 0.0

    def __call__(self, rows: Any) -> Any:
        start = time.perf_counter()
        try:
            return self.collate(rows)
        finally:
            self.seconds += time.perf_counter() - start


def outside(inner: Stopwatch, run: Callable[[], object]) -> Callable[[], float]:
    """An arm that measures how many seconds a call takes without those of the inner collator."""
    whole = timed(run)

    def seconds() -> float:
        before = inner.seconds
        return whole() - (inner.seconds - before)

    return seconds


def arms_of(processor: Any, width: int, height: int) -> tuple[dict[str, Callable[[], float]], int]:
    """The arms, and the number of tokens of a row."""
    inner = Stopwatch(DataCollatorForVisionLanguageModeling(processor))
    ours = ResponseOnlyCollator(inner, processor)
    question, answer = "What is in this picture, and where? " * 3, "A cat sits on a mat, and looks at the door. " * 8
    rows = [
        {
            "images": [picture(at, width, height)],
            "messages": [
                said("user", IMAGE, question),
                said("assistant", answer),
                said("user", "And?"),
                said("assistant", answer),
            ],
        }
        for at in range(ROWS)
    ]
    numbers = count()

    def unseen() -> list[dict[str, Any]]:
        """The rows, with messages that have another flag than all before: another shape, the same text."""
        flag = {"number": next(numbers)}
        return [{**row, "messages": [{**message, **flag} for message in row["messages"]]} for row in rows]

    tokens = int(inner(copy.deepcopy(rows))["attention_mask"].sum()) // ROWS
    arms = {
        "TRL": timed(lambda: inner([dict(row) for row in rows])),
        "masked": outside(inner, lambda: ours([dict(row) for row in rows])),
        "rendered": outside(inner, lambda: ours(unseen())),
    }
    return arms, tokens


def main() -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokenizers", type=Path, default=cache_folder())
    parser.add_argument("--families", nargs="*", default=list(RELEASED), choices=list(RELEASED))
    args = parser.parse_args()
    if not all((args.tokenizers / FAMILIES[name].real / "tokenizer.json").exists() for name in args.families):
        fetch_all(args.tokenizers)
    print("| processor | pictures | tokens a row | TRL's collator | masking adds | a row | a row of a new shape |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for name in args.families:
        processor = processor_of(name, args.tokenizers / FAMILIES[name].real)
        for width, height in SIZES:
            arms, tokens = arms_of(processor, width, height)
            measured = take_turns(f"{name} {width}×{height}", arms, args.rounds)
            alone, more, new = (1e3 * statistics.median(measured[arm]) for arm in ("TRL", "masked", "rendered"))
            print(
                f"| {type(processor).__name__} | {width}×{height} | {tokens:,} | {alone:.1f} ms "
                f"| {more:.1f} ms ({100 * more / alone:.1f} %) | {more / ROWS:.2f} ms | {new / ROWS:.2f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
