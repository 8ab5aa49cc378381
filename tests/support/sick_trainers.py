"""Trainers with one known fault each, that this library has not masked."""

from __future__ import annotations

import copy
from typing import Any

from datasets import Dataset
from support.tiny import STOP, build, chats, messages_dataset, rendered, tokenizer
from support.tiny_chat import chat
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling as Collator

from sft_mask import mask_dataset

PAD = 2
CHATS = chats(24)
SKIP = {"dataset_kwargs": {"skip_prepare_dataset": True}}


def offsets(messages: list[dict[str, str]]) -> list[tuple[str, str, int, int]]:
    """(role, what, start, end) in characters: headers, words, end-of-turn tokens, and the newline after."""
    text, made = "", []
    for message in messages:
        pieces = {
            "header": f"<|im_start|>{message['role']}\n",
            "words": message["content"],
            "stop": STOP,
            "newline": "\n",
        }
        for what, piece in pieces.items():
            made.append((message["role"], what, len(text), len(text) + len(piece)))
            text += piece
    assert text == rendered(messages)
    return made


def labelled(*which: tuple[str, str], rows: list[Any] = CHATS) -> Dataset:
    """Rows whose labels train these (role, what) and nothing else."""
    made = []
    for messages in rows:
        encoded = tokenizer()(rendered(messages), return_offsets_mapping=True)
        spans = [(start, stop) for role, what, start, stop in offsets(messages) if (role, what) in which]
        labels = [
            token if any(a < stop and b > start for start, stop in spans) else -100
            for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        made.append({"messages": messages, "input_ids": encoded["input_ids"], "labels": labels})
    return Dataset.from_list(made)


RIGHT = (("assistant", "words"), ("assistant", "stop"))


def sick(*more: tuple[str, str], without: tuple[str, str] | None = None) -> SFTTrainer:
    """A trainer that this library never saw, with labels that are right but for one thing."""
    which = [each for each in RIGHT if each != without]
    return build("out", labelled(*which, *more), **SKIP)


class MasksPads(Collator):
    """Masks labels by the padding token's id, which is the stop's too."""

    def torch_call(self, examples: Any) -> Any:
        batch = super().torch_call(examples)
        batch["labels"][batch["input_ids"] == tokenizer().eos_token_id] = -100
        return batch


class TrainsPads(Collator):
    def torch_call(self, examples: Any) -> Any:
        batch = super().torch_call(examples)
        batch["labels"][batch["attention_mask"] == 0] = self.pad_token_id
        return batch


class Shifts(Collator):
    def torch_call(self, examples: Any) -> Any:
        batch = super().torch_call(examples)
        batch["labels"] = batch["labels"].roll(-1, 1)
        return batch


class IgnoresLabels(SFTTrainer):
    """Trains every token, whatever the labels say."""

    def compute_loss(self, model: Any, inputs: Any, return_outputs: Any = False, num_items_in_batch: Any = None) -> Any:
        return super().compute_loss(
            model, {**inputs, "labels": inputs["input_ids"].clone()}, return_outputs, num_items_in_batch
        )


def eval_unmasked() -> SFTTrainer:
    everything = [(role, what) for role in ("user", "assistant") for what in ("header", "words", "stop", "newline")]
    return build("out", labelled(*RIGHT), labelled(*everything), **SKIP)


def stops_elsewhere() -> SFTTrainer:
    trainer = build("out", labelled(*RIGHT), **SKIP)
    trainer.model.generation_config.eos_token_id = tokenizer().pad_token_id
    trainer.processing_class = copy.deepcopy(tokenizer())
    trainer.processing_class.eos_token = "<pad>"
    return trainer


def thinking() -> SFTTrainer:
    """Trains the empty reasoning block that the template writes."""
    words = chat("qwen3")[0]
    said = [{"role": "user", "content": "red river"}, {"role": "assistant", "content": "blue stone"}]
    text = str(words.apply_chat_template(said, tokenize=False))
    assert "<think>\n\n</think>" in text
    encoded = words(text, add_special_tokens=False, return_offsets_mapping=True)
    start, stop = text.index("<think>"), len(text) - 1
    labels = [
        token if a < stop and b > start else -100
        for token, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]
    data = Dataset.from_list([{"messages": said, "input_ids": encoded["input_ids"], "labels": labels}] * 6)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    words = copy.deepcopy(words)
    words.pad_token, words.eos_token = "</s>", "<|im_end|>"
    args = SFTConfig(output_dir="out", use_cpu=True, bf16=False, report_to=[], **SKIP)
    return SFTTrainer(LlamaForCausalLM(config), args=args, train_dataset=data, processing_class=words)


def after_masking() -> SFTTrainer:
    """Labels that were damaged after mask_dataset."""
    stop = tokenizer().eos_token_id
    masked = mask_dataset(messages_dataset(24), tokenizer())

    def damaged(row: Any) -> dict[str, list[int]]:
        return {"labels": [-100 if label == stop else label for label in row["labels"]]}

    return build("out", masked.map(damaged))


class HidesStops(Collator):
    def torch_call(self, examples: Any) -> Any:
        batch = super().torch_call(examples)
        batch["attention_mask"][batch["input_ids"] == tokenizer().eos_token_id] = 0
        return batch
