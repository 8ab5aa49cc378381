"""Mistakes in the call: tokenizer, markers, policy."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from mistakes.data_mistakes import CHAT, mask
from mistakes.mistake import Mistake
from support import tiny

from sft_mask import Policy, Region, mask_dataset, preview_rows, train_on_responses_only

ROW = {"messages": CHAT}


def _rows() -> Dataset:
    return Dataset.from_list([ROW])


def _without_template() -> Any:
    made = tiny.tokenizer.__wrapped__()
    made.chat_template = None
    return made


MISTAKES: dict[str, Mistake] = {
    "the name of a tokenizer": Mistake(
        lambda: mask_dataset(_rows(), "Qwen/Qwen3-8B"),
        "'Qwen/Qwen3-8B'",
        "AutoTokenizer.from_pretrained('Qwen/Qwen3-8B')",
    ),
    "no tokenizer": Mistake(
        lambda: mask_dataset(_rows(), None), "No tokenizer was given", "AutoTokenizer.from_pretrained("
    ),
    "no tokenizer for a preview": Mistake(
        lambda: preview_rows([ROW]), "A dataset needs its tokenizer", "preview_rows(dataset, tokenizer)"
    ),
    "messages without a chat template": Mistake(
        lambda: mask_dataset(_rows(), _without_template()), "has no chat template", "chat_template="
    ),
    "one marker for both roles": Mistake(
        lambda: mask(ROW, instruction_part=tiny.USER, response_part=tiny.USER), "both roles", "as instruction_part"
    ),
    "one marker only": Mistake(lambda: mask(ROW, response_part=tiny.ASSISTANT), "instruction_part", "both"),
    "an empty marker": Mistake(
        lambda: mask(ROW, instruction_part=tiny.USER, response_part=""),
        "response_part is empty",
        "leave both markers out",
    ),
    "markers the wrong way round": Mistake(
        lambda: mask(ROW, instruction_part=tiny.ASSISTANT, response_part=tiny.USER),
        "the user's header",
        "leave both out",
    ),
    "a marker that is nowhere": Mistake(
        lambda: mask(ROW, instruction_part="### Human:", response_part="### Bot:"), "'### Human:'", "instruction_part"
    ),
    "an unknown way with ambiguous rows": Mistake(
        lambda: mask(ROW, on_ambiguous="skip"), "on_ambiguous='skip'", "Use 'error', 'drop' or 'mask'"
    ),
    "a policy that is none": Mistake(lambda: mask(ROW, policy="last"), "policy='last'", "Policy(turns='last')"),
    "unknown turns": Mistake(lambda: Policy(turns="first"), "turns='first'", "Use one of all, last, flagged"),  # type: ignore[arg-type]
    "a policy without a role": Mistake(lambda: Policy(roles=[]), "trains no role", "'assistant'"),
    "a negative prompt weight": Mistake(lambda: Policy(prompt_weight=-1), "-1", "Give 0"),
    "a mean over turns with a prompt": Mistake(
        lambda: Policy(prompt_weight=0.1, reduction="turn"), "prompt_weight", "reduction='token' or 'sequence'"
    ),
    "a region that is text": Mistake(lambda: Policy(regions=["<think>"]), "'<think>'", "Region(start, end)"),  # type: ignore[list-item]
    "a region without an end": Mistake(lambda: Region("<think>", ""), "Region", "end"),
    "another object than a trainer": Mistake(
        lambda: train_on_responses_only(object()), "not object", "mask_dataset(dataset, tokenizer)"
    ),
    "a batch function without a tokenizer": Mistake(
        lambda: train_on_responses_only(return_function=True), "needs a tokenizer", "give tokenizer="
    ),
    "a batch without ids": Mistake(
        lambda: train_on_responses_only(tokenizer=tiny.tokenizer(), return_function=True)({"messages": [CHAT]}),
        "The rows have no input_ids (they have messages)",
        "Tokenize them first",
    ),
    "a split that is not there": Mistake(
        lambda: preview_rows({"train": _rows()}, tiny.tokenizer(), split="test"), "no split 'test'", "'train'"
    ),
    "a preview of a text": Mistake(
        lambda: preview_rows("chats.jsonl", tiny.tokenizer()), "str is not a dataset", "Give a Dataset"
    ),
}
