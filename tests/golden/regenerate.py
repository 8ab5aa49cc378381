#!/usr/bin/env python
"""Shows what the library would change in the golden folders, and writes it once a person has looked.

python tests/golden/regenerate.py               # every folder: what differs, as tokens
python tests/golden/regenerate.py llama3 alpaca
python tests/golden/regenerate.py --write       # after review; a mask that the oracle contradicts is never written
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from datasets import Dataset, disable_progress_bars  # noqa: E402
from support.conformance import tokenizers  # noqa: E402 - the suite lives among the tests
from support.conformance.golden import (  # noqa: E402
    Golden,
    golden_folders,
    independent_judgement,
    read_golden,
    record_of,
    token_diff,
    trained_lines,
)
from support.conformance.harness import mistakes  # noqa: E402

from sft_mask import mask_dataset  # noqa: E402


def regenerate(golden: Golden, tokenizer: Any, write: bool) -> bool:
    """True if the folder is as it should be (now)."""
    tokenizer.chat_template = golden.template_text()
    judgement = independent_judgement(golden, tokenizer)
    dataset = Dataset.from_list([record_of(golden, judgement.ids)], on_mixed_types="use_json")
    labels = mask_dataset(dataset, tokenizer)["labels"][0]
    lines = trained_lines(judgement.text, judgement.ids, labels, tokenizer)
    lost, leaked = mistakes(judgement, labels)
    made = {
        "text.txt": judgement.text,
        "ids.json": json.dumps(judgement.ids) + "\n",
        "trained.txt": "".join(f"{line}\n" for line in lines),
    }
    paths = {name: golden.folder / name for name in made}
    changed = [name for name, content in made.items() if not _is(paths[name], content)]
    if lost or leaked:
        print(f"{golden.folder.name}: the oracle contradicts: tokens lost {lost}, leaked {leaked}")
        return False
    if not changed:
        return True
    print(f"{golden.folder.name}: {', '.join(changed)}")
    old = paths["trained.txt"].read_text().splitlines() if paths["trained.txt"].exists() else []
    print(token_diff(judgement.ids, labels, old, tokenizer) if old else made["trained.txt"])
    for name in changed if write else ():
        paths[name].write_text(made[name], newline="")
    return write


def _is(path: Path, content: str) -> bool:
    return path.exists() and path.read_bytes() == content.encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    disable_progress_bars()
    cases = [read_golden(folder) for folder in golden_folders() if not options.names or folder.name in options.names]
    sources = {source.name: source for source in tokenizers.SOURCES}
    is_right = True
    for name in sorted({golden.tokenizer for golden in cases}):
        tokenizer = tokenizers.load(tokenizers.fetch(sources[name], tokenizers.cache_folder()))
        for golden in cases:
            if golden.tokenizer == name:
                is_right &= regenerate(golden, tokenizer, options.write)
    print(f"{len(cases)} folders read")
    return int(not is_right)


if __name__ == "__main__":
    sys.exit(main())
