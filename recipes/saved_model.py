"""A model that a recipe saved, ready to be asked: its chat template, generation prompt and end-of-turn tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sft_mask import detect_markers

PROMPT = "chat_template_kwargs.json"
"""Arguments of the generation prompt that the trained answers come after; to be given to apply_chat_template."""


@dataclass(frozen=True)
class SavedModel:
    """An adapter or a whole model, its tokenizer, and how it is asked."""

    model: Any
    tokenizer: Any
    generation: GenerationConfig
    prompt_arguments: Mapping[str, Any]

    def answer(self, messages: Sequence[Mapping[str, str]], streamer: Any = None) -> tuple[str, str]:
        """The answer to a conversation, decoded greedily, and a remark: its length, the prompt, how it ended."""
        prompt = self.tokenizer.apply_chat_template(
            [*messages],
            **{"add_generation_prompt": True, "return_dict": True, "return_tensors": "pt", **self.prompt_arguments},
        ).to(self.model.device)
        with torch.inference_mode():
            made = self.model.generate(**prompt, generation_config=self.generation, streamer=streamer)
        ids = made[0, prompt["input_ids"].shape[1] :].tolist()
        stopped = ids[-1] in as_list(self.generation.eos_token_id)
        asked = ", ".join(f"{name}={value!r}" for name, value in self.prompt_arguments.items())
        remark = (f"{len(ids)} tokens", f"asked with {asked}" if asked else "", self._end(ids[-1], stopped))
        return self.tokenizer.decode(ids[:-1] if stopped else ids), f"({', '.join(filter(None, remark))})"

    def _end(self, last: int, stopped: bool) -> str:
        return f"stopped by {self.tokenizer.decode(last)!r}" if stopped else "cut off"


def command_line(description: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """A parser of the arguments that every way of asking has."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=saved_folder, help="where a recipe saved the adapter or the merged model")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="where an answer is cut off (%(default)s)")
    return parser


def saved_folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {name}; train first, as with scripts/quickstart.sh")
    return Path(name)


def load(folder: Path, max_new_tokens: int) -> SavedModel:
    """Reads what a recipe saved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        raise SystemExit(
            f"the tokenizer in {folder} has no chat template, so messages cannot be made a prompt; save one with it: "
            "tokenizer.chat_template = ..., tokenizer.save_pretrained(folder)"
        )
    kind = AutoPeftModelForCausalLM if (folder / "adapter_config.json").is_file() else AutoModelForCausalLM
    model = kind.from_pretrained(folder, dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    generation = read_generation(folder, model, tokenizer)
    generation.max_new_tokens = max_new_tokens
    generation.do_sample = False
    saved = folder / PROMPT
    given = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    return SavedModel(model, tokenizer, generation, given)


def read_generation(folder: Path, model: Any, tokenizer: Any) -> GenerationConfig:
    """The saved config, whose EOS is the end-of-turn token that was trained; without one, the chat template's."""
    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    generation = model.generation_config
    ends = tokenizer.convert_tokens_to_ids([eot for eot in detect_markers(tokenizer).eots if isinstance(eot, str)])
    generation.eos_token_id = [end for end in ends if end in as_list(generation.eos_token_id)] or ends
    generation.pad_token_id = tokenizer.pad_token_id
    return generation


def as_list(eos: int | list[int] | None) -> list[int]:
    return eos if isinstance(eos, list) else [] if eos is None else [eos]
