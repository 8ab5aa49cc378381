"""Roles, flags and tool calls: exactly the words of the messages that were asked for, on templates that differ."""

from __future__ import annotations

import json
from typing import Any

import pytest
from datasets import Dataset
from support.tiny_chat import chat, trl_templates
from support.trained_texts import trained_texts

from sft_mask import Policy, mask_dataset, train_on_responses_only
from sft_mask.errors import AmbiguousRowError, DataError, UnsupportedError

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "clock",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}, "required": ["zone"]},
        },
    }
]
CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "userone asks"},
    {"role": "assistant", "content": "answerone is"},
    {"role": "user", "content": "usertwo asks"},
    {"role": "assistant", "content": "answertwo is"},
]
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "userone asks"},
    {
        "role": "assistant",
        "content": "answerone calls",
        "tool_calls": [
            {"id": "callaaaaa", "type": "function", "function": {"name": "clock", "arguments": {"zone": "zoneone"}}}
        ],
    },
    {"role": "tool", "tool_call_id": "callaaaaa", "name": "clock", "content": "resultone says"},
    {"role": "assistant", "content": "answertwo is"},
]
PLAIN = ["chatml", "cohere", "gemma", "llama3", "phi3", "qwen2_5", "qwen3_instruct_2507", "deepseekv3"]
WITH_TOOLS = ["qwen2_5", "qwen3_instruct_2507", "llama3_1", "gptoss", "deepseekv3", "glm4moe"]
WORDS = ("userone", "usertwo", "answerone", "answertwo", "resultone", "zoneone")


def rows(messages: list[dict[str, Any]]) -> Dataset:
    return Dataset.from_list([{"messages": json.loads(json.dumps(messages))}])


def trained(name: str, messages: list[dict[str, Any]], policy: Policy, tools: bool = False) -> str:
    """What is trained of a conversation whose ids are in the row too."""
    tokenizer = chat(name)[0]
    text = rendered(name, messages, tools)
    row = {"messages": messages, "input_ids": tokenizer(text, add_special_tokens=False)["input_ids"]}
    if tools:
        row["tools"] = json.dumps(TOOLS)
    label = train_on_responses_only(tokenizer=tokenizer, return_function=True, policy=policy)
    (labels,) = label({key: [value] for key, value in row.items()})["labels"]
    return "".join(*trained_texts([{**row, "labels": labels}], tokenizer))


def rendered(name: str, messages: list[dict[str, Any]], tools: bool = False) -> str:
    return str(chat(name)[0].apply_chat_template(messages, tools=TOOLS if tools else None, tokenize=False))


def calls(name: str) -> list[dict[str, Any]]:
    """The conversation with its arguments as the template wants them; some leave the words beside a call out."""
    if name != "deepseekv3":
        return CALLS
    function = {"name": "clock", "arguments": json.dumps({"zone": "zoneone"})}
    call = {**CALLS[1]["tool_calls"][0], "function": function}
    return [CALLS[0], {**CALLS[1], "tool_calls": [call]}, *CALLS[2:]]


def words(text: str) -> set[str]:
    return {word for word in WORDS if word in text}


def test_the_templates_are_trl_s() -> None:
    assert set(WITH_TOOLS) <= set(trl_templates())


@pytest.mark.parametrize("name", PLAIN)
def test_roles(name: str) -> None:
    assert words(trained(name, CHAT, Policy())) == {"answerone", "answertwo"}
    assert words(trained(name, CHAT, Policy(roles=["user"]))) == {"userone", "usertwo"}
    assert words(trained(name, CHAT, Policy(roles=["user", "assistant"]))) == set(WORDS[:4])


def test_another_role_is_trained_with_its_stop_and_no_header() -> None:
    assert trained("qwen2_5", CHAT, Policy(roles=["user"])) == "userone asks<|im_end|>usertwo asks<|im_end|>"
    assert trained("gemma", CHAT, Policy(roles=["user"])) == "userone asks<end_of_turn>usertwo asks<end_of_turn>"
    alone = trained("qwen2_5", CHAT, Policy(roles=["user"], stop="never"))
    assert alone == "userone asksusertwo asks"


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_tool_results(name: str) -> None:
    said, shown = calls(name), words(rendered(name, calls(name), tools=True))
    model = shown & {"answerone", "answertwo", "zoneone"}
    assert {"answertwo", "zoneone", "resultone"} <= shown
    assert words(trained(name, said, Policy(), tools=True)) == model
    assert words(trained(name, said, Policy(roles=["assistant", "tool"]), tools=True)) == model | {"resultone"}
    assert words(trained(name, said, Policy(roles={"tool": 1.0}), tools=True)) == {"resultone"}


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_without_tool_calls_an_answer_ends_with_its_words(name: str) -> None:
    said, shown = calls(name), words(rendered(name, calls(name), tools=True))
    text = trained(name, said, Policy(tool_calls=False), tools=True)
    assert words(text) == shown & {"answerone", "answertwo"}
    assert "clock" not in text
    assert "zone" not in text


FLAGS: list[tuple[list[dict[str, Any]], set[str]]] = [
    ([{}, {}, {}, {}], {"answerone", "answertwo"}),
    ([{}, {"train": False}, {}, {}], {"answertwo"}),
    ([{}, {"weight": 0}, {}, {"weight": 1}], {"answertwo"}),
    ([{}, {"train": True}, {}, {"train": False}], {"answerone"}),
    ([{"train": True}, {"train": False}, {}, {}], {"userone", "answertwo"}),
    ([{}, {"train": False, "weight": 2}, {"weight": 1}, {}], {"usertwo", "answertwo"}),
]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize(("flags", "wanted"), FLAGS)
def test_flags_of_messages(name: str, flags: list[dict[str, Any]], wanted: set[str]) -> None:
    messages = [{**message, **flag} for message, flag in zip(CHAT, flags, strict=True)]
    assert words(trained(name, messages, Policy(turns="flagged"))) == wanted


def test_flags_in_a_dataset_with_columns_for_them() -> None:
    """Arrow gives every message both fields; those that are null are not there."""
    tokenizer = chat("qwen2_5")[0]
    flagged = [{**message, "train": None, "weight": None} for message in CHAT]
    flagged[1]["train"] = False
    masked = mask_dataset(rows(flagged), tokenizer, policy=Policy(turns="flagged"))
    assert trained_texts(masked, tokenizer) == [["answertwo is<|im_end|>"]]


def test_flags_that_the_policy_does_not_read_are_named() -> None:
    tokenizer = chat("qwen2_5")[0]
    flagged = [{**message, "weight": 1 if at == 3 else None} for at, message in enumerate(CHAT)]
    _, report = mask_dataset(rows(flagged), tokenizer, return_report=True)
    assert any("Policy(turns='flagged')" in warning for warning in report.warnings)


@pytest.mark.parametrize("flag", [{"train": "yes"}, {"weight": -1}, {"weight": "heavy"}, {"weight": float("nan")}])
def test_a_flag_that_is_none_is_refused(flag: dict[str, Any]) -> None:
    messages = [CHAT[0], {**CHAT[1], **flag}]
    with pytest.raises(DataError, match=r"train=|weight of a message"):
        trained("qwen2_5", messages, Policy(turns="flagged"))


@pytest.mark.parametrize("policy", [Policy(turns="flagged"), Policy(roles=["user"]), Policy(tool_calls=False)])
def test_what_only_messages_can_answer_is_refused_without_them(policy: Policy) -> None:
    tokenizer = chat("qwen2_5")[0]
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    with pytest.raises(UnsupportedError, match="the rows have no messages"):
        mask_dataset(Dataset.from_list([{"input_ids": ids}]), tokenizer, policy=policy)


def test_a_row_whose_messages_are_null_is_ambiguous_for_such_a_policy() -> None:
    tokenizer = chat("qwen2_5")[0]
    ids = tokenizer.apply_chat_template(CHAT, tokenize=True, return_dict=True)["input_ids"]
    data = Dataset.from_list([{"messages": CHAT, "input_ids": ids}, {"messages": None, "input_ids": ids}])
    with pytest.raises(AmbiguousRowError, match="Its messages are null"):
        mask_dataset(data, tokenizer, policy=Policy(roles=["user"]))
    kept, report = mask_dataset(data, tokenizer, policy=Policy(roles=["user"]), on_ambiguous="drop", return_report=True)
    assert len(kept) == 1
    assert report.splits["train"].rows_ambiguous == 1


# the drop-in arguments


def test_mask_out_tokens() -> None:
    tokenizer = chat("qwen3")[0]
    said = [{"role": "user", "content": "hi </think> you"}, {"role": "assistant", "content": "so </think> it is"}]
    ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False), add_special_tokens=False)["input_ids"]

    def text(**options: Any) -> str:
        label = train_on_responses_only(tokenizer=tokenizer, return_function=True, **options)
        (labels,) = label({"input_ids": [ids]})["labels"]
        return "".join(*trained_texts([{"input_ids": ids, "labels": labels}], tokenizer))

    whole = text()
    assert "</think>" in whole
    assert text(mask_out_tokens="</think>") == text(mask_out_tokens=["</think>"]) == whole.replace("</think>", "")
    assert text(mask_out_tokens=["<|im_end|>"]) == whole.removesuffix("<|im_end|>")
