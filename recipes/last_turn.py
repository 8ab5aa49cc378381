"""Only the last answer of each conversation is trained; everything before it is context.

    python recipes/last_turn.py
    python recipes/last_turn.py --data my_chats.jsonl --steps 200

Hardware: 2 CPU cores and 4 GB of memory, about 5 s per step; or any CUDA GPU.
Expected: one answer per row is trained, 26 % of the tokens of the house-style data.

Use it if earlier answers are worse than the last one (logs of another model, drafts before a correction), or if each
row is one more turn of the same conversation, whose beginning would otherwise be trained again and again.
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from local_model import find_model
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sft_mask import IGNORE_INDEX, Policy, train_on_responses_only


def main() -> None:
    args = parse_arguments()
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(find_model(args.model))
    chats = load_dataset("json", data_files=args.data, split="train")
    trainer = SFTTrainer(
        model=find_model(args.model),
        args=SFTConfig(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-3 if args.model.endswith("135M-Instruct") else 2e-4,
            lr_scheduler_type="cosine",
            max_length=2048,
            bf16=on_gpu,
            use_cpu=not on_gpu,
            dataloader_pin_memory=on_gpu,
            model_init_kwargs={"dtype": "bfloat16" if on_gpu else "float32"},
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=chats,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer = train_on_responses_only(trainer, policy=Policy(turns="last"))  # or last_response_only=True
    print(trainer.mask_report)
    first = trainer.train_dataset[0]["labels"]
    print("trained of the first row:", repr(tokenizer.decode([label for label in first if label != IGNORE_INDEX])))
    trainer.train()
    trainer.save_model()
    print(f"The adapter was saved in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="LoRA on the last answer of each conversation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a chat model")
    add("--data", default="recipes/data/house_style_train.jsonl", help="one conversation per line, as messages")
    add("--output", default="outputs/last_turn", help="folder for the adapter")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
