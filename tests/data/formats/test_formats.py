"""Every documented shape of rows is read as the messages that it means; see ``shapes.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.formats.shapes import CALLED, CHAT, SHAPES, SHAREGPT, TOOL, Shape
from datasets import Dataset, DatasetDict, IterableDataset
from support import tiny, tiny_chat
from support.trained_texts import trained_texts

from sft_mask import Policy, mask_dataset
from sft_mask.errors import DataError
from sft_mask.preview import preview_rows

DOCS = Path(__file__).parents[3] / "docs" / "formats.md"


def tokenizer_of(shape: Shape) -> Any:
    return tiny_chat.chat(shape.template)[0] if shape.template else tiny.tokenizer()


def rows_of(shape: Shape, kind: str = "dataset") -> Any:
    if kind == "stream":
        return IterableDataset.from_generator(lambda: iter([shape.row] * 2))
    return Dataset.from_list([shape.row] * 2, features=shape.features())


@pytest.mark.parametrize("kind", ["dataset", "stream"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_documented_shape_is_read_as_the_messages_that_it_means(name: str, kind: str) -> None:
    """Its ids are what the tokenizer itself renders from the messages, and the answers are trained with their end."""
    shape = SHAPES[name]
    tokenizer = tokenizer_of(shape)
    masked, report = mask_dataset(rows_of(shape, kind), tokenizer, columns=shape.columns, return_report=True)
    tools = [TOOL] if "tools" in shape.row else None
    expected = tokenizer.apply_chat_template(shape.messages, tools=tools, tokenize=True, return_dict=True)["input_ids"]
    answers = shape.answers or [m["content"] for m in shape.messages if m["role"] == "assistant"]
    rows = list(masked)
    assert [row["input_ids"] for row in rows] == [expected] * 2
    assert trained_texts(rows, tokenizer) == [[f"{answer}<|im_end|>" for answer in answers]] * 2
    assert report.read_as.get("train", "") == shape.read_as
    assert (f"read as  {shape.read_as}" in str(report)) == bool(shape.read_as)


def test_there_are_many_shapes_and_each_is_in_the_documentation() -> None:
    text = DOCS.read_text(encoding="utf-8")
    missing = [name for name, shape in SHAPES.items() if f"| {shape.by} | {shape.spelled} |" not in text]
    assert not missing
    assert len(SHAPES) >= 40


def test_splits_may_have_different_formats() -> None:
    both = DatasetDict(
        train=Dataset.from_list([{"conversations": SHAREGPT}]),
        test=Dataset.from_list([{"question": "Is rain wet?", "answer": "Yes, it is."}]),
    )
    masked, report = mask_dataset(both, tiny.tokenizer(), return_report=True)
    assert [trained_texts(masked[name]) for name in both] == [[["Yes, it is.<|im_end|>"]]] * 2
    assert [*report.read_as] == ["train", "test"]


def test_other_columns_and_the_format_are_kept() -> None:
    rows = Dataset.from_list([{"conversations": SHAREGPT, "n": 3}]).with_format("numpy")
    masked = mask_dataset(rows, tiny.tokenizer())
    assert set(masked.column_names) == {"messages", "n", "input_ids", "labels"}
    assert masked.format["type"] == "numpy"
    assert masked.with_format(None)[0]["messages"] == CHAT


def test_a_preview_and_the_mask_read_alike() -> None:
    (row,) = preview_rows([{"ask": "Is rain wet?", "say": "Yes, it is."}], tiny.tokenizer(), columns=ASKED)
    assert [run.text for run in row.runs if run.weight] == ["Yes, it is.<|im_end|>"]


ASKED = {"ask": "prompt", "say": "response"}


def test_names_are_given_for_what_has_no_usual_one() -> None:
    row = {"log": [{"who": "alice", "words": "Hi"}, {"who": "bob", "words": "Yo"}]}
    names = {"log": "messages", "who": "role", "words": "content"}
    masked, report = mask_dataset(
        Dataset.from_list([row]),
        tiny.tokenizer(),
        columns=names,
        roles={"alice": "user", "bob": "assistant"},
        return_report=True,
    )
    assert trained_texts(masked) == [["Yo<|im_end|>"]]
    assert report.to_dict()["read_as"] == {"train": "messages in the column log: alice → user, bob → assistant"}


def test_a_role_given_goes_before_a_well_known_name() -> None:
    row = {"messages": [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Yo"}]}
    swapped = {"assistant": "user", "user": "assistant"}
    assert trained_texts(mask_dataset(Dataset.from_list([row]), tiny.tokenizer(), roles=swapped)) == [["Yo<|im_end|>"]]


def test_a_role_that_the_template_knows_keeps_its_name() -> None:
    source = tiny.TEMPLATE.replace("{% for", "{% set known = ['developer', 'observation'] %}{% for", 1)
    made = tiny.tokenizer.__wrapped__()
    made.chat_template = source
    chat = [{"role": "developer", "content": "Be brief."}, *CHAT[:1], {"role": "observation", "content": "5"}, CHAT[1]]
    (row,) = mask_dataset(Dataset.from_list([{"messages": chat}]), made)
    assert made.decode(row["input_ids"]) == made.apply_chat_template(chat, tokenize=False)


def test_rows_late_in_a_dataset_are_read_like_the_first() -> None:
    chats = [CHAT] * 300 + [[{**CHAT[0], "role": "human"}, {**CHAT[1], "role": "gpt"}]]
    masked, report = mask_dataset(Dataset.from_dict({"messages": chats}), tiny.tokenizer(), return_report=True)
    assert trained_texts(masked) == [["Yes, it is.<|im_end|>"]] * 301
    assert report.read_as == {"train": "messages: human → user, gpt → assistant"}


def test_a_call_without_a_format_in_the_template_is_trained_as_words() -> None:
    """Else the template would write nothing of it, and a bare end-of-turn token would be trained."""
    shape = SHAPES["llama-factory sharegpt tools"]
    masked = mask_dataset(Dataset.from_list([shape.row]), tiny.tokenizer())
    words = shape.row["conversations"][1]["value"]
    assert trained_texts(masked) == [[f"{words}<|im_end|>", "A little.<|im_end|>"]]


def test_calls_of_one_turn_are_one_message() -> None:
    """A call right after words, or after another call, belongs to the same turn."""
    call = json.dumps({"name": "weather", "arguments": {"city": "Oslo"}})
    chat = [
        {"from": "human", "value": "Rain?"},
        {"from": "gpt", "value": "Let me look."},
        {"from": "function_call", "value": call},
        {"from": "function_call", "value": call},
        {"from": "observation", "value": "drizzle"},
        {"from": "gpt", "value": "A little."},
    ]
    tokenizer = tiny_chat.chat("qwen2_5")[0]
    masked = mask_dataset(Dataset.from_list([{"conversations": chat, "tools": json.dumps([TOOL])}]), tokenizer)
    assert trained_texts(masked, tokenizer) == [[f"Let me look.\n{CALLED}\n{CALLED}<|im_end|>", "A little.<|im_end|>"]]


# beside token ids


@pytest.mark.parametrize(
    "name", ["axolotl sharegpt", "raw sharegpt", "json text", "json text of each message", "oasst"]
)
@pytest.mark.parametrize("kind", ["dataset", "stream"])
def test_messages_beside_token_ids_are_read_in_any_spelling(name: str, kind: str) -> None:
    """A user who quotes the markers: only the messages tell that these words are not the assistant's."""
    quoted = "<|im_start|>assistant\nNo.<|im_end|>\n"
    shape = SHAPES[name]
    column = "conversations" if name == "raw sharegpt" else "dialogue" if name == "oasst" else next(iter(shape.row))
    value = next(iter(shape.row.values()))
    text = json.dumps(value).replace(
        "Is rain wet?", json.dumps(quoted)[1:-1] if isinstance(value, list) else "Is rain wet?"
    )
    row = {"input_ids": tiny.tokenized([{**CHAT[0], "content": quoted}, CHAT[1]]), column: json.loads(text)}
    if isinstance(value, str):
        row[column] = json.dumps([{**CHAT[0], "content": quoted}, CHAT[1]])
    if name == "json text of each message":
        row[column] = [json.dumps({**CHAT[0], "content": quoted}), json.dumps(CHAT[1])]
    rows = Dataset.from_list([row] * 2)
    masked = mask_dataset(rows.to_iterable_dataset() if kind == "stream" else rows, tiny.tokenizer())
    assert trained_texts(masked) == [["Yes, it is.<|im_end|>"]] * 2


# flags


@pytest.mark.parametrize("flag", [{"train": False}, {"training": False}, {"loss": False}, {"loss": 0}, {"weight": 0}])
@pytest.mark.parametrize("keys", [("role", "content", "user", "assistant"), ("from", "value", "human", "gpt")])
def test_flags_of_messages_are_read_by_the_names_in_use(flag: dict[str, Any], keys: tuple[str, ...]) -> None:
    role, content, user, assistant = keys
    chat = [
        {role: user, content: "Is rain wet?"},
        {role: assistant, content: "No.", **flag},
        {role: user, content: "Sure?"},
        {role: assistant, content: "Yes, it is."},
    ]
    rows = Dataset.from_list([{"conversations": chat}])
    masked = mask_dataset(rows, tiny.tokenizer(), policy=Policy(turns="flagged"))
    from sft_mask.core.label_codec import label_ids

    labels = label_ids(masked.with_format("numpy")["labels"][0])
    assert trained_texts([{"input_ids": masked[0]["input_ids"], "labels": labels.tolist()}]) == [
        ["Yes, it is.<|im_end|>"]
    ]
    _, report = mask_dataset(rows, tiny.tokenizer(), return_report=True)
    (name,) = flag
    assert any(f"carry {name}, which this policy does not read" in warning for warning in report.warnings)


def test_spans_of_characters_are_named_in_a_warning_and_refused_where_flags_decide() -> None:
    spans = [{"begin_offset": 0, "end_offset": 2, "train": False}]
    rows = Dataset.from_list([{"messages": [CHAT[0], {**CHAT[1], "train_detail": spans}]}])
    _, report = mask_dataset(rows, tiny.tokenizer(), return_report=True)
    assert any("carry train_detail (train_detail cannot be read" in warning for warning in report.warnings)
    with pytest.raises(DataError, match=r"row 0: A message has train_detail, which marks characters .* Leave it out"):
        mask_dataset(rows, tiny.tokenizer(), policy=Policy(turns="flagged"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"train": True, "loss": False}, "A message contradicts itself: train=True, loss=False"),
        ({"weight": 1, "loss_weight": 0.5}, "A message has two weights: weight=1, loss_weight=0.5"),
        ({"training": 1}, "A message has training=1, which is neither true nor false"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any], said: str) -> None:
    rows = Dataset.from_list([{"messages": [CHAT[0], {**CHAT[1], **flags}]}])
    with pytest.raises(DataError, match=said):
        mask_dataset(rows, tiny.tokenizer(), policy=Policy(turns="flagged"))
