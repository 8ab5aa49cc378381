"""A trainer of a small vision-language model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.vision_families import build
from support.vision_rows import dataset, rows
from trl import SFTConfig, SFTTrainer


def trainer_of(name: str, folder: Path, given: Any = None, **options: Any) -> SFTTrainer:
    processor, model = build(name)
    collator = options.pop("data_collator", None)
    evals = options.pop("eval_dataset", None)
    defaults: dict[str, Any] = {
        "max_steps": 2,
        "max_length": None,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "loss_type": "nll",
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
    }
    args = SFTConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, **{**defaults, **options}
    )
    train = dataset(rows()) if given is None else given
    return SFTTrainer(
        model, args, train_dataset=train, eval_dataset=evals, processing_class=processor, data_collator=collator
    )
