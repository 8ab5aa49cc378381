"""Fine-tune a vision-language model on the assistant's words only: no image token, no question is in the loss.

    accelerate launch recipes/vision_sft.py --config recipes/configs/vision/smolvlm-256m.yaml
    accelerate launch recipes/vision_sft.py --config recipes/configs/vision/qwen2.5-vl-7b.yaml --train_data my_hub/data

Without train_data the model learns from drawn shapes (recipes/shapes.py), and is asked about held-out ones before and
after. Your own data need a column of images (a list of them in each row, possibly empty) and messages, or prompt and
completion. Hardware and memory are at the top of each file in recipes/configs/vision. torchvision must be installed.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import shapes
import torch
from datasets import Dataset, load_dataset
from rich.console import Console
from transformers import AutoProcessor
from trl import ModelConfig, SFTConfig, SFTTrainer, TrlParser, get_peft_config, get_quantization_config

from sft_mask import preview_rows, train_on_responses_only
from sft_mask.preview.terminal import RowView


@dataclass
class RecipeArguments:
    """The data, and how many questions are asked before and after."""

    train_data: str | None = field(default=None, metadata={"help": "a hub name; None: drawn shapes"})
    train_split: str = field(default="train", metadata={"help": "split of the hub dataset"})
    rows: int = field(default=512, metadata={"help": "rows of drawn shapes"})
    questions: int = field(default=24, metadata={"help": "held-out questions asked before and after training; 0: none"})


def main(arguments: Sequence[str]) -> dict[str, float]:
    """Trains, and returns what was measured."""
    parser = TrlParser((RecipeArguments, SFTConfig, ModelConfig))
    on_gpu = torch.cuda.is_available()
    parser.set_defaults(use_cpu=not on_gpu, bf16=on_gpu, output_dir="outputs/vision", use_peft=True)
    recipe, training, model_args = parser.parse_args_and_config(list(arguments))
    processor = AutoProcessor.from_pretrained(model_args.model_name_or_path)
    held_out = shapes.dataset(64, seed=1)
    training.model_init_kwargs = {"dtype": model_args.dtype, **(training.model_init_kwargs or {})}
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=training,
        train_dataset=read_data(recipe),
        eval_dataset=held_out,
        processing_class=processor,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    # The one line that this library is about: images, questions and headers leave the loss.
    trainer = train_on_responses_only(trainer)

    console = Console()
    if trainer.is_world_process_zero():
        console.print(trainer.mask_report)
        console.print(RowView(preview_rows(trainer)[0]))
    asked = list(shapes.rows(recipe.questions, seed=2))
    measured: dict[str, float] = {}
    for when in ("before", "after"):
        measured[f"loss_{when}"] = trainer.evaluate()["eval_loss"]
        measured[f"right_{when}"] = right_answers(trainer, processor, asked)
        if when == "before":
            trainer.train()
    trainer.save_model()
    processor.save_pretrained(training.output_dir)
    if trainer.is_world_process_zero():
        console.print(measured)
    return measured


def read_data(recipe: RecipeArguments) -> Dataset:
    if recipe.train_data is None:
        return shapes.dataset(recipe.rows)
    return load_dataset(recipe.train_data, split=recipe.train_split)


def right_answers(trainer: Any, processor: Any, rows: Sequence[dict[str, Any]]) -> float:
    """Share of first questions whose answer is exactly right, sampled greedily up to the end-of-turn token."""
    model, right = trainer.accelerator.unwrap_model(trainer.model), 0
    model.eval()
    for row in rows:
        question, answer = copy.deepcopy(row["messages"][:2])
        question["content"][0]["image"] = row["images"][0]
        batch = processor.apply_chat_template(
            [question], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            out = model.generate(**batch, max_new_tokens=8, do_sample=False)
        said = processor.decode(out[0][batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += said.strip() == answer["content"][0]["text"]
    return right / len(rows) if rows else 0.0


if __name__ == "__main__":
    main(sys.argv[1:])
