from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from support.tiny_chat import Messages, conversation

from sft_mask.data.columns import is_conversation, list_values, quotes_any, signatures
from sft_mask.data.conversations import Decoder, read_tools
from sft_mask.errors import DataError

MARK = "<|im_start|>"


LETTERS = "ab<|é東\0.[(*\\\n"


def column(rows: list[Messages]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(rows)])


def as_json(rows: list[Messages]) -> pa.ChunkedArray:
    texts = pa.array([json.dumps(message) for row in rows for message in row], pa.string())
    offsets = pa.array(np.cumsum([0, *map(len, rows)]), pa.int32())
    items = pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts)
    return pa.chunked_array([pa.ListArray.from_arrays(offsets, items)])


BOTH = pytest.mark.parametrize("made", [column, as_json])


@BOTH
def test_answers_are_the_messages_of_the_model(made: Any) -> None:
    rows = [conversation("a", "b", "c", "d"), conversation("a"), [{"role": "model", "content": "x"}]]
    assert signatures(made(rows), ()).answers.tolist() == [2, 0, 1]


@BOTH
def test_a_marker_in_any_text_of_a_row_is_seen(made: Any) -> None:
    rows = [
        conversation("a", "b"),
        conversation(f"a {MARK}", "b"),
        conversation("a", f"{MARK}b"),
        conversation("a", "b", system=MARK),
    ]
    assert signatures(made(rows), (MARK,)).quotes.tolist() == [False, True, True, True]


@BOTH
def test_a_marker_in_an_unknown_role_is_seen_and_a_known_role_is_none(made: Any) -> None:
    rows = [[{"role": f"user{MARK}", "content": "a"}], [{"role": "assistant", "content": "a"}]]
    assert signatures(made(rows), (MARK, "assistant")).quotes.tolist() == [True, False]


@BOTH
def test_half_a_marker_in_each_of_two_parts_is_a_marker(made: Any) -> None:
    def parts(*texts: str) -> Messages:
        return [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]

    rows = [parts("<|im_", "start|>"), parts("<|im_"), parts("start|>", "<|im_"), parts(MARK)]
    assert signatures(made(rows), (MARK,)).quotes.tolist() == [True, False, False, True]


def test_a_marker_in_a_call_is_seen() -> None:
    call = {"function": {"name": "look", "arguments": {"city": MARK}}}
    rows = [[{"role": "assistant", "content": "", "tool_calls": [call]}]]
    assert signatures(column(rows), (MARK,)).quotes.tolist() == [True]
    assert signatures(as_json(rows), (MARK,)).quotes.tolist() == [True]


def test_a_marker_as_a_key_is_seen() -> None:
    rows = [[{"role": "tool", "content": {MARK: 1}}]]
    assert signatures(as_json(rows), (MARK,)).quotes.tolist() == [True]


def test_nulls_hold_no_marker() -> None:
    rows: list[Any] = [None, [{"role": "user", "content": None}], [None], []]
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    found = signatures(pa.chunked_array([pa.array(rows, kind)]), (MARK,))
    assert found.quotes.tolist() == [False] * 4
    assert found.answers.tolist() == [0] * 4


@BOTH
def test_rows_of_other_roles_or_filled_fields_have_another_signature(made: Any) -> None:
    plain = conversation("a", "b")
    rows = [
        plain,
        conversation("x y", "z"),
        conversation("a", "b", system="s"),
        conversation("a", ""),
        conversation("a", "<think>b"),
        conversation("a", "b", "c"),
    ]
    keys = signatures(made(rows), ()).signature.tolist()
    assert keys[0] == keys[1]
    assert len({*keys}) == 5


def test_a_row_with_calls_has_another_signature() -> None:
    rows = [conversation("a", "b"), conversation("a", "b")]
    rows[1][1]["tool_calls"] = [{"function": {"name": "f"}}]
    for made in (column, as_json):
        keys = signatures(made(rows), ()).signature.tolist()
        assert keys[0] != keys[1]


def test_signatures_do_not_depend_on_the_batch() -> None:
    rows = [conversation("a", "b"), conversation("a", "b", "c", "d", system="s"), conversation("a", "")]
    for made in (column, as_json):
        whole = signatures(made(rows), ()).signature.tolist()
        assert [int(signatures(made(rows).slice(at, 1), ()).signature[0]) for at in range(3)] == whole


def test_a_slice_is_read_as_it_stands() -> None:
    rows = [conversation(MARK, "b"), conversation("a", "b", "c", "d"), conversation("a", "b")]
    found = signatures(column(rows).slice(1), (MARK,))
    assert found.answers.tolist() == [2, 1]
    assert found.quotes.tolist() == [False, False]


def test_only_lists_of_messages_are_conversations() -> None:
    assert is_conversation(column([conversation("a")]).type)
    assert is_conversation(as_json([conversation("a")]).type)
    assert not is_conversation(pa.list_(pa.int32()))
    assert not is_conversation(pa.list_(pa.struct({"from": pa.string()})))
    assert not is_conversation(pa.string())


@given(
    strings=st.lists(st.none() | st.text(LETTERS, max_size=8), max_size=12),
    texts=st.lists(st.text(LETTERS, min_size=1, max_size=3), max_size=3),
    cut=st.integers(0, 12),
    large=st.booleans(),
)
def test_quoted_texts_are_those_that_arrow_finds_one_by_one(
    strings: list[str | None], texts: list[str], cut: int, large: bool
) -> None:
    array = pa.array(strings, pa.large_string() if large else pa.string()).slice(cut)
    wanted = np.zeros(len(array), np.bool_)
    for text in texts:
        wanted |= np.asarray(pc.fill_null(pc.match_substring(array, text), False), np.bool_)
    assert quotes_any(array, texts).tolist() == wanted.tolist()


def test_list_values_are_flat_with_offsets() -> None:
    values, offsets = list_values(pa.chunked_array([pa.array([[1, 2], []]), pa.array([[3]])]).slice(1))
    assert values.tolist() == [3]
    assert offsets.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("rows", "said"), [([[1], None], "row 1 is null"), ([[1], [2, None]], "row 1 holds a null at position 1")]
)
def test_nulls_in_lists_are_named(rows: list[Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        list_values(pa.array(rows))


def test_the_conversation_is_read_from_whichever_column_has_it() -> None:
    for names in (("messages",), ("conversations",), ("prompt", "completion")):
        rows = conversation("a", "b")
        halves = [rows] if len(names) == 1 else [rows[:1], rows[1:]]
        table = pa.table({name: pa.array([half]) for name, half in zip(names, halves, strict=True)})
        assert Decoder.columns(table) == names
        assert Decoder().row(table, 0).messages == rows
    assert Decoder.columns(pa.table({"prompt": ["a"], "completion": ["b"]})) == ()


def test_a_row_comes_back_as_it_was_given() -> None:
    messages = [{"role": "tool", "content": {"now": [1, "a", None]}}, {"role": "assistant", "content": "b"}]
    dataset = Dataset.from_list([{"messages": messages, "tools": '[{"name": "f"}]'}], on_mixed_types="use_json")
    found = Decoder(dataset.features).row(dataset.data.table, 0)
    assert found.messages[0] == messages[0]
    assert found.tools == [{"name": "f"}]


def test_a_marker_escaped_in_tools_of_json_text_is_doubted() -> None:
    texts = ['[{"name": "\\u003c|im_start|>"}]', '[{"name": "clock"}]', None]
    table = pa.table({"messages": pa.array([conversation("a", "b")] * 3), "tools": pa.array(texts)})
    assert Decoder().signatures(table, (MARK,)).quotes.tolist() == [True, False, False]


def test_rows_with_arguments_of_their_own_are_doubted() -> None:
    table = pa.table(
        {"messages": pa.array([conversation("a", "b")] * 2), "chat_template_kwargs": pa.array([{"x": True}, None])}
    )
    assert Decoder().signatures(table, ()).quotes.tolist() == [True, False]


def test_tools_that_are_no_json_are_quoted() -> None:
    with pytest.raises(DataError, match="'nonsense', which is not JSON"):
        read_tools("nonsense")
    assert read_tools("[]") == []
    assert read_tools(None) is None


def test_a_null_conversation_is_unknown() -> None:
    table = pa.table({"messages": pa.array([conversation("a", "b"), None])})
    assert Decoder().unknown(table).tolist() == [False, True]
    assert Decoder().row(table, 1).messages == []


def test_a_slice_of_lists_holds_its_own_values_only() -> None:
    values, offsets = list_values(pa.array([[1], [2, 3], [4]])[1:])
    assert (values.tolist(), offsets.tolist()) == ([2, 3, 4], [0, 2, 3])


def test_messages_with_other_fields_have_another_shape() -> None:
    texts = pa.array([json.dumps({"role": "user", "content": "a", field: "x"}) for field in ("name", "mood", "name")])
    items = pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts)
    key = signatures(pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), items), ()).signature.tolist()
    assert key[0] == key[2] != key[1]
