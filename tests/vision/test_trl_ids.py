"""Text data of a model that reads images: the ids of ``mask_dataset`` are those that TRL makes with the processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict
from support.marks import slow_but
from support.vision_families import IMAGES, build
from tokenizers.processors import TemplateProcessing
from trl import SFTConfig, SFTTrainer

from sft_mask import mask_dataset

CHATS = [
    [{"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An animal: 東京."}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "Again,\n\nplease"},
        {"role": "assistant", "content": "\nhi again"},
    ],
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "messages": [{"messages": chat} for chat in CHATS],
    "conversations": [
        {"conversations": [{"from": each["role"], "value": each["content"]} for each in chat]} for chat in CHATS
    ],
    "pairs": [{"prompt": chat[:-1], "completion": chat[-1:]} for chat in CHATS],
    "text pairs": [{"prompt": "Q: what?\nA:", "completion": " a cat"}],
    "text": [{"text": "Q: what?\nA: a cat, 東京"}, {"text": "Q: and?\nA: no"}],
}
BY_MARKERS = {"instruction_part": "Q:", "response_part": "A:"}


def with_bos(processor: Any) -> Any:
    """The processor, whose tokenizer adds a BOS that the template does not write."""
    tokenizer = processor.tokenizer
    tokenizer.bos_token = "</s>"
    bos = ("</s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[bos])
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    return processor


def ids_of_trl(model: Any, processor: Any, data: Any, folder: Path) -> list[list[int]]:
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], max_length=None, dataset_num_proc=None
    )
    return list(SFTTrainer(model, args, train_dataset=data, processing_class=processor).train_dataset["input_ids"])


@pytest.mark.parametrize("name", slow_but(["smolvlm", "gemma3", "llava"], list(IMAGES)))
@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("adds_bos", [False, True])
def test_ids_are_those_of_trl(name: str, kind: str, adds_bos: bool, tmp_path: Path) -> None:
    processor, model = build(name)
    processor = with_bos(processor) if adds_bos else processor
    data = Dataset.from_list(ROWS[kind])
    markers = BY_MARKERS if "text" in kind else {}
    assert list(mask_dataset(data, processor, **markers)["input_ids"]) == ids_of_trl(model, processor, data, tmp_path)


@pytest.mark.parametrize("adds_bos", [False, True])
def test_streams_processes_splits_and_expanded_rows_have_the_same_ids(adds_bos: bool) -> None:
    processor, _ = build("llava")
    processor = with_bos(processor) if adds_bos else processor
    data = Dataset.from_list(ROWS["messages"])
    plain = mask_dataset(data, processor)
    wanted = [list(plain["input_ids"]), list(plain["labels"])]
    made = {
        "stream": list(mask_dataset(data.to_iterable_dataset(), processor)),
        "processes": mask_dataset(data, processor, num_proc=2),
        "splits": mask_dataset(DatasetDict({"other": data}), processor)["other"],
        "expanded": mask_dataset(data, processor, expand=True),
    }
    for how, rows in made.items():
        found = [[list(row[name]) for row in rows] for name in ("input_ids", "labels")]
        assert found == wanted, how
