"""Messages that Arrow keeps as JSON text, as structs of what a column of messages is asked for.

Several questions are asked of one batch, so the last batches are remembered: a message is parsed once.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from sft_mask.constants import FLAGS, REASONING, SPAN_FLAGS
from sft_mask.templates.fields import text_of

_FLAGS = (*FLAGS, *SPAN_FLAGS)


@dataclass(frozen=True, slots=True)
class ReadMessages:
    """What messages hold.

    Attributes:
        strings: their role, the strings of the content, those of all other fields, which fields they have (a checksum),
            and the flags.
        fields: their role, the text of the content and of the reasoning, and the number of tool calls.
    """

    strings: pa.StructArray
    fields: pa.StructArray


@dataclass(frozen=True)
class _Held:
    """An array, equal to every other one over the same memory, which it keeps from being used for anything else."""

    memory: tuple[int, ...]
    array: pa.Array = field(compare=False)


def read_messages(messages: pa.Array) -> ReadMessages:
    """Reads ``messages``, an array of Arrow's JSON type."""
    text = messages.storage
    memory = [buffer.address if buffer is not None else 0 for buffer in text.buffers()]
    return _read(_Held((*memory, text.offset, len(text)), text))


@lru_cache(maxsize=2)  # prompt and completion
def _read(held: _Held) -> ReadMessages:
    read: list[Any] = json.loads(f"[{','.join('null' if text is None else text for text in held.array.to_pylist())}]")
    messages: list[Mapping[str, Any]] = [
        message if isinstance(message, dict) else {} if message is None else {"content": message} for message in read
    ]
    roles = [role if isinstance(role := message.get("role"), str) else None for message in messages]
    role, content = pa.array(roles, pa.string()), [message.get("content") for message in messages]
    odd = [at for at, message in enumerate(messages) if not _is_plain(message)]
    return ReadMessages(_strings_of(role, messages, content, odd), _fields_of(role, messages, content, odd))


def _is_plain(message: Mapping[str, Any]) -> bool:
    """Whether a message is a role and a text, as most are."""
    return len(message) == 2 and "role" in message and type(message.get("content")) is str


def _strings_of(
    role: pa.Array, messages: Sequence[Mapping[str, Any]], content: Sequence[Any], odd: Sequence[int]
) -> pa.StructArray:
    others: list[str | None] = [None] * len(messages)
    keys = np.full(len(messages), zlib.crc32(b""), np.int64)
    flags: dict[str, list[bool | None]] = {name: [None] * len(messages) for name in _FLAGS}
    spoken = list(content)
    for at in odd:
        message = messages[at]
        rest = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
        others[at] = "\0".join(_strings(rest)) if rest else None
        keys[at] = zlib.crc32(",".join(sorted(rest)).encode())
        for name in rest.keys() & flags.keys():
            flags[name][at] = True
        spoken[at] = _spoken(content[at])
    marks = [pa.array(values, pa.bool_()) for values in flags.values()]
    columns = [role, pa.array(spoken, pa.string()), pa.array(others, pa.string()), pa.array(keys), *marks]
    return pa.StructArray.from_arrays(columns, ["role", "content", "other", "keys", *flags])


def _fields_of(
    role: pa.Array, messages: Sequence[Mapping[str, Any]], content: Sequence[Any], odd: Sequence[int]
) -> pa.StructArray:
    contents, calls = list(content), np.zeros(len(messages), np.int64)
    thoughts: list[str | None] = [None] * len(messages)
    for at in odd:
        message = messages[at]
        own = message.get("tool_calls")
        contents[at] = text_of(content[at])
        thoughts[at] = next((text_of(message[name]) for name in REASONING if message.get(name)), None)
        calls[at] = len(own) if isinstance(own, list) else int(bool(own))
    columns = [role, pa.array(contents, pa.string()), pa.array(thoughts, pa.string()), pa.array(calls)]
    return pa.StructArray.from_arrays(columns, ["role", "content", REASONING[0], "tool_calls"])


def _strings(value: object) -> Iterator[str]:
    """Every string inside a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _spoken(content: object) -> str:
    """The strings of a content; the texts of its parts also joined, as a template joins them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\0".join([*_strings(content), "".join(texts)] if parts else _strings(content))
