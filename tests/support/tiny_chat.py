"""Every chat template that TRL ships, each with a tokenizer of a few hundred ids that holds its control tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from hypothesis import strategies as st
from support.tiny_tokenizers import byte_level
from transformers import PreTrainedTokenizerFast

from sft_mask.core.vocabulary import Vocabulary, read_vocabulary
from sft_mask.templates.chat_template import ChatTemplate

Messages = list[dict[str, Any]]

_CONTROL = re.compile(
    r"<\|[^|<>\s'\"{}]{1,40}\|?>|<[a-z_]+\|>|<｜[^｜<>]{1,40}｜>|<(?:start|end)_of_[a-z]+>|\[/?[A-Z_]{3,20}\]|\[gMASK\]|<sop>"
)

STOPS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "deepseekv3": "<｜end▁of▁sentence｜>",
    "gemma": "<end_of_turn>",
    "lfm2": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "qwen2_5": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
}
"""Templates in which an answer is its words and this stop, and nothing else."""

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def trl_templates() -> dict[str, str]:
    """Sources by name, without the ending."""
    folder = files("trl") / "chat_templates"
    found = {path.name.removesuffix(".jinja"): path.read_text("utf-8") for path in folder.iterdir() if _is_jinja(path)}
    assert len(found) >= 50, f"only {len(found)} templates in {folder}"
    return dict(sorted(found.items()))


def _is_jinja(path: Any) -> bool:
    return str(path.name).endswith(".jinja")


def tokenizer_for(source: str) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose control tokens are those that the template names."""
    specials = list(dict.fromkeys([*_CONTROL.findall(source), "<s>", "</s>"]))
    tokenizer = byte_level([" the", "\n\n", "er", "東"], specials)
    begin = next((text for text in specials if "begin" in text and "sentence" in text), "<s>")
    end = next((text for text in specials if "end▁of▁sentence" in text), "</s>")
    tokenizer.add_special_tokens({"bos_token": begin, "eos_token": end})
    tokenizer.chat_template = source
    return tokenizer


@cache
def chat(name: str) -> tuple[PreTrainedTokenizerFast, Vocabulary, ChatTemplate]:
    """Tokenizer, vocabulary and template of one of TRL's."""
    return prepared(CHATML if name == "chatml" else trl_templates()[name])


def prepared(source: str) -> tuple[PreTrainedTokenizerFast, Vocabulary, ChatTemplate]:
    tokenizer = tokenizer_for(source)
    vocabulary = read_vocabulary(tokenizer)
    template = ChatTemplate.of(tokenizer, vocabulary)
    assert template is not None
    return tokenizer, vocabulary, template


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def conversation(*said: str, system: str | None = None) -> Messages:
    """Turns of user and assistant."""
    start: Messages = [] if system is None else [{"role": "system", "content": system}]
    return start + [{"role": ("user", "assistant")[at % 2], "content": words} for at, words in enumerate(said)]


def in_shape(name: str, messages: Messages) -> Messages:
    """The messages as the template wants them: those of three vision models read lists of parts only."""
    if not name.startswith(("llava_next", "idefics3", "smolvlm")):
        return messages
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


PIECES = ("red", " blue", "\n", "\n\n", " ", "{", '"', "'", "7", "東京", "🙂", "<", "|", "#", "é")


def words(extra: Sequence[str] = ()) -> st.SearchStrategy[str]:
    """Text with something to see at both ends, so that a template that trims keeps all of it."""
    middle = st.lists(st.sampled_from((*PIECES, *extra)), max_size=6).map("".join)
    edge = st.sampled_from(("a", "B", "3", "京", *(piece for piece in extra if piece == piece.strip())))
    return st.builds(lambda first, inside, last: first + inside + last, edge, middle, edge)


def conversations(extra: Sequence[str] = (), answers: Sequence[str] = ()) -> st.SearchStrategy[Messages]:
    """One to three turns; ``extra`` pieces may stand in the words of the user, ``answers`` in those of the model."""
    turn = st.tuples(words(extra), words(answers))
    turns = st.lists(turn, min_size=1, max_size=3)
    return turns.map(lambda said: conversation(*[text for pair in said for text in pair]))
