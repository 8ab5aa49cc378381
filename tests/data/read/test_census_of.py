"""The census of a few conversations in Python holds the fields that the one of Arrow columns does."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sft_mask.data.read.census import census, census_of

CALL = {"function": {"name": "look", "arguments": "{}"}}
CHATS = [
    [
        {"role": "system", "content": " "},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "<think>Hm</think>A cat", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "left"},
        {"role": "assistant", "content": "Left", "reasoning_content": "So left."},
    ],
    [],
    [{"role": "user", "content": "Hi"}, {"role": "model", "content": "Hello"}, {"role": "critic", "content": "No"}],
]


def test_both_hold_the_same_fields_in_the_same_order() -> None:
    arrow, own = census([pa.chunked_array([pa.array(CHATS)])], None, len(CHATS)), census_of(CHATS)
    for name in ("row", "message", "kind", "item", "role"):
        assert getattr(own, name).tolist() == getattr(arrow, name).tolist(), name


def test_fields_look_alike_in_both_or_in_neither() -> None:
    chats = [*CHATS, *CHATS[::-1]]
    arrow, own = census([pa.chunked_array([pa.array(chats)])], None, len(chats)), census_of(chats)
    same = [np.equal.outer(each.look, each.look) for each in (arrow, own)]
    assert (same[0] == same[1]).all()
    assert not same[0].all()


def test_no_rows_have_no_fields() -> None:
    assert len(census_of([[], []])) == 0
