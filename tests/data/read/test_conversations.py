"""Conversations as they are read from rows."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from trl import maybe_convert_to_chatml

from sft_mask.data.read.conversations import as_chatml

HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yes", "weight": 0}
USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"content": [{"type": "text", "text": "Yes"}], "role": "assistant"}


@pytest.mark.parametrize(
    "row",
    [
        {"id": 1, "conversations": [HUMAN, GPT]},
        {"conversations": [USER, ASSISTANT], "text": "Hi", "tools": [{"from": "here", "value": 1}]},
        {"messages": [{**HUMAN, **USER}, {"role": "user", "value": "x", "name": "y"}], "n": 0},
        {"conversations": [HUMAN], "messages": [USER]},
        {"messages": [USER], "conversations": [HUMAN]},
        {"prompt": [HUMAN], "completion": [GPT]},
        {"prompt": "from", "completion": "value"},
        {"messages": ["from", None, HUMAN]},
        {"conversations": None},
        {"messages": []},
    ],
)
def test_from_and_value_are_renamed_as_trl_renames_them_down_to_the_order_of_keys(row: dict[str, Any]) -> None:
    given = deepcopy(row)
    made = as_chatml(row)
    assert json.dumps(made) == json.dumps(maybe_convert_to_chatml(deepcopy(row)))
    assert row == given, "the caller's row is not changed"
