"""Reasoning data, with the reasoning trained or left out of the loss.

    python recipes/reasoning.py                        # the reasoning is trained, since the model has to sample it
    python recipes/reasoning.py --thinking masked      # it stays in the context, but only the answer is trained

Hardware: one CUDA GPU with 8 GB (calculated, not measured) for Qwen3-0.6B.
Expected: not run with Qwen3-0.6B. With ``masked`` the model still sees the reasoning before each answer in training, so
mask it only if it will be there at inference too: written by you, or sampled as the base model already does.

The tags are Qwen3's and DeepSeek's; pass others with --open and --close. A template may drop the reasoning of earlier
turns (Qwen3's does): what is not in the row is not trained.
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from local_model import find_model
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sft_mask import IGNORE_INDEX, Policy, Region, train_on_responses_only


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
    regions = (Region(args.open, args.close),) if args.thinking == "masked" else ()
    trainer = train_on_responses_only(trainer, policy=Policy(regions=regions))
    print(trainer.mask_report)
    first = trainer.train_dataset[0]["labels"]
    print("trained of the first row:", repr(tokenizer.decode([label for label in first if label != IGNORE_INDEX])))
    trainer.train()
    trainer.save_model()
    print(f"The adapter was saved in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="LoRA on answers with reasoning, trained or masked.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="Qwen/Qwen3-0.6B", help="folder or hub name of a chat model")
    add("--data", default="recipes/data/reasoning.jsonl", help="one conversation per line, as messages")
    add("--output", default="outputs/reasoning", help="folder for the adapter")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=8)
    add("--thinking", choices=("trained", "masked"), default="trained", help="whether the reasoning is trained")
    add("--open", default="<think>", help="text that opens the reasoning")
    add("--close", default="</think>", help="text that closes the reasoning")
    return parser.parse_args()


if __name__ == "__main__":
    main()
