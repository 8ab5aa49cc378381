"""For each configuration in recipes/configs a model of the same architecture, a few thousand parameters large."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from support.tiny_chat import CHATML, tokenizer_for, trl_templates
from transformers import PreTrainedTokenizerFast

PHI4 = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}<|im_sep|>{{ message['content'] }}<|im_end|>"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}[INST] {{ message['content'] }}[/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)

_SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@dataclass(frozen=True)
class Family:
    """What a configuration's model is, in small.

    Attributes:
        template: source of the chat template.
        model: builds the model from a number of ids.
        stop: the token that ends an answer.
        own_stops: the ends that the released model's generation config names, where they matter.
    """

    template: Callable[[], str]
    model: Callable[[int], Any]
    stop: str
    own_stops: tuple[str, ...] = ()


def _plain(name: str, **more: Any) -> Callable[[int], Any]:
    def build(vocabulary: int) -> Any:
        config = getattr(transformers, f"{name}Config")(vocab_size=vocabulary, **{**_SIZES, **more})
        return getattr(transformers, f"{name}ForCausalLM")(config)

    return build


def _gemma3(vocabulary: int) -> Any:
    """The 4B model sees images too: its language model is a part of it, under a name of its own."""
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.Gemma3Config(
        text_config={**_SIZES, "vocab_size": vocabulary, "sliding_window": 64},
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=1,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _trl(name: str) -> Callable[[], str]:
    return lambda: trl_templates()[name]


FAMILIES = {
    "smollm2-135m": Family(lambda: CHATML, _plain("Llama"), "<|im_end|>"),
    "qwen3-0.6b": Family(_trl("qwen3"), _plain("Qwen3"), "<|im_end|>"),
    "qwen3-8b": Family(_trl("qwen3"), _plain("Qwen3", tie_word_embeddings=False), "<|im_end|>"),
    "qwen3-8b-32k": Family(_trl("qwen3"), _plain("Qwen3", tie_word_embeddings=False), "<|im_end|>"),
    "llama3.1-8b": Family(_trl("llama3_1"), _plain("Llama"), "<|eot_id|>"),
    "llama3.1-8b-full": Family(_trl("llama3_1"), _plain("Llama"), "<|eot_id|>"),
    "gemma3-4b": Family(_trl("gemma3"), _gemma3, "<end_of_turn>"),
    "mistral-7b": Family(lambda: MISTRAL, _plain("Mistral"), "</s>"),
    "phi-4": Family(lambda: PHI4, _plain("Phi3"), "<|im_end|>"),
    "gpt-oss-20b": Family(
        _trl("gptoss"),
        _plain("GptOss", num_hidden_layers=24, num_local_experts=2, num_experts_per_tok=1),
        "<|return|>",
        own_stops=("<|return|>", "<|call|>"),
    ),
}


def save(name: str, folder: Path) -> PreTrainedTokenizerFast:
    """Writes the model and its tokenizer to a folder, as a hub would hold them."""
    family = FAMILIES[name]
    tokenizer = tokenizer_for(family.template())
    tokenizer.pad_token = tokenizer.bos_token  # neither a stop nor in any row
    torch.manual_seed(0)
    model = family.model(len(tokenizer))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(family.own_stops)) or None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer
