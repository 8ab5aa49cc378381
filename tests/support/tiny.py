"""A tiny tokenizer, model and trainer, and labels counted without the library. Torch is imported by what needs it."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM
    from trl import SFTTrainer

USER, ASSISTANT, STOP = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = [
    "red", "blue", "seven", "walk", "stone", "river", "café", "naïve", "東京", "quick?", "yes!", "done,",
    "under", "over", "I", "you", "the", "a", "of",
]  # fmt: skip

Messages = list[dict[str, str]]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges; ChatML."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=alphabet,
        special_tokens=["<|im_start|>", "<|im_end|>", "<pad>"],
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS), "user assistant system\n" * 3], trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<pad>", extra_special_tokens=["<|im_start|>"]
    )
    made.chat_template = TEMPLATE
    return made


def chats(count: int, seed: int = 0) -> list[Messages]:
    """Conversations of one to three turns, some with a system prompt."""
    rng = random.Random(seed)

    def text() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))

    made = []
    for _ in range(count):
        messages: Messages = [{"role": "system", "content": text()}] if rng.random() < 0.4 else []
        for _ in range(rng.randint(1, 3)):
            messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        made.append(messages)
    return made


def messages_dataset(count: int, seed: int = 0) -> Dataset:
    return Dataset.from_list([{"messages": messages, "n": at} for at, messages in enumerate(chats(count, seed))])


def rendered(messages: Messages) -> str:
    return str(tokenizer().apply_chat_template(messages, tokenize=False))


def tokenized(messages: Messages) -> list[int]:
    return list(tokenizer()(rendered(messages))["input_ids"])


def expected(messages: Messages, only: set[int] | None = None) -> list[int]:
    """Labels counted from character offsets; ``only`` names the messages to train (all of the assistant's)."""
    text, trained = "", []
    for at, message in enumerate(messages):
        text += f"<|im_start|>{message['role']}\n"
        start = len(text)
        text += message["content"] + STOP
        if message["role"] == "assistant" and (only is None or at in only):
            trained.append((start, len(text)))
        text += "\n"
    assert text == rendered(messages)
    encoded = tokenizer()(text, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token if any(a < end and b > start for start, end in trained) else -100 for token, (a, b) in pairs]


def model(seed: int = 0) -> LlamaForCausalLM:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer()),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
        )
    )


def build(
    folder: Any,
    train: Any = None,
    evals: Any = None,
    *,
    collator: Any = None,
    formatting_func: Any = None,
    kind: type[SFTTrainer] | None = None,
    compute_metrics: Any = None,
    network: Any = None,
    **options: Any,
) -> SFTTrainer:
    from trl import SFTConfig, SFTTrainer

    defaults: dict[str, Any] = {
        "max_length": 256,
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 1e-2,
        "loss_type": "nll",
    }
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, disable_tqdm=True, **{"report_to": [], **defaults, **options}
    )
    return (kind or SFTTrainer)(
        model() if network is None else network,
        args=args,
        train_dataset=messages_dataset(24) if train is None else train,
        eval_dataset=evals,
        processing_class=tokenizer(),
        data_collator=collator,
        formatting_func=formatting_func,
        compute_metrics=compute_metrics,
    )


def arms(names: Iterable[str]) -> list[Any]:
    """Kinds of weights as parameters of a test; all but ``mask`` need the fused LM head of trl >= 1.15."""
    return [name if name == "mask" else pytest.param(name, marks=pytest.mark.newest) for name in names]


def trained_share(dataset: Any) -> tuple[int, int]:
    """Trained tokens and all tokens of a dataset."""
    rows = list(dataset)
    return sum(int(label) != -100 for row in rows for label in row["labels"]), sum(len(row["labels"]) for row in rows)


def segments(dataset: Any) -> list[tuple[int, ...]]:
    """Every run of trained labels of a dataset, sorted: equal for equal masks in whatever order rows are packed."""
    runs: list[tuple[int, ...]] = []
    for row in dataset:
        run: list[int] = []
        for label in [*map(int, row["labels"]), -100]:
            if label != -100:
                run.append(label)
            elif run:
                runs.append(tuple(run))
                run = []
    return sorted(runs)
