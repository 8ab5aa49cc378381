"""Measurements that need a process of their own; run by ``bench_mask.py``, JSON on the last line.

python children.py write FOLDER special|text MODEL '{"tokens": 1000000, "columns": ["input_ids"]}'    # a dataset
python children.py memory FOLDER special|text MODEL     # bytes that masking a dataset on disk takes
python children.py unsloth FOLDER special|text MODEL    # seconds of unsloth_zoo's function in datasets.map
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers import AutoTokenizer, DataCollatorForSeq2Seq

from benchmarking.chats import MARKERS, Style, corpus
from benchmarking.memory import Peak
from benchmarking.timing import timed


def write(folder: str, style: Style, model: str, asked: str) -> dict[str, Any]:
    """Writes a tokenized dataset as TRL leaves it: int32 ids, int64 labels that train all of them, maybe messages."""
    words = json.loads(asked)
    columns, tokens = words.pop("columns"), words.pop("tokens")
    data = corpus(tokens, AutoTokenizer.from_pretrained(model), style, **words)
    offsets = pa.array(data.offsets.astype(np.int32))
    made: dict[str, Any] = {
        "input_ids": lambda: pa.ListArray.from_arrays(offsets, pa.array(data.ids)),
        "labels": lambda: pa.ListArray.from_arrays(offsets, pa.array(data.ids.astype(np.int64))),
        "messages": lambda: pa.array(data.messages),
    }
    datasets.Dataset(pa.table({name: made[name]() for name in columns})).save_to_disk(folder)
    return {"rows": data.rows}


def memory(folder: str, style: Style, model: str) -> dict[str, Any]:
    """Masks a small part first, so that modules and tables of the tokenizer are there, then everything."""
    from sft_mask import mask_dataset

    tokenizer = AutoTokenizer.from_pretrained(model)
    data = datasets.load_from_disk(folder)
    mask_dataset(data.select(range(min(64, len(data)))), tokenizer, *MARKERS[style])
    pool = pa.default_memory_pool()
    arrow_before = pool.bytes_allocated()
    with Peak() as peak:
        masked = mask_dataset(data, tokenizer, *MARKERS[style])
    return {"extra_bytes": peak.above, "arrow_bytes": pool.max_memory() - arrow_before, "rows": len(masked)}


def unsloth(folder: str, style: Style, model: str) -> dict[str, Any]:
    """Seconds of the whole call on what it needs of a trainer, or why there are none.

    Its import asks for a GPU unless these two are set.
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
    rows = len(trainer.train_dataset)
    datasets.disable_caching()
    with redirect_stdout(sys.stderr):
        given = {"instruction_part": instruction, "response_part": response, "num_proc": 1}
        seconds = timed(lambda: train_on_responses_only(trainer, **given))
    assert "labels" in trainer.train_dataset.column_names
    kept = len(trainer.train_dataset)
    return {"seconds": seconds, "dropped": rows - kept, "version": importlib.metadata.version("unsloth_zoo")}


def main() -> None:
    """One measurement, as the arguments say."""
    datasets.disable_progress_bars()
    kind, folder, style, model, *more = sys.argv[1:]
    assert style in MARKERS, "a style that the conversations have"
    measured = {"write": write, "memory": memory, "unsloth": unsloth}[kind](folder, style, model, *more)
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
