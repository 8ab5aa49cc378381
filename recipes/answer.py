"""Ask a saved adapter or a merged model one question, and see whether it stops by itself.

    python recipes/answer.py outputs/smollm2-135m "What is the capital of Japan?"

Hardware: anything with enough memory for the model. The folder is one that recipes/lora_sft.py saved; its tokenizer,
chat template and generation config (whose EOS is the end-of-turn token that was trained) are used as they are, and
the generation prompt gets the arguments that the trained answers come after (Qwen3: enable_thinking=False without
reasoning).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig


def main() -> None:
    parser = argparse.ArgumentParser(description="Ask a saved adapter or a merged model one question.")
    parser.add_argument("folder", type=Path, help="where recipes/lora_sft.py saved it")
    parser.add_argument("question")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"there is no folder {args.folder}")

    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    kind = AutoPeftModelForCausalLM if (args.folder / "adapter_config.json").is_file() else AutoModelForCausalLM
    model = kind.from_pretrained(args.folder, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    generation = GenerationConfig.from_pretrained(args.folder)
    generation.max_new_tokens = args.max_new_tokens
    generation.do_sample = False

    saved = args.folder / "chat_template_kwargs.json"
    given = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": args.question}],
        **{"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", **given},
    ).to(model.device)
    with torch.inference_mode():
        made = model.generate(**prompt, generation_config=generation)[0, prompt["input_ids"].shape[1] :].tolist()
    eos = generation.eos_token_id if isinstance(generation.eos_token_id, list) else [generation.eos_token_id]
    stopped = made[-1] in eos
    print(tokenizer.decode(made[:-1] if stopped else made))
    asked = ", ".join(f"{name}={value!r}" for name, value in given.items())
    print(
        f"({len(made)} tokens, {f'asked with {asked}, ' if asked else ''}"
        + (f"stopped by {tokenizer.decode(made[-1])!r})" if stopped else "cut off)")
    )


if __name__ == "__main__":
    main()
