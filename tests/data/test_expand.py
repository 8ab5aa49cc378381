"""``mask_dataset(..., expand=True)``: rows, weights, counts, streams, refusals."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from support.tiny_chat import CHATML, prepared
from support.trained_texts import trained_texts
from transformers import PreTrainedTokenizerFast

from sft_mask import Policy, mask_dataset
from sft_mask.core.label_codec import label_weights
from sft_mask.errors import AmbiguousRowError, UnsupportedError

Messages = list[dict[str, Any]]

DROPS = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""History loses its reasoning, as under Qwen3's template."""


@cache
def tokenizer(source: str = DROPS) -> PreTrainedTokenizerFast:
    return prepared(source)[0]


def chat(*answers: str, thoughts: bool = True) -> Messages:
    messages: Messages = []
    for at, answer in enumerate(answers):
        messages.append({"role": "user", "content": f"question {at}"})
        messages.append({"role": "assistant", "content": answer, "reasoning_content": f"r{at}" if thoughts else None})
    return messages


def data(*chats: Messages, **columns: list[Any]) -> Dataset:
    return Dataset.from_dict({"messages": list(chats), **columns})


def weights_of(row: Any) -> list[float]:
    weights: list[float] = label_weights(np.array(row["labels"])).tolist()
    return weights


def texts(rows: Any) -> list[list[str]]:
    return trained_texts(rows, tokenizer())


THREE = (chat("a", "b", "c"), chat("d"), chat("e", "f"))


def test_rows_keep_the_other_columns_of_their_conversation() -> None:
    rows, report = mask_dataset(data(*THREE, id=[7, 8, 9]), tokenizer(), expand=True, return_report=True)
    assert rows["id"] == [7, 7, 7, 8, 9, 9]
    assert [len(messages) for messages in rows["messages"]] == [2, 4, 6, 2, 2, 4]
    assert texts(rows)[2] == ["<think>\nr2\n</think>\n\nc<|im_end|>"]
    split = report.splits["train"]
    assert (split.rows_before, split.rows, split.turns, split.turns_trained, split.stops_trained) == (3, 6, 6, 6, 6)
    whole = mask_dataset(data(*THREE), tokenizer())
    assert split.tokens_before == sum(map(len, whole["input_ids"]))
    assert report.warnings == ()
    assert "expanded: 3 conversations" in str(report)


def test_each_field_is_accounted_for_once() -> None:
    _, report = mask_dataset(data(*THREE), tokenizer(), expand=True, return_report=True)
    split = report.splits["train"]
    assert split.fields == {"assistant contents": 6, "reasoning": 6, "user contents": 6}
    assert split.fields_trained == {"assistant contents": 6, "reasoning": 6}
    assert not split.not_rendered
    assert split.turns_in_other_form == 0
    assert split.turns_compared == 6


@pytest.mark.parametrize("policy", [Policy(turns="last"), Policy(stop="last"), Policy(stop="never"), Policy()])
def test_policies_choose_among_the_turns_of_the_conversation(policy: Policy) -> None:
    rows = mask_dataset(data(*THREE), tokenizer(), expand=True, policy=policy)
    said = [run for row in texts(rows) for run in row]
    answers = ["a", "b", "c", "d", "e", "f"] if policy.turns == "all" else ["c", "d", "f"]
    assert [run.removesuffix("<|im_end|>")[-1] for run in said] == answers
    stops = {"always": answers, "last": ["c", "d", "f"], "never": []}[policy.stop]
    assert [run.removesuffix("<|im_end|>")[-1] for run in said if run.endswith("<|im_end|>")] == stops


def test_only_flagged_turns_get_a_row() -> None:
    messages = [{**message, "train": message["content"] == "b"} for message in chat("a", "b", "c")]
    rows = mask_dataset(data(messages), tokenizer(), expand=True, policy=Policy(turns="flagged"))
    assert len(rows) == 1
    assert len(rows[0]["messages"]) == 4
    chosen = [token for token, weight in zip(rows[0]["input_ids"], weights_of(rows[0]), strict=True) if weight]
    assert tokenizer().decode(chosen) == "<think>\nr1\n</think>\n\nb<|im_end|>"


def test_the_mean_over_a_conversation_is_over_all_its_rows() -> None:
    many = [chat(*"abcdefgh"[: 1 + at % 5]) for at in range(200)]
    rows = mask_dataset(data(*many), tokenizer(), expand=True, reduction="sequence")
    sums: dict[int, float] = {}
    for row in rows:
        at = row["expansion"]["conversation"]
        sums[at] = sums.get(at, 0.0) + sum(weights_of(row))
    assert sums == pytest.approx(dict.fromkeys(range(200), 1.0), rel=1e-6)


def test_a_prompt_that_several_rows_share_is_trained_once() -> None:
    rows = mask_dataset(data(chat("a", "b")), tokenizer(), expand=True, prompt_weight=0.5)
    first, second = map(weights_of, rows)
    shared = next(at for at, (one, other) in enumerate(zip(*rows["input_ids"], strict=False)) if one != other)
    assert any(first[1:shared])
    assert not any(second[:shared])
    assert any(weight == 0.5 for weight in second[shared:])


def test_a_stream_and_a_dict_give_the_same_rows() -> None:
    plain = mask_dataset(data(*THREE), tokenizer(), expand=True)
    stream = mask_dataset(data(*THREE).to_iterable_dataset(), tokenizer(), expand=True)
    assert [row["labels"] for row in stream] == plain["labels"]
    assert [row["input_ids"] for row in stream] == plain["input_ids"]
    both = mask_dataset(DatasetDict(train=data(*THREE), eval=data(chat("x", "y"))), tokenizer(), expand=True)
    assert both["train"]["labels"] == plain["labels"]
    assert len(both["eval"]) == 2


def test_the_mean_over_a_conversation_of_a_stream_is_the_same() -> None:
    many = [chat(*"abcdefgh"[: 1 + at % 5]) for at in range(40)]
    plain, stream = data(*many), data(*many).to_iterable_dataset()
    made = [mask_dataset(each, tokenizer(), expand=True, reduction="sequence") for each in (plain, stream)]
    assert [row["labels"] for row in made[1]] == made[0]["labels"]


def test_answers_of_a_prompt_stay_context() -> None:
    messages = chat("a", "b", "c")
    row = Dataset.from_dict({"prompt": [messages[:3]], "completion": [messages[3:]]})
    rows = mask_dataset(row, tokenizer(), expand=True)
    assert texts(rows) == [["<think>\nr1\n</think>\n\nb<|im_end|>"], ["<think>\nr2\n</think>\n\nc<|im_end|>"]]


def test_roles_other_than_the_assistant_are_trained_once() -> None:
    rows = mask_dataset(data(chat("a", "b")), tokenizer(), expand=True, policy=Policy(roles=["user", "assistant"]))
    said = [run for row in texts(rows) for run in row]
    assert sum("question 0" in run for run in said) == 1
    assert sum("question 1" in run for run in said) == 1
    assert len(said) == 4


ENDS_OTHERWISE = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<hint>\n{% endif")


@pytest.mark.parametrize("way", ["drop", "mask"])
def test_a_conversation_that_cannot_be_expanded_follows_on_ambiguous(way: Any) -> None:
    source = DROPS.replace(
        "{% if add", "{% if add_generation_prompt and messages[0].content == 'odd' %}?{% endif %}{% if add"
    )
    odd = [{"role": "user", "content": "odd"}, {"role": "assistant", "content": "z", "reasoning_content": None}]
    with pytest.raises(AmbiguousRowError, match="Row 1 cannot be expanded: Message 1"):
        mask_dataset(data(THREE[0], odd, THREE[1]), tokenizer(source), expand=True)
    rows, report = mask_dataset(
        data(THREE[0], odd, THREE[1]), tokenizer(source), expand=True, on_ambiguous=way, return_report=True
    )
    assert {row["conversation"] for row in rows["expansion"]} == {0, 2}
    assert report.splits["train"].rows_ambiguous == 1


def test_rows_without_messages_and_tokenized_rows_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="expand=True needs messages, and the train dataset has text"):
        mask_dataset(Dataset.from_dict({"text": ["a"]}), tokenizer(), expand=True)
    with pytest.raises(UnsupportedError, match="has input_ids: its rows are made"):
        mask_dataset(Dataset.from_dict({"input_ids": [[1]], "messages": [THREE[0]]}), tokenizer(), expand=True)
