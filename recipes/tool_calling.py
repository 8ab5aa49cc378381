"""Tool calls: the model learns to make the call and to use the result, not to write the result itself.

    python recipes/tool_calling.py                     # Qwen3-0.6B on recipes/data/tools.jsonl
    python recipes/tool_calling.py --data my_agents.jsonl --steps 200

Hardware: one CUDA GPU with 8 GB (calculated, not measured); any machine for a smaller model whose template supports
tools.
Expected: not run with Qwen3-0.6B. A call and the end-of-turn token after it are trained; the result that comes back is
not, and neither are the tool definitions in the system turn.

The data: messages with ``tool_calls`` and messages with the role ``tool``, and a column ``tools`` with the definitions,
as JSON text or as lists. The chat template writes all of it; use the same template at inference.
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
    chats = load_dataset("json", data_files=args.data, split="train")
    trainer = SFTTrainer(
        model=find_model(args.model),
        args=SFTConfig(
            output_dir=args.output,
            max_steps=args.steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=1e-3 if args.model.endswith("135M-Instruct") else 2e-4,
            lr_scheduler_type="cosine",
            max_length=2048,  # the tool definitions need room
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
    trainer = train_on_responses_only(trainer)  # calls are the assistant's, results are not
    print(trainer.mask_report)
    first = trainer.train_dataset[0]["labels"]
    print("trained of the first row:", repr(tokenizer.decode([label for label in first if label != IGNORE_INDEX])))
    trainer.train()
    trainer.save_model()
    print(f"The adapter was saved in {args.output}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="LoRA on conversations with tool calls.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="Qwen/Qwen3-0.6B", help="a chat model whose template supports tools")
    add("--data", default="recipes/data/tools.jsonl", help="one conversation per line: messages and tools")
    add("--output", default="outputs/tool_calling", help="folder for the adapter")
    add("--steps", type=int, default=20)
    add("--batch-size", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()
