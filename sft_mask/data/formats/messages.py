"""A conversation in any spelling, as messages with a role and a content."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from sft_mask.data.formats.names import CALL, CONTENT_KEYS, FIELDS, ROLE_KEYS, RoleNames, kind_of
from sft_mask.errors import DataError

Message = Mapping[str, object]
Arguments = Literal["as given", "object", "text"]

_READABLE = 10_000_000
_ASKED, _ANSWERED = (*FIELDS["prompt"], "input"), FIELDS["response"]


@dataclass(frozen=True, slots=True)
class Spelling:
    """How the messages of a dataset are spelled, and what the chat template needs of them.

    Attributes:
        role: the key that says who speaks.
        content: the key of what is said.
        names: what the roles are called by the template.
        joins_parts: whether content in parts of text becomes text.
        arguments: what the arguments of tool calls become.
    """

    role: str = "role"
    content: str = "content"
    names: RoleNames = field(default_factory=RoleNames)
    joins_parts: bool = False
    arguments: Arguments = "as given"


def loaded(value: object) -> object:
    """The list or mapping that a text holds, as JSON or as Python prints it; anything else as it is.

    >>> loaded('[{"role": "user"}]'), loaded("{'a': None}"), loaded("[INST] Hi")
    ([{'role': 'user'}], {'a': None}, '[INST] Hi')
    """
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{") or len(value) > _READABLE:
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            made = read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return made if isinstance(made, (list, dict)) else value
    return value


def is_message(value: object) -> bool:
    """Whether a value is one message, or one turn of a question and an answer, in a known spelling."""
    read = loaded(value)
    if _pair(read) is not None:
        return True
    return isinstance(read, Mapping) and (_role_key(read) is not None or bool(list(_turns(read))))


def is_conversation(value: object) -> bool:
    """Whether a value is a list of messages in a known spelling, or such a list as text."""
    read = loaded(value)
    messages = read if isinstance(read, (list, tuple)) else ()
    return bool(messages) and all(is_message(message) for message in messages)


def keys_of(messages: Sequence[object]) -> tuple[str, str] | None:
    """The keys of the role and of the content in the first message that has any; ``None`` if none has."""
    for message in map(loaded, messages):
        if isinstance(message, Mapping) and (role := _role_key(message)) is not None:
            content = next((key for key in CONTENT_KEYS if message.get(key) is not None), None)
            return role, content or next((key for key in CONTENT_KEYS if key in message), "content")
    return None


def _role_key(message: Message) -> str | None:
    return next((key for key in ROLE_KEYS if isinstance(message.get(key), (str, int))), None)


def standard_messages(value: object, spelling: Spelling) -> object:
    """The messages with a role and a content; what is not a list of messages stays as it is.

    Raises:
        DataError: a tool call is not JSON.

    >>> chat = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    >>> standard_messages(chat, Spelling("from", "value"))
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Yo'}]
    """
    read = loaded(value)
    if not isinstance(read, (list, tuple)):
        return value
    made: list[object] = []
    for message in read:
        for one in _standard(loaded(message), spelling):
            last = made[-1] if made else None
            if isinstance(one, dict) and one.pop(CALL, False) and isinstance(last, dict) and _takes_calls(last):
                last["tool_calls"] = [*(last.get("tool_calls") or ()), *one["tool_calls"]]  # calls of one turn
            else:
                made.append(one)
    return made


def _takes_calls(message: Message) -> bool:
    return kind_of(message.get("role")) == "assistant"


def _standard(message: object, spelling: Spelling) -> Iterator[object]:
    """The messages that one item of a conversation stands for."""
    message = named_pair(message, (spelling.role, spelling.content))
    if not isinstance(message, Mapping):
        yield message
    elif message.get(spelling.role) is None and (turns := list(_turns(message))):
        yield from turns
    else:
        yield _message(message, spelling)


def named_pair(message: object, keys: tuple[str, str]) -> object:
    """A pair of a role and its words (under the ``keys``), or of a question and its answer; anything else as it is."""
    pair = _pair(message)
    if pair is None:
        return message
    return dict(zip(keys if kind_of(pair[0]) is not None else ("user", "assistant"), pair, strict=True))


def _pair(value: object) -> tuple[str, str] | None:
    """A question and its answer, or a role and its words; ``None`` for anything else."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    first, second = value
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None


def _turns(message: Message) -> Iterator[dict[str, object]]:
    """The messages of one item with a key for each role (``{"human": ..., "assistant": ...}``); none of another one."""
    said = {str(key).lower(): text for key, text in message.items() if isinstance(text, str)}
    asked = next((said[key] for key in _ASKED if key in said), None)
    answered = next((said[key] for key in _ANSWERED if key in said), None)
    if asked is None and answered is None:
        return
    for role, text in (("system", said.get("system")), ("user", asked), ("assistant", answered)):
        if text is not None and (text or role == "assistant"):
            yield {"role": role, "content": text}


def _message(message: Message, spelling: Spelling) -> dict[str, object]:
    role, content = message.get(spelling.role), message.get(spelling.content)
    taken = (spelling.role, spelling.content)
    rest = {str(name): value for name, value in message.items() if name not in taken and value is not None}
    role = spelling.names.role(role)
    if role == CALL:
        calls = _calls(content if content is not None else rest.pop("tool_calls", None), spelling.arguments)
        return {"role": "assistant", "content": "", **rest, "tool_calls": calls, CALL: True}
    made = {"role": role, **({"content": _content(content, spelling)} if spelling.content in message else {}), **rest}
    legacy = rest.get("function_call")
    if isinstance(loaded(legacy), Mapping) and not rest.get("tool_calls"):
        made.pop("function_call")
        made["tool_calls"] = _calls(legacy, spelling.arguments)
    elif rest.get("tool_calls"):
        made["tool_calls"] = _with_arguments(loaded(rest["tool_calls"]), spelling.arguments)
    return made


def _content(content: object, spelling: Spelling) -> object:
    if not spelling.joins_parts or not isinstance(content, (list, tuple)):
        return content
    texts = [_text_of(part) for part in content]
    return "".join(text for text in texts if text is not None) if None not in texts else content


def _text_of(part: object) -> str | None:
    """The text of a part; ``None`` if it is an image, or has no text."""
    if isinstance(part, Mapping):
        filled = {name: value for name, value in part.items() if value is not None}
        text = (
            filled.get("text") if filled.keys() <= {"type", "text"} and filled.get("type", "text") == "text" else None
        )
        return text if isinstance(text, str) else None
    return part if isinstance(part, str) else None


def _calls(said: object, arguments: Arguments) -> list[object]:
    """Tool calls out of what is said under the role of a call: one mapping or several, or JSON text of these."""
    read = loaded(said)
    calls = read if isinstance(read, list) else [read]
    made = [_call(loaded(call)) for call in calls]
    if not calls or None in made:
        raise DataError(
            f"A tool call is {said!r:.80}: it needs the name of a tool and its arguments. Give JSON such as "
            '{"name": "clock", "arguments": {"zone": "UTC"}}, or give the message the role \'assistant\' to train it '
            "as words."
        )
    with_arguments = _with_arguments(made, arguments)
    assert isinstance(with_arguments, list), "a list of calls stays one"
    return with_arguments


def _call(call: object) -> dict[str, object] | None:
    if not isinstance(call, Mapping):
        return None
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments: object = next(
        (function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {}
    )
    return {"type": "function", "function": {"name": function["name"], "arguments": loaded(arguments)}}


def _with_arguments(calls: object, wanted: Arguments) -> object:
    """The calls with their arguments as the chat template needs them."""
    if wanted == "as given" or not isinstance(calls, list):
        return calls
    return [_with_own(call, wanted) if isinstance(call, Mapping) else call for call in calls]


def _with_own(call: Message, wanted: Arguments) -> dict[str, object]:
    function = call.get("function")
    if isinstance(function, Mapping):
        return {**call, "function": _with_own(function, wanted)}
    arguments = call.get("arguments")
    if wanted == "object":
        read = loaded(arguments)
        return {**call, "arguments": read} if isinstance(read, Mapping) else dict(call)
    if isinstance(arguments, (Mapping, list)):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return dict(call)
