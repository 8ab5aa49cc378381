"""A ``transformers.Trainer`` over tokenized rows, as people build it without TRL."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from support.tiny import Messages, chats, model, tokenized, tokenizer
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

PAD = 2
CHATS = chats(24)


def token_rows(
    talks: list[Messages] = CHATS, *, messages: bool = True, labels: bool = False, pad_to: int = 0, left: bool = False
) -> Dataset:
    """``input_ids`` and ``attention_mask`` of conversations; ``labels`` are a copy of the ids, as in tutorials."""
    made = []
    for talk in talks:
        ids = tokenized(talk)
        rest = max(pad_to - len(ids), 0)
        mask = [1] * len(ids)
        ids, mask = ([PAD] * rest + ids, [0] * rest + mask) if left else (ids + [PAD] * rest, mask + [0] * rest)
        row: dict[str, Any] = {"input_ids": ids, "attention_mask": mask}
        made.append(row | ({"messages": talk} if messages else {}) | ({"labels": list(ids)} if labels else {}))
    return Dataset.from_list(made)


def build_plain(
    train: Any = None,
    evals: Any = None,
    *,
    collator: Any = "pads labels",
    kind: type[Trainer] = Trainer,
    network: Any = None,
    **options: Any,
) -> Trainer:
    """The trainer; its collator pads labels unless another is given (``None`` for the trainer's own)."""
    named = {name: options.pop(name) for name in ("processing_class", "compute_loss_func") if name in options}
    defaults = {"max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    args = TrainingArguments(
        output_dir="out", use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=1e-2, **{**defaults, **options}
    )
    return kind(
        model() if network is None else network,
        args,
        train_dataset=token_rows() if train is None else train,
        eval_dataset=evals,
        data_collator=DataCollatorForSeq2Seq(tokenizer()) if collator == "pads labels" else collator,
        **{"processing_class": tokenizer(), **named},
    )
