"""Measurements that need a process of their own; ``bench_mask.py`` runs them and reads JSON from the last line.

python scripts/benchmarking/children.py write FOLDER special|text MODEL '{"tokens": 1000000, "columns": ["input_ids"]}'
python scripts/benchmarking/children.py memory FOLDER special|text MODEL     # bytes that masking that dataset takes
python scripts/benchmarking/children.py unsloth FOLDER special|text MODEL    # seconds of unsloth_zoo's function
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

import datasets  # noqa: E402 - the clone's own folders come first
import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
from transformers import AutoTokenizer, DataCollatorForSeq2Seq  # noqa: E402

from benchmarking.arms import timed  # noqa: E402
from benchmarking.chats import MARKERS, corpus  # noqa: E402
from benchmarking.memory import Peak  # noqa: E402


def write(folder: str, style: str, model: str, given: str) -> dict[str, Any]:
    """Writes a tokenized dataset as TRL leaves it: int32 ids, int64 labels that train every token, maybe messages."""
    options = json.loads(given)
    columns, tokens = options.pop("columns"), options.pop("tokens")
    data = corpus(tokens, AutoTokenizer.from_pretrained(model), style, **options)
    offsets = pa.array(data.offsets.astype(np.int32))
    made: dict[str, Any] = {
        "input_ids": lambda: pa.ListArray.from_arrays(offsets, pa.array(data.ids)),
        "labels": lambda: pa.ListArray.from_arrays(offsets, pa.array(data.ids.astype(np.int64))),
        "messages": lambda: pa.array(data.messages),
    }
    datasets.Dataset(pa.table({name: made[name]() for name in columns})).save_to_disk(folder)
    return {"rows": data.rows}


def memory(folder: str, style: str, model: str) -> dict[str, Any]:
    """Masks a small part first, so that modules and the tokenizer's tables are loaded, then everything."""
    from sft_mask import mask_dataset

    tokenizer = AutoTokenizer.from_pretrained(model)
    data = datasets.load_from_disk(folder)
    mask_dataset(data.select(range(min(64, len(data)))), tokenizer, *MARKERS[style])
    with Peak() as peak:
        mask_dataset(data, tokenizer, *MARKERS[style])
    return {"bytes": peak.above}


def unsloth(folder: str, style: str, model: str) -> dict[str, Any]:
    """Seconds of the whole call on the parts of a trainer that it needs, or why it could not be imported.

    Importing it requires a GPU unless these two variables are set.
    """
    os.environ.update(UNSLOTH_IS_PRESENT="1", UNSLOTH_ZOO_DISABLE_GPU_INIT="1")
    try:
        from unsloth_zoo.dataset_utils import train_on_responses_only
    except ImportError as error:
        return {"missing": f"{type(error).__name__}: {error}"}
    instruction, response = MARKERS[style]
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SimpleNamespace(
        processing_class=tokenizer,
        train_dataset=datasets.load_from_disk(folder),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        args=SimpleNamespace(packing=False),
    )
    datasets.disable_caching()
    given = {"instruction_part": instruction, "response_part": response, "num_proc": 1}
    with redirect_stdout(sys.stderr):
        seconds = timed(lambda: train_on_responses_only(trainer, **given))()
    assert "labels" in trainer.train_dataset.column_names
    return {"seconds": seconds, "version": version("unsloth_zoo")}


if __name__ == "__main__":
    datasets.disable_progress_bars()
    kind, *arguments = sys.argv[1:]
    print(json.dumps({"write": write, "memory": memory, "unsloth": unsloth}[kind](*arguments)))
