"""A model without a chat template: plain text with Alpaca's headers, and the two markers passed.

    python recipes/alpaca.py --model HuggingFaceTB/SmolLM2-135M        # a base model from the hub
    python recipes/alpaca.py                                           # SmolLM2-135M-Instruct without its template

Hardware: 2 CPU cores and 4 GB of memory, about 5 s per step; or any CUDA GPU.
Expected: the text after the response header is trained, and the end-of-text token; the headers are not.

How the tokenizer splits a plain-text header depends on the text around it, so headers are matched byte by byte. The
rows are text only, so nothing else shows who wrote what: a header that a user types cannot be told from a real one.
"""

from __future__ import annotations

import argparse

import torch
from datasets import load_dataset
from local_model import find_model
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from sft_mask import IGNORE_INDEX, train_on_responses_only


def main() -> None:
    args = parse_arguments()
    on_gpu = torch.cuda.is_available()
    tokenizer = AutoTokenizer.from_pretrained(find_model(args.model))
    tokenizer.chat_template = None
    rows = load_dataset("json", data_files=args.data, split="train")
    texts = rows.map(as_alpaca, remove_columns=rows.column_names)  # TRL ends each text with the eos token
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
        train_dataset=texts,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer = train_on_responses_only(trainer, instruction_part="### Instruction:\n", response_part="### Response:\n")
    print(trainer.mask_report)
    first = trainer.train_dataset[0]["labels"]
    print("trained of the first row:", repr(tokenizer.decode([label for label in first if label != IGNORE_INDEX])))
    trainer.train()
    trainer.save_model()
    print(f"The adapter was saved in {args.output}")


def as_alpaca(row: dict[str, list[dict[str, str]]]) -> dict[str, str]:
    """The first question and its answer, as Alpaca writes them."""
    start = next(at for at, message in enumerate(row["messages"]) if message["role"] == "user")
    asked, answered = (message["content"] for message in row["messages"][start : start + 2])
    return {"text": f"### Instruction:\n{asked}\n\n### Response:\n{answered}"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="LoRA on plain text with Alpaca headers.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="folder or hub name of a model")
    add("--data", default="recipes/data/house_style_train.jsonl", help="one conversation per line, as messages")
    add("--output", default="outputs/alpaca", help="folder for the adapter")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
