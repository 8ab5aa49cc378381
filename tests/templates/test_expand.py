"""Expanded rows against the tokenizer's own renderings of prefixes."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from support.tiny_chat import CHATML, chat, conversation, prepared, trl_templates
from support.turn_oracle import Messages, Writer, rendered, sampled, trained_turns

from sft_mask import mask_dataset
from sft_mask.errors import AmbiguousRowError

FEW = ("glm4moe", "gptoss", "nemotron_3_nano", "qwen2_5", "qwen3", "qwen3_6")


def expanded(tokenizer: Any, messages: Messages, tools: object, **how: Any) -> list[dict[str, Any]]:
    row = {"messages": messages, **({"tools": tools} if tools else {})}
    return list(mask_dataset(Dataset.from_list([row]), tokenizer, expand=True, **how))


def check(tokenizer: Any, messages: Messages, tools: object) -> None:
    """Every answer is trained once, as inference shows it, and no row is the beginning of another."""
    rows = expanded(tokenizer, messages, tools)
    for one in rows:
        assert not any(
            one is not other and other["input_ids"][: len(one["input_ids"])] == one["input_ids"] for other in rows
        )
    found = [turn for row in rows for turn in trained_turns(tokenizer, row)]
    wanted = 0
    for index in (at for at, message in enumerate(messages) if message["role"] == "assistant"):
        ways = [way for way in sampled(tokenizer, messages, index, tools) if way[1]]
        if ways:
            wanted += 1
            assert any(is_same(turn, way) for turn in found for way in ways), (index, ways, found)
    assert len(found) == wanted


def is_same(turn: tuple[str, str], way: tuple[str, str]) -> bool:
    """Whether a turn is what inference shows.

    The end of turn may be the next message's header (GLM), and the end of text after it is not sampled (Phi-3). One
    token can hold the newline that ends a prompt and the one that begins an answer.
    """
    context, words = turn
    shown = way[0] + way[1].removesuffix("</s>").rstrip()
    said = context + words
    more = said.removeprefix(shown).strip() if said.startswith(shown) else "other words"
    is_next_header = more.startswith("<|") and more.count("<|") == 1
    return context.rstrip() == way[0].rstrip() and (not more or is_next_header)


@pytest.mark.parametrize("name", FEW)
def test_every_turn_is_trained_once_as_inference_shows_it(name: str) -> None:
    tokenizer, _, _ = chat(name)
    writer, checked = Writer(3), 0
    while checked < 4:
        messages, tools = writer.conversation()
        if rendered(tokenizer, messages, tools) is None:
            continue
        check(tokenizer, messages, tools)
        checked += 1


WITHOUT_HEADER = {"diffusion_gemma", "diffusion_gemma_training"}
"""Their prompt after a tool result lacks the header that they write before the answer; it is masked nevertheless."""


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in trl_templates() if name not in WITHOUT_HEADER])
def test_every_turn_of_every_template_is_trained_once_or_its_conversation_is_refused(name: str) -> None:
    tokenizer, _, _ = chat(name)
    writer = Writer(11)
    for _ in range(4):
        messages, tools = writer.conversation()
        if rendered(tokenizer, messages, tools) is None:
            continue
        if is_refused(tokenizer, messages, tools):
            continue
        check(tokenizer, messages, tools)


def is_refused(tokenizer: Any, messages: Messages, tools: object) -> bool:
    """Whether a conversation has an answer that no prompt leads to, or that its template writes nothing of."""
    for index, message in enumerate(messages):
        if message["role"] == "assistant" and not sampled(tokenizer, messages, index, tools):
            with pytest.raises(AmbiguousRowError, match=r"cannot be expanded|without its words"):
                expanded(tokenizer, messages, tools)
            return True
    for index, message in enumerate(messages):
        text = rendered(tokenizer, messages[: index + 1], tools) or ""
        calls = [call["function"]["arguments"]["word"] for call in message.get("tool_calls") or ()]
        said = [each for each in (message["content"], message.get("reasoning_content"), *calls) if each]
        if message["role"] == "assistant" and said and not any(each in text for each in said):
            with pytest.raises(AmbiguousRowError, match="without its words"):
                expanded(tokenizer, messages, tools)
            return True
    return False


@pytest.mark.parametrize("name", ["chatml", "llama3", "qwen2_5"])
def test_a_template_that_keeps_its_prefix_gives_the_rows_of_today(name: str) -> None:
    tokenizer, _, _ = chat(name)
    rows = [{"messages": Writer(seed).conversation(tools=False, reasoning=False)[0]} for seed in range(12)]
    rows += [{"messages": [*row["messages"], {"role": "user", "content": "and"}]} for row in rows]
    plain, wide = (mask_dataset(Dataset.from_list(rows), tokenizer, expand=expand) for expand in (False, True))
    assert [row["input_ids"] for row in plain] == [row["input_ids"] for row in wide]
    assert [row["labels"] for row in plain] == [row["labels"] for row in wide]


KEEPS_LAST = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and m.reasoning_content %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def reasoned(*said: tuple[str, str, str]) -> Messages:
    messages: Messages = []
    for question, thought, answer in said:
        messages += [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer, "reasoning_content": thought}]
    return messages


def test_reasoning_that_history_drops_is_trained_in_a_row_of_its_own() -> None:

    tokenizer, _, _ = prepared(KEEPS_LAST)
    rows = expanded(tokenizer, reasoned(("q", "r", "a"), ("s", "t", "b")), None)
    assert [[words for _, words in trained_turns(tokenizer, row)] for row in rows] == [
        ["<think>\nr\n</think>\n\na<|im_end|>"],
        ["<think>\nt\n</think>\n\nb<|im_end|>"],
    ]
    assert [len(row["messages"]) for row in rows] == [2, 4]


def test_a_stop_that_is_the_next_header_comes_from_the_longer_conversation() -> None:
    source = (
        "{% for m in messages %}<|{{ m['role'] }}|>{% if m.reasoning_content and loop.last %}<think>"
        "{{ m.reasoning_content }}</think>{% endif %}{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )

    tokenizer, _, _ = prepared(source + "{# <|user|> <|assistant|> <|system|> #}")
    rows = expanded(tokenizer, reasoned(("q", "r", "a"), ("s", "t", "b")), None)
    assert [[words for _, words in trained_turns(tokenizer, row)] for row in rows] == [
        ["<think>r</think>a<|user|>"],
        ["<think>t</think>b"],
    ]


def test_a_prompt_that_is_no_beginning_of_its_own_answer_is_refused() -> None:

    source = CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<hint>\n{% endif")
    tokenizer, _, _ = prepared(source)
    data = Dataset.from_list([{"messages": conversation("Hi", "Yes")}])
    with pytest.raises(AmbiguousRowError, match=r"Row 0 cannot be expanded: Message 1 .* never what inference shows"):
        mask_dataset(data, tokenizer, expand=True)
