"""Conversations beside token ids, in the spelling that masking reads: ``messages`` with a role and a content.

A trainer's rows can hold messages that the trainer itself did not read (roles called human and gpt under ``from``, JSON
text, a column called dialog); they say as well which words are the assistant's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.core.arrays import offsets_of
from sft_mask.data.formats.messages import Spelling, is_conversation, keys_of, loaded, standard_messages
from sft_mask.data.formats.names import CALL, CONTENT_KEYS, CONVERSATIONS, RoleNames, kind_of
from sft_mask.data.read.columns import is_json, is_list
from sft_mask.errors import DataError

COLUMNS = (*CONVERSATIONS, "prompt", "completion")
"""Columns that may hold messages."""

_USUAL = ("messages", "conversations", "prompt", "completion")
_STRANGE = r'"(?:from|speaker|sender|author)"\s*:|"role"\s*:\s*"(?i:human|gpt|chatgpt|bot|ai|function_call|tool_call)"'
_NAMES = RoleNames()


def standard_table(table: pa.Table) -> tuple[pa.Table, set[str]]:
    """The table with each conversation in its usual spelling, and the names of the columns that were rewritten.

    A column with another name than TRL's becomes ``messages``, if there is none that TRL reads.
    """
    rewritten = set()
    there = [name for name in COLUMNS if name in table.column_names]
    others = [name for name in there if name not in _USUAL]
    for name in (*(name for name in there if name in _USUAL), *others):
        target = name if name in _USUAL else "messages"
        if target != name and any(other in table.column_names for other in _USUAL):
            continue
        if target == name and not _may_be_strange(table[name]):
            continue
        rows = _standard_rows(table[name].to_pylist())
        if rows is None:
            continue
        table = table.drop_columns([name]).append_column(target, as_json(rows))
        rewritten.add(target)
    return table, rewritten


def _may_be_strange(column: pa.ChunkedArray) -> bool:
    """Whether messages may be spelled in another way, by the type and the names of roles."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return bool(pc.any(pc.starts_with(pc.utf8_ltrim_whitespace(column), "[")).as_py())
    inside = kind.value_type if is_list(kind) else None
    if inside is None or not len(column):
        return False
    messages = column.combine_chunks().flatten() if column.num_chunks != 1 else column.chunk(0).flatten()
    if is_json(inside):
        return bool(pc.any(pc.match_substring_regex(messages.storage, _STRANGE)).as_py())
    if not pa.types.is_struct(inside):
        return bool(pa.types.is_string(inside))
    if inside.get_field_index("role") < 0 or inside.get_field_index("content") < 0:
        return True
    roles = pc.unique(pc.struct_field(messages, "role")).to_pylist()
    return any(kind_of(role) in ("assistant", CALL) and role not in ASSISTANT_ROLES for role in roles)


def _is_usual(value: object) -> bool:
    """Whether messages have roles under this name, and an assistant among them (or nobody who could be one).

    Then all of them stay as they are: that is what the trainer rendered.
    """
    if not isinstance(value, (list, tuple)) or not all(isinstance(message, Mapping) for message in value):
        return False
    if any("content" not in message and any(key in message for key in CONTENT_KEYS) for message in value):
        return False
    roles = [message.get("role") for message in value]
    return None not in roles and (
        not any(kind_of(role) in ("assistant", CALL) for role in roles)
        or any(isinstance(role, str) and role in ASSISTANT_ROLES for role in roles)
    )


def standard_messages_of(value: object) -> list[Any] | None:
    """The messages of one row in their usual spelling; ``None`` if it holds something else."""
    if _is_usual(value) and isinstance(value, (list, tuple)):
        return list(value)
    read = loaded(value)
    if not is_conversation(read) or not isinstance(read, list):
        return None
    role, content = keys_of(read) or ("role", "content")
    try:
        made = standard_messages(read, Spelling(role, content, _NAMES))
    except DataError:  # a tool call that is no JSON: its words are the assistant's
        made = standard_messages(read, Spelling(role, content, RoleNames(call="assistant")))
    return made if isinstance(made, list) else None


def _standard_rows(rows: Sequence[object]) -> list[list[Any] | None] | None:
    """The conversations of all rows; ``None`` if a row that is not null is none."""
    made = [None if row is None else standard_messages_of(row) for row in rows]
    return None if any(one is None and row for one, row in zip(made, rows, strict=True)) else made


def as_json(rows: Sequence[Sequence[Mapping[str, object]] | None]) -> pa.Array:
    """Messages with any fields, as JSON; Arrow structs would need the same fields of the same type in all of them."""
    texts = pa.array([_dumped(dict(message)) for row in rows for message in row or ()], pa.string())
    messages = pa.ExtensionArray.from_storage(pa.json_(pa.string()), texts)
    offsets = offsets_of([len(row or ()) for row in rows]).astype(np.int32)
    nulls = pa.array([row is None for row in rows])
    return pa.ListArray.from_arrays(pa.array(offsets), messages, mask=nulls)


def _dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
