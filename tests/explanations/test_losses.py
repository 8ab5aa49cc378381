"""What a row lost, counted by a plain search for the words of its messages."""

from __future__ import annotations

import random
from typing import Any

import pytest
from datasets import Dataset
from support.tiny import tokenizer
from support.tiny_chat import chat

from sft_mask import explain, mask_dataset, preview_rows
from sft_mask.preview import PreviewRow
from sft_mask.preview.source import PreviewRows

CALLS = [{"type": "function", "function": {"name": name, "arguments": {"q": name}}} for name in ("grep", "find")]


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def with_calls(seed: int) -> list[dict[str, Any]]:
    """Answers that say something and may call tools; every word occurs once."""
    draw = random.Random(seed)
    messages = []
    for number in range(draw.randint(1, 4)):
        calls = [{"type": "function", "function": {"name": f"tool{number}{at}", "arguments": {"q": f"x{number}{at}"}}}
                 for at in range(draw.randint(0, 2))]  # fmt: skip
        messages += [
            said("user", f"ask{number}"),
            said("assistant", f"say{number}", **({"tool_calls": calls} if calls else {})),
        ]
        messages += [said("tool", f"result{number}")] if calls else []
    return messages


def shown(messages: list[dict[str, Any]], words: Any = None) -> PreviewRow:
    return preview_rows([{"messages": messages}], words or tokenizer())[0]


def test_calls_that_the_template_drops_are_listed_by_message() -> None:
    for seed in range(12):
        messages = with_calls(seed)
        row = shown(messages)
        wanted = [
            (at, call["function"]["name"])
            for at, message in enumerate(messages)
            for call in message.get("tool_calls", ())
            if call["function"]["name"] not in row.text
        ]
        assert len(row.lost) == len(wanted)
        for line, (at, name) in zip(row.lost, wanted, strict=True):
            assert line.startswith(f"message {at} (assistant), tool call: not written by the chat template: ")
            assert name in line
        count = f"lost: {len(wanted)} tool call{'s' if len(wanted) > 1 else ''} not rendered"
        assert row.status == ((count,) if wanted else ())


def test_nothing_is_lost_by_a_template_that_writes_calls() -> None:
    for seed in range(8):
        row = shown(with_calls(seed), chat("qwen3")[0])
        assert row.lost == row.status == ()


def test_the_answer_whose_calls_are_lost_says_so_and_no_other() -> None:
    row = shown(
        [said("user", "a"), said("assistant", "b", tool_calls=CALLS), said("tool", "c"), said("assistant", "d")]
    )
    reasons = [explain(row, at) for at, weight in enumerate(row.weights) if weight]
    told = "; its tool call (message 1) is not written by the chat template"
    of_first = ["answer 1 of 2" in reason for reason in reasons]
    assert [told in reason for reason in reasons] == of_first
    assert True in of_first
    assert False in of_first
    assert all(reason.count(told) <= 1 for reason in reasons)


def test_reasoning_that_history_drops_is_told_from_reasoning_that_no_template_writes() -> None:
    asked = [said("user", "a"), said("assistant", "b", reasoning_content="because")]
    messages = [*asked, said("user", "c"), said("assistant", "d", reasoning_content="since")]
    row = shown(messages, chat("qwen3")[0])
    assert "because" not in row.text
    assert "since" in row.text
    (line,) = row.lost
    assert line.startswith("message 1 (assistant), reasoning: left out because other messages follow")
    assert "expand=True" in line
    assert line.endswith(": because")
    never = shown(messages)
    assert [line.split(": ")[1] for line in never.lost] == ["not written by the chat template"] * 2
    assert never.status == ("lost: 2 reasoning not rendered",)


def test_tool_definitions_and_contents_of_other_roles_are_fields_too() -> None:
    tools = [{"type": "function", "function": {"name": "grep", "parameters": {"type": "object", "properties": {}}}}]
    row = preview_rows([{"messages": [said("user", "a"), said("assistant", "b")], "tools": tools}], tokenizer())[0]
    assert row.status == ("lost: 1 tool definitions not rendered",)
    assert row.lost[0].startswith("tool definitions: not written by the chat template: ")


@pytest.mark.parametrize("length", [8, 20, 36, 50])
def test_answers_that_truncation_left_nothing_of_are_counted(length: int) -> None:
    messages = [
        said("user", "ask one"),
        said("assistant", "say one"),
        said("user", "ask two"),
        said("assistant", "say two"),
    ]
    ids = tokenizer().apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
    text = tokenizer().decode(ids[:length])
    begun = text.count("<|im_start|>assistant\n")
    data = [{"messages": messages, "input_ids": part} for part in (ids[:length], ids)]
    row = preview_rows(data, tokenizer())[0]
    starts = [
        note.start for note in row.notes if note.reason.startswith("trained") and "end-of-turn" not in note.reason
    ]
    gone = 2 - len(starts)
    flags = [flag for flag in row.status if flag.startswith("lost")]
    assert len(flags) == bool(gone)
    assert len([line for line in row.lost if "cut off by max_length" in line]) == gone
    assert begun >= len(starts)
    if gone:
        tokens = sum(len(tokenizer()(f"{words}<|im_end|>")["input_ids"]) for words in ("say one", "say two")[-gone:])
        assert flags[0].endswith(f"{gone} answer{'s' if gone > 1 else ''} of {tokens} tokens cut off whole")


def test_rows_add_up_to_the_report() -> None:
    data = Dataset.from_list([{"messages": with_calls(seed)} for seed in range(10)])
    rows = preview_rows(data, tokenizer())
    _, report = mask_dataset(data, tokenizer(), on_ambiguous="drop", return_report=True)
    assert isinstance(rows, PreviewRows)
    assert sum(len(row.lost) for row in rows) == report.splits["train"].not_rendered["tool calls"] > 0
