"""A small loss on the prompt: its tokens have a tenth of the weight of an answer's.

    python recipes/prompt_weight.py
    python recipes/prompt_weight.py --prompt-weight 0.05 --reduction sequence

Hardware: 2 CPU cores and 4 GB of memory, about 5 s per step; or any CUDA GPU.
Expected: the loss is the weighted mean, sum(w * nll) / sum(w), over all tokens of a step, whatever the number of
accumulation steps and ranks. Whether it helps depends on the data: see docs/mask_study.md before you use it.
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from local_model import find_model
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sft_mask import train_on_responses_only


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
    trainer = train_on_responses_only(trainer, prompt_weight=args.prompt_weight, reduction=args.reduction)
    print(trainer.mask_report)

    trainer.train()
    trainer.save_model()
    print(f"The adapter was saved in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="LoRA with a small weight on the tokens of the prompt.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a chat model")
    add("--data", default="recipes/data/house_style_train.jsonl", help="one conversation per line, as messages")
    add("--output", default="outputs/prompt_weight", help="folder for the adapter")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=8)
    add("--prompt-weight", type=float, default=0.1, help="weight of a prompt token; an answer's is 1")
    add("--reduction", choices=("token", "sequence"), default="token", help="what the mean is taken over")
    return parser.parse_args()


if __name__ == "__main__":
    main()
