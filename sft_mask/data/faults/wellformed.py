"""Errors about a row that no chat template could render: nulls, wrong types, messages stored as text.

Every error names the column and the message, what was found there, and a way out; the caller adds the row's number.
"""

from __future__ import annotations

import ast
import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sft_mask.constants import FLAGS
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import read_tools, read_variables
from sft_mask.errors import DataError

PAIR: Final = ("prompt", "completion")
_COLUMNS = ("conversations", "messages", "text")
_TEXT_ROLES = {"system", "developer", "user", "assistant", "model", "human", "gpt"}
"""Roles whose content a template writes unchanged; a tool's may be any JSON."""
_RESERVED = ("tools", "tokenize", "return_dict", "chat_template", "add_generation_prompt", "conversation")
_NO_WORDS = frozenset({"role", "from", "content", "value", "name", *FLAGS})
_READABLE = 1_000_000
_SHOWN = 80
_SHOWN_TEXT = "{} messages as text, {!r}. The text is {}, not a list of messages; read it first:"


def check_row(row: Mapping[str, object]) -> None:
    """Refuses a row that is not one conversation or one text.

    Raises:
        DataError: it is null, of another type, or text that holds messages.
    """
    if row.keys() >= {*PAIR}:
        is_conversation = _check_pair(row)
    else:
        column = next((name for name in _COLUMNS if row.get(name) is not None), None)
        if column is None:
            raise _nothing(row)
        is_conversation = column != "text"
        if is_conversation:
            check_messages(column, row[column])
        elif not isinstance(row[column], str):
            raise _no_text(column, row[column])
    if is_conversation:
        _check_tools(read_tools(row.get("tools")))
        _check_variables(read_variables(row.get("chat_template_kwargs")))


def oddities(messages: Sequence[Mapping[str, object]], *, with_processor: bool = False) -> str:
    """What a template may rightly refuse in a conversation: content that is null or a mapping, and images.

    Args:
        messages: the conversation.
        with_processor: whether a processor renders it, which reads images while rows are collated.
    """
    found = []
    for at, message in enumerate(messages):
        content = message.get("content")
        if isinstance(content, Mapping):
            found.append(f"The content of message {at} is a mapping, not text.")
        elif content is None and not any(value for name, value in message.items() if name != "role"):
            found.append(f"Message {at} has no content.")
        elif content is None:
            found.append(f"Message {at} has null content, which many templates do not expect: give it the content ''.")
        elif isinstance(content, list) and any(isinstance(p, Mapping) and p.get("type") == "image" for p in content):
            why = "but the rows have no column images" if with_processor else "which this template does not read"
            found.append(f"Message {at} holds an image, {why}.")
    return " ".join(found[:3])


def _kind(value: object) -> str:
    return "null" if value is None else f"{reprlib.repr(value)[:_SHOWN]}, of type {type(value).__name__}"


def check_text(column: str, value: object) -> None:
    """Refuses what is not text.

    Raises:
        DataError: it is null, or of another type.
    """
    if value is None:
        raise _is_null(column)
    if not isinstance(value, str):
        raise _no_text(column, value)


def _nothing(row: Mapping[str, object]) -> DataError:
    null = [name for name in _COLUMNS if name in row]
    if not null:
        there = ", ".join(row) or "no columns"
        return DataError(
            "It has none of messages, conversations, prompt and completion, or text (it has "
            f"{there}). Give it one of these, or leave it out."
        )
    return _is_null(*null)


def _is_null(*columns: str) -> DataError:
    names, verb = " and ".join(columns), "is" if len(columns) == 1 else "are"
    wanted = " or ".join(f'row["{name}"] is not None' for name in columns)
    return DataError(
        f"{names} {verb} null, so there is nothing to tokenize. Give it a value, or leave such rows out: "
        f"dataset = dataset.filter(lambda row: {wanted})"
    )


def _no_text(column: str, value: object) -> DataError:
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], Mapping):
        return DataError(
            f"{column} is a list of {len(value)} messages, not text. Call the column messages: "
            f'dataset = dataset.rename_column("{column}", "messages")'
        )
    if isinstance(value, (list, tuple)):
        way = f' dataset = dataset.map(lambda row: {{"{column}": "".join(row["{column}"])}})'
    else:
        way = f'\n\n    import datasets\n    dataset = dataset.cast_column("{column}", datasets.Value("string"))'
    return DataError(f"{column} is {_kind(value)}, not text. Make it text:{way}")


# prompt and completion


def _check_pair(row: Mapping[str, object]) -> bool:
    """Whether prompt and completion are messages; they are both, or both text."""
    for name in PAIR:
        if row[name] is None:
            raise _is_null(name)
    are_text = [isinstance(row[name], str) for name in PAIR]
    if all(are_text):
        return False
    if any(are_text):
        raise _mixed(row, PAIR[are_text.index(True)])
    check_messages("prompt", row["prompt"])
    check_messages("completion", row["completion"], may_be_empty=True)
    return True


def _mixed(row: Row, text: str) -> DataError:
    (other,) = (name for name in PAIR if name != text)
    if not isinstance(row[other], (list, tuple)):
        return _no_text(other, row[other])
    role = "user" if text == "prompt" else "assistant"
    made = f'{{"{text}": [{{"role": "{role}", "content": row["{text}"]}}]}}'
    return DataError(
        f"{text} is text ({row[text][:_SHOWN]!r}) and {other} is a list of messages: nothing says how a chat template "
        f"would join them. Make both messages: dataset = dataset.map(lambda row: {made})"
    )


# messages


def check_messages(column: str, messages: object, may_be_empty: bool = False) -> None:
    """Refuses what is not a list of messages.

    Raises:
        DataError: it is null, of another type, or a message is malformed.
    """
    if messages is None:
        raise _is_null(column)
    if isinstance(messages, str):
        raise _is_text(column, messages)
    if isinstance(messages, Mapping):
        raise _is_mapping(column, messages)
    if not isinstance(messages, (list, tuple)):
        raise DataError(f"{column} is {_kind(messages)}, not a list of messages. Give a list of mappings.")
    if not messages and not may_be_empty:
        raise DataError(
            f"{column} is an empty list: there is no message to render. Leave such rows out: "
            f'dataset = dataset.filter(lambda row: len(row["{column}"]) > 0)'
        )
    for at, message in enumerate(messages):
        _check_message(column, at, message)


def _check_message(column: str, at: int, message: object) -> None:
    where = f"Message {at} of {column}"
    if not isinstance(message, Mapping):
        raise _no_mapping(column, where, message)
    key = "from" if "from" in message else "role"
    role = message.get(key)
    if role is None:
        there = ", ".join(str(name) for name, value in message.items() if value is not None) or "nothing"
        raise DataError(
            f"{where} has no role (it has {there}). Say who speaks, with 'role': 'system', 'user', 'assistant' or "
            "'tool', or remove the message. If all messages have it under another name, say under which: "
            'columns={"speaker": "role"}.'
        )
    if not isinstance(role, str):
        raise DataError(
            f"The role of {where[0].lower()}{where[1:]} is {_kind(role)}, not text. Give the name of who speaks: "
            "'system', 'user', 'assistant' or 'tool'."
        )
    if role in _TEXT_ROLES:
        key = "value" if "value" in message else "content"
        if message.get(key) is None and not _says_otherwise(message):
            raise _no_content(column, where, role, key)
        _check_content(column, where, key, message.get(key))


def _says_otherwise(message: Mapping[str, object]) -> bool:
    """Whether a message has more than a role and null content, such as tool calls or reasoning."""
    return any(
        value for name, value in message.items() if name not in _NO_WORDS and isinstance(value, (str, list, dict))
    )


def _no_content(column: str, where: str, role: str, key: str) -> DataError:
    kept = f'[message for message in row["{column}"] if message["{key}"] is not None]'
    return DataError(
        f"{where} ({role}) has null content and says nothing else, and chat templates write that as None, as nothing, "
        f"or not at all. Give it words, or leave such messages out: "
        f'dataset = dataset.map(lambda row: {{"{column}": {kept}}})'
    )


def _check_content(column: str, where: str, key: str, content: object) -> None:
    if content is None or isinstance(content, (str, Mapping)):
        return
    if not isinstance(content, (list, tuple)):
        text = f'str(message["{key}"]) if message["{key}"] is not None else None'
        made = f'[{{**message, "{key}": {text}}} for message in row["{column}"]]'
        way = _kept_as_json([column], [made])
        raise DataError(f"{where} has the content {_kind(content)}, not text. Make it text:\n\n{way}")
    for number, part in enumerate(content):
        if not isinstance(part, (str, Mapping)):
            raise DataError(
                f"{where} has a content of parts, and part {number} is {_kind(part)}. A part is text, or a mapping "
                "such as {'type': 'text', 'text': ...}: repair or remove it."
            )
        if isinstance(part, Mapping) and _is_part_without_text(part):
            raise DataError(
                f"{where} has a content of parts, and the text of part {number} is {_kind(part['text'])}. Give it "
                "text, or remove the part."
            )


def _is_part_without_text(part: Mapping[str, object]) -> bool:
    strings = [name for name, value in part.items() if isinstance(value, str) and name != "type"]
    return part.get("type") == "text" and "text" in part and not strings


def _no_mapping(column: str, where: str, message: object) -> DataError:
    if message is None:
        made = f'{{"{column}": [message for message in row["{column}"] if message is not None]}}'
        return DataError(f"{where} is null. Repair it, or take nulls out: dataset = dataset.map(lambda row: {made})")
    if isinstance(message, (list, tuple)):
        made = f'{{"{column}": row["{column}"][0]}}'
        return DataError(
            f"{where} is a list: {column} holds lists of messages inside of a list, but a row is one conversation. "
            f"Give it its own list: dataset = dataset.map(lambda row: {made})"
        )
    if isinstance(message, str) and isinstance(_loaded(message), Mapping):
        made = f'[json.loads(message) for message in row["{column}"]]'
        way = f"    import json\n{_kept_as_json([column], [made])}"
        return DataError(f"{where} is JSON text, {message[:_SHOWN]!r}, not a mapping. Read it first:\n\n{way}")
    return DataError(
        f"{where} is {_kind(message)}, not a mapping with a role and a content. Make it one, such as "
        "{'role': 'user', 'content': ...}, or remove it."
    )


def _is_mapping(column: str, messages: Mapping[str, object]) -> DataError:
    if messages and all(isinstance(values, (list, tuple)) for values in messages.values()):
        made = f'[dict(zip(row["{column}"], fields)) for fields in zip(*row["{column}"].values())]'
        seen = f"one list for each of {', '.join(map(str, messages))}, not a list of messages"
    else:
        made = f'[row["{column}"]]'
        seen = "one message, not a list of messages"
    return DataError(
        f'{column} is a mapping: {seen}. Make it a list: dataset = dataset.map(lambda row: {{"{column}": {made}}})'
    )


# messages as text


def _loaded(text: str, *, is_python: bool = False) -> object:
    """The messages, or the message, that a text holds as JSON (or as Python prints it); ``None`` where it does not."""
    if len(text) > _READABLE or text.lstrip()[:1] not in ("[", "{"):
        return None
    try:
        read = ast.literal_eval(text.strip()) if is_python else json.loads(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None
    first = read[0] if isinstance(read, list) and read else read
    return read if isinstance(first, Mapping) and first.keys() & {"role", "from"} else None


def messages_as_text(row: Row) -> DataError | None:
    """The error for a row whose text, or whose prompt and completion, are messages as JSON; ``None`` for others."""
    columns = PAIR if row.keys() >= {*PAIR} else ("text",)
    if not all(isinstance(row.get(name), str) for name in columns):
        return None
    return _read_first(columns, [row[name] for name in columns])


def _is_text(column: str, text: str) -> DataError:
    read_first = _read_first((column,), [text])
    if read_first is not None:
        return read_first
    broken = _broken_json(text)
    if broken:
        return DataError(
            f"{column} is text that begins like JSON, {text[:_SHOWN]!r}, and is not: {broken}. Repair the row, or "
            "leave it out; if the text was cut off, export the data again."
        )
    return DataError(
        f"{column} is text, {text[:_SHOWN]!r}, not a list of messages. Give a list of mappings; if this is a "
        "conversation that was rendered already, call the column text: "
        f'dataset = dataset.rename_column("{column}", "text")'
    )


def _broken_json(text: str) -> str:
    """Why a text that begins like messages cannot be read; empty for other texts."""
    if not re.match(r"\s*\[\s*\{", text):
        return ""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


def _read_first(columns: Sequence[str], texts: Sequence[str]) -> DataError | None:
    """The error for columns of text that holds messages; ``None`` where it holds something else."""
    for name, reads, is_python in (("JSON", "json.loads", False), ("what Python prints", "ast.literal_eval", True)):
        read = [_loaded(text, is_python=is_python) for text in texts]
        if any(value is None for value in read):
            continue
        held = f"{columns[0]} holds" if len(columns) == 1 else f"{' and '.join(columns)} hold"
        seen, names = _SHOWN_TEXT.format(held, texts[0][:_SHOWN], name), columns
        renamed = ""
        if columns == ("text",):
            renamed, names = '    dataset = dataset.rename_column("text", "messages")\n', ("messages",)
        calls = [f'{reads}(row["{column}"])' for column in names]
        made = [call if isinstance(value, list) else f"[{call}]" for call, value in zip(calls, read, strict=True)]
        return DataError(f"{seen}\n\n    import {reads.split('.')[0]}\n{renamed}{_kept_as_json(names, made)}")
    return None


def _kept_as_json(columns: Sequence[str], made: Sequence[str]) -> str:
    """Lines that make messages of columns; as JSON, since messages need not have the same fields."""
    values = ", ".join(f'"{name}": {value}' for name, value in zip(columns, made, strict=True))
    kinds = ", ".join(f'"{name}": datasets.List(datasets.Json())' for name in columns)
    return (
        "    import datasets\n"
        f"    features = dataset.features and datasets.Features({{**dataset.features, {kinds}}})\n"
        f"    dataset = dataset.map(lambda row: {{{values}}}, features=features)"
    )


# what goes with them


def _check_tools(tools: Any) -> None:
    if isinstance(tools, Mapping):
        raise DataError(
            "tools is one mapping, not a list of tool definitions. Put it into a list: "
            'dataset = dataset.map(lambda row: {"tools": [row["tools"]]})'
        )
    for at, tool in enumerate(tools or ()):
        if not isinstance(tool, Mapping) and not callable(tool):
            raise DataError(f"Tool {at} of tools is {_kind(tool)}, not a mapping. Give each tool as its JSON schema.")


def _check_variables(variables: Mapping[str, object] | None) -> None:
    taken = [name for name in _RESERVED if name in (variables or ())]
    if taken:
        raise DataError(
            f"chat_template_kwargs holds {', '.join(taken)}, which is not a variable of a chat template. Remove it "
            "there: tools have their own column, and chat_template= is an argument."
        )
