"""Which fields of the messages a chat template writes, and which it leaves out.

A field is in the text if its characters are there (:mod:`sft_mask.templates.render` knows the source of each), or if
its words are there although the template wrote them in another form. Whitespace that is trimmed, keys that are renamed
and JSON that is spelled otherwise lose nothing::

    message  {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", ...}}, {...}]}
    text     <|im_start|>assistant\\n{"name": "add", "arguments": {"a": 1}}<|im_end|>
    fields   call 0 is written, call 1 is not; an empty content has nothing to write
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.constants import ASSISTANT_ROLES, REASONING
from sft_mask.templates.tracing.traced_str import TOOLS

if TYPE_CHECKING:
    from sft_mask.templates.render import Rendered

Message = Mapping[str, object]

INLINE = re.compile(r"\A\s*(?:<think>|\[THINK\])?(.*?)(?:</think>|\[/THINK\])", re.DOTALL)
"""Reasoning at the beginning of a content, with the tags around it."""
_WHITESPACE = np.array([9, 10, 11, 12, 13, 32, 0x85, 0xA0], np.uint32)


class FieldKind(IntEnum):
    """What a message can hold."""

    CONTENT = 0
    REASONING = 1
    """A field of its own, or the beginning of a content, before ``</think>``."""
    CALL = 2
    TOOLS = 3
    """The tool definitions of the conversation."""


@dataclass(frozen=True, slots=True)
class Field:
    """A part of a conversation that has words.

    Attributes:
        message: index of the message, ``-1`` for tool definitions.
        kind: what it is.
        item: which of several tool calls.
    """

    message: int
    kind: FieldKind
    item: int = 0


def fields_of(messages: Sequence[Message], tools: object = None) -> Iterator[Field]:
    """Every field that has words; whitespace alone is none."""
    if tools:
        yield Field(-1, FieldKind.TOOLS)
    for index, message in enumerate(messages):
        content, reasoning = _content(message)
        if _dense(content):
            yield Field(index, FieldKind.CONTENT)
        if _dense(reasoning):
            yield Field(index, FieldKind.REASONING)
        calls = message.get("tool_calls")
        for item in range(len(calls) if isinstance(calls, (list, tuple)) else bool(calls)):
            yield Field(index, FieldKind.CALL, item)


class WrittenFields:
    """What a rendered text holds of each field.

    Args:
        rendered: what the template made of the messages.
    """

    def __init__(self, rendered: Rendered) -> None:
        self._rendered = rendered
        self._characters = np.frombuffer(rendered.text.encode("utf-32-le", "surrogatepass"), np.uint32)
        dense = rendered.source[~np.isin(self._characters, _WHITESPACE)]
        self._tools = bool(np.any(rendered.source == TOOLS))
        counts = np.bincount(dense[dense >= 0], minlength=len(rendered.origins)).tolist()
        self._counts: dict[tuple[int, str, int], int] = {}
        for origin, count in zip(rendered.origins, counts, strict=True):
            key = (origin.message, origin.field, origin.item)
            self._counts[key] = self._counts.get(key, 0) + count

    def holds(self, field: Field, messages: Sequence[Message]) -> bool:
        """Whether the text holds the words of a field."""
        if field.kind is FieldKind.TOOLS:
            return self._tools
        message = messages[field.message]
        if field.kind is FieldKind.CALL:
            return self._holds_call(field, message)
        content, reasoning = _content(message)
        if field.kind is FieldKind.CONTENT:
            count = self._counts.get((field.message, "content", 0), 0)
            inline = _dense(reasoning) if _is_inline(message) else ""
            return count >= len(_dense(content) + inline) or self._has_words(content, field.message)
        count = 0 if _is_inline(message) else self._counts.get((field.message, REASONING[0], 0), 0)
        return count >= len(_dense(reasoning)) or self._has_words(reasoning, field.message)

    def has_any(self, message: int) -> bool:
        """Whether the text holds any word of a message."""
        return any(count for (index, _, _), count in self._counts.items() if index == message)

    def place(self, field: Field, messages: Sequence[Message]) -> tuple[int, int] | None:
        """From the first to the last character of a field; ``None`` if the text has none of its source."""
        name = {FieldKind.CONTENT: "content", FieldKind.REASONING: REASONING[0], FieldKind.CALL: "tool_calls"}.get(
            field.kind
        )
        if field.kind is FieldKind.REASONING and _is_inline(messages[field.message]):
            name = "content"
        mine = [
            index
            for index, origin in enumerate(self._rendered.origins)
            if (origin.message, origin.field) == (field.message, name) and origin.item in (field.item, 0)
        ]
        found = np.flatnonzero(np.isin(self._rendered.source, mine))
        return (int(found[0]), int(found[-1]) + 1) if len(found) else None

    def _holds_call(self, field: Field, message: Message) -> bool:
        calls = message.get("tool_calls")
        call = calls[field.item] if isinstance(calls, (list, tuple)) else calls
        own = self._text_of(field.message, "tool_calls")
        if not own:
            return False
        name, values = _call_words(call)
        is_traced = self._counts.get((field.message, "tool_calls", field.item), 0) > 0
        if not is_traced and name not in own:  # a list that was written as a whole has the source of its first call
            return False
        return not values or any(_spelled(value, own) for value in values)

    def _text_of(self, message: int, field: str = "") -> str:
        """The characters that came from a message, in order."""
        mine = [
            index
            for index, origin in enumerate(self._rendered.origins)
            if origin.message == message and field in ("", origin.field)
        ]
        chosen = self._characters[np.isin(self._rendered.source, mine)]
        return chosen.tobytes().decode("utf-32-le", "surrogatepass")

    def _has_words(self, words: str, message: int) -> bool:
        """Whether words are among the characters of their message, whatever the whitespace and the case."""
        return _spelled(_dense(words).casefold(), _dense(self._text_of(message)).casefold())


def _dense(text: str) -> str:
    return "".join(text.split())


def _texts(value: object) -> Iterator[str]:
    """All texts in a content or in the arguments of a call."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)


def text_of(content: object) -> str:
    """The text of a content, of its parts joined."""
    if isinstance(content, (list, tuple)):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _content(message: Message) -> tuple[str, str]:
    """The words of a message: of its content, and of its reasoning."""
    content = text_of(message.get("content"))
    own = next((message[name] for name in REASONING if message.get(name)), None)
    if own is not None:
        return content, "".join(_texts(own))
    inline = INLINE.match(content) if str(message.get("role")) in ASSISTANT_ROLES else None
    return (content[inline.end() :], inline.group(1)) if inline is not None else (content, "")


def _is_inline(message: Message) -> bool:
    return not any(message.get(name) for name in REASONING)


def _call_words(call: object) -> tuple[str, list[str]]:
    """The name of a tool call, and the texts of its arguments: values, or names where no value is text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    function = function if isinstance(function, Mapping) else call
    if not isinstance(function, Mapping):
        return "", list(_texts(call))
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return str(function.get("name", "")), [arguments] if arguments.strip() else []
    names = [str(name) for name in arguments] if isinstance(arguments, Mapping) else []
    return str(function.get("name", "")), [text for text in _texts(arguments) if text.strip()] or names


def _spelled(words: str, text: str) -> bool:
    """Whether a text holds words, as they are or as JSON spells them."""
    return words in text or any(json.dumps(words, ensure_ascii=plain)[1:-1] in text for plain in (False, True))
