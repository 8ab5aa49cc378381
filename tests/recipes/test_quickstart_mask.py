"""Every label of every row of the quickstart's data, counted by somebody who knows nothing of markers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from sft_mask import train_on_responses_only
from sft_mask.constants import IGNORE_INDEX

DATA = Path(__file__).parents[2] / "recipes" / "data"
STOP = "<|im_end|>"


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def counted_labels(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Labels from character offsets: each assistant message is found after the one before it, and its stop follows."""
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    graded, position = [], 0
    for message in messages:
        start = text.index(f"<|im_start|>{message['role']}\n{message['content']}{STOP}", position)
        start += len(f"<|im_start|>{message['role']}\n")
        position = start + len(message["content"]) + len(STOP)
        if message["role"] == "assistant":
            graded.append((start, position))
    return [
        token if any(first < stop and last > start for start, stop in graded) else IGNORE_INDEX
        for token, (first, last) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


@pytest.fixture(scope="module")
def trainer(smollm2: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> SFTTrainer:
    config = LlamaConfig(
        vocab_size=len(smollm2),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    return SFTTrainer(
        LlamaForCausalLM(config),
        args=SFTConfig(output_dir=str(tmp_path_factory.mktemp("out")), max_length=512, use_cpu=True, report_to=[]),
        train_dataset=Dataset.from_list(read("house_style_train.jsonl")),
        eval_dataset=Dataset.from_list(read("house_style_test.jsonl")),
        processing_class=copy.deepcopy(smollm2),  # the trainer changes it
    )


def test_every_label_of_every_row_is_what_character_offsets_say(trainer: SFTTrainer) -> None:
    trained = train_on_responses_only(trainer, "<|im_start|>user\n", "<|im_start|>assistant\n")
    seen = 0
    for split in (trained.train_dataset, trained.eval_dataset):
        for row in split:
            assert row["labels"] == counted_labels(trained.processing_class, row["messages"])
            seen += 1
    assert seen == 460


def test_detected_markers_give_the_labels_of_given_markers(trainer: SFTTrainer) -> None:
    given = train_on_responses_only(trainer, "<|im_start|>user\n", "<|im_start|>assistant\n").train_dataset["labels"]
    assert list(train_on_responses_only(trainer).train_dataset["labels"]) == list(given)


def test_the_report_counts_what_the_oracle_counts(trainer: SFTTrainer) -> None:
    report = train_on_responses_only(trainer).mask_report.splits["train"]
    rows = [counted_labels(trainer.processing_class, row["messages"]) for row in read("house_style_train.jsonl")]
    answers = sum(
        message["role"] == "assistant" for row in read("house_style_train.jsonl") for message in row["messages"]
    )
    assert report.rows == report.rows_checked + report.rows_exact == 400
    assert report.tokens == sum(map(len, rows))
    assert report.trained_tokens == sum(label != IGNORE_INDEX for row in rows for label in row)
    assert report.turns == report.turns_trained == report.stops_trained == answers
