"""Every field of the messages is in its row, cut off or not rendered: against a plain search for the words."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from datasets import Dataset
from support import tiny
from support.tiny_chat import CHATML, chat, prepared
from support.turn_oracle import Messages, Writer, rendered

from sft_mask import mask_dataset, train_on_responses_only
from sft_mask.errors import AmbiguousRowError

NAMES = ("chatml", "glm4moe", "gptoss", "llama3", "nemotron_3_nano", "qwen2_5", "qwen3", "qwen3_6")


def words_of(messages: Messages) -> list[tuple[str, str]]:
    """Kind and words of every field; no words occur in two of them."""
    found = []
    for message in messages:
        role = message["role"]
        found += [(f"{role} contents", message["content"])] if message["content"].strip() else []
        found += [("reasoning", message["reasoning_content"])] if message.get("reasoning_content") else []
        found += [("tool calls", call["function"]["arguments"]["word"]) for call in message.get("tool_calls") or ()]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_counts_equal_a_plain_search_for_the_words(name: str) -> None:
    tokenizer, _, _ = chat(name)
    writer = Writer(5)
    drawn = [writer.conversation() for _ in range(40)]
    rows = [(messages, tools) for messages, tools in drawn if rendered(tokenizer, messages, tools) is not None]
    wanted, lost = Counter[str](), Counter[str]()
    for messages, tools in rows:
        text = rendered(tokenizer, messages, tools) or ""
        for kind, words in words_of(messages):
            wanted[kind] += 1
            lost[kind] += words not in text
        wanted["tool definitions"] += bool(tools)
        lost["tool definitions"] += bool(tools) and "Looks a word up" not in text
    table = Dataset.from_list([{"messages": messages, "tools": tools} for messages, tools in rows])
    _, report = mask_dataset(table, tokenizer, on_ambiguous="drop", return_report=True)
    split = report.splits["train"]
    assert split.fields == {kind: count for kind, count in wanted.items() if count}
    assert split.not_rendered == {kind: count for kind, count in lost.items() if count}


def test_rows_that_markers_decide_count_like_those_that_messages_decide() -> None:
    tokenizer, _, _ = chat("qwen3")
    writer = Writer(8)
    drawn = [writer.conversation(tools=False)[0] for _ in range(60)]
    rows = [{"messages": said} for said in drawn if all(message["content"] for message in said)]
    _, together = mask_dataset(Dataset.from_list(rows), tokenizer, return_report=True)
    alone = [mask_dataset(Dataset.from_list([row]), tokenizer, return_report=True)[1].splits["train"] for row in rows]
    split = together.splits["train"]
    assert split.rows_checked > 10
    for name in ("fields", "fields_trained", "not_rendered", "prompts"):
        assert getattr(split, name) == dict(sum((Counter(getattr(each, name)) for each in alone), Counter())), name
    for name in ("turns_compared", "turns_in_other_form", "turns_without_reasoning", "turns_after_no_prompt"):
        assert getattr(split, name) == sum(getattr(each, name) for each in alone), name


FIRST_CALL_ONLY = CHATML.replace(
    "{{ message['content'] }}",
    "{{ message['content'] }}{% if message.tool_calls %}{{ message.tool_calls[0].function | tojson }}{% endif %}",
)
ALL_AS_ONE = FIRST_CALL_ONLY.replace("message.tool_calls[0].function | tojson", "message.tool_calls | tojson")


def calling(*places: str) -> Messages:
    calls = [{"type": "function", "function": {"name": "look", "arguments": {"place": place}}} for place in places]
    return [{"role": "user", "content": "where"}, {"role": "assistant", "content": "", "tool_calls": calls}]


@pytest.mark.parametrize(("source", "lost"), [(FIRST_CALL_ONLY, 1), (ALL_AS_ONE, 0)])
def test_parallel_calls_of_which_only_the_first_is_written_are_lost(source: str, lost: int) -> None:
    tokenizer, _, _ = prepared(source)
    rows = Dataset.from_list([{"messages": calling("Oslo", "Rome")}] * 9)
    _, report = mask_dataset(rows, tokenizer, return_report=True)
    split = report.splits["train"]
    assert (split.fields["tool calls"], split.not_rendered.get("tool calls", 0)) == (18, 9 * lost)
    assert bool(report.warnings) == bool(lost)


def test_an_answer_whose_call_is_dropped_would_train_a_bare_stop() -> None:
    tokenizer, _, _ = prepared(CHATML)
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "tool_calls": None}]
    rows = Dataset.from_list([{"messages": good}, {"messages": calling("Oslo")}])
    with pytest.raises(AmbiguousRowError, match=r"Row 1 has an answer without its words: .* which calls a tool"):
        mask_dataset(rows, tokenizer)
    masked, report = mask_dataset(rows, tokenizer, on_ambiguous="drop", return_report=True)
    assert len(masked) == 1
    assert report.splits["train"].not_rendered == {"tool calls": 1}
    assert report.splits["train"].first_not_rendered == {"tool calls": 1}


TRIMS = CHATML.replace("message['content'] }}", "message['content'] | trim | upper }}")


def test_whitespace_and_spelling_are_no_loss() -> None:
    tokenizer, _, _ = prepared(TRIMS)
    said = [{"role": "user", "content": " a  \n b "}, {"role": "assistant", "content": "\n\nc d  "}]
    _, report = mask_dataset(Dataset.from_list([{"messages": said}] * 3), tokenizer, return_report=True)
    assert not report.splits["train"].not_rendered


def test_reasoning_inside_of_a_content_counts_as_reasoning() -> None:
    after_tag = "{{ message['content'].split('</think>')[-1] }}"
    tokenizer, _, _ = prepared(CHATML.replace("{{ message['content'] }}", after_tag))
    said = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>\nlong thought\n</think>\n\nyes"},
    ]
    _, report = mask_dataset(Dataset.from_list([{"messages": said}] * 5), tokenizer, return_report=True)
    split = report.splits["train"]
    assert split.fields == {"assistant contents": 5, "reasoning": 5, "user contents": 5}
    assert split.not_rendered == {"reasoning": 5}


def test_answers_that_truncation_cuts_off_whole_are_counted_with_their_tokens(in_tmp_path: Any) -> None:
    said = [
        {"role": ("user", "assistant")[at % 2], "content": f"{('question', 'answer')[at % 2]} {at} " * 3}
        for at in range(8)
    ]
    whole = tiny.build("whole", Dataset.from_list([{"messages": said}] * 4))
    ids, two = (whole.train_dataset[0]["input_ids"], len(tiny.tokenizer().apply_chat_template(said[:4])["input_ids"]))
    built = tiny.build("cut", Dataset.from_list([{"messages": said}] * 4), max_length=two + 6)
    masked = train_on_responses_only(built)
    split = masked.mask_report.splits["train"]
    assert (split.turns, split.answers_cut_off) == (8, 8)
    assert split.fields_cut == {"assistant contents": 8, "user contents": 4}
    lost = sum(len(tiny.tokenizer()(said[at]["content"].strip())["input_ids"]) + 1 for at in (5, 7))
    assert abs(split.tokens_cut_off - 4 * lost) <= 8, "trailing spaces are trimmed or not"
    assert "cut off whole: 8 of 16 answers" in str(masked.mask_report)
    assert any("cut off whole" in warning for warning in masked.mask_report.warnings)
    assert len(ids) > two
