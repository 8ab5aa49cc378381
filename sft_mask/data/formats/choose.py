"""Which format a dataset has: the keys of its messages, the names of its roles, and what the chat template needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.data.faults import formats as faults
from sft_mask.data.faults.roles import no_assistant, without_answers
from sft_mask.data.formats.chat_format import ChatFormat
from sft_mask.data.formats.detect import PAIR, Found, Sample
from sft_mask.data.formats.messages import Spelling, keys_of, loaded, named_pair, standard_messages
from sft_mask.data.formats.names import CALL, RoleNames, kind_of
from sft_mask.data.formats.needs import arguments_for, takes_parts
from sft_mask.data.read.columns import is_list
from sft_mask.templates.chat_template import ChatTemplate

_KNOWN_TO_TRL = ({"role", "content"}, {"from", "value"})


def choose_format(
    dataset: Any, sample: Sample, found: Found, names: RoleNames, template: ChatTemplate | None
) -> ChatFormat | None:
    """The format of a dataset; ``None`` if its rows are read as they are."""
    columns = found.columns
    chats = [columns[field] for field in ("messages", *PAIR, "response", "history") if field in columns]
    messages = [message for column in chats for value in sample.values(column) for message in _items(value)]
    keys = keys_of(messages) or ("role", "content")
    keys = (found.keys[0] or keys[0], found.keys[1] or keys[1])
    _check_conversation(sample, columns, keys)
    spelled = [named_pair(loaded(message), keys) for message in messages]
    mappings = [message for message in spelled if isinstance(message, Mapping)]
    spelling = Spelling(*keys, names, _joins_parts(mappings, keys[1], template), arguments_for(mappings, template))
    said = _role_names(dataset, chats, keys[0], mappings)
    _refuse_without_assistant(dataset, sample, found, said, keys[0], names)
    renamed = {role: names.role(role) for role in said if names.role(role) != role}
    tools = sample.values(columns["tools"]) if "tools" in columns else []
    tools_as_text = columns.get("tools", "tools") != "tools" or any(_is_unusual_tools(value) for value in tools)
    made = ChatFormat(
        _title(columns, keys, sample),
        columns,
        spelling,
        (*_arrows(columns), *(_arrow(old, new) for old, new in renamed.items()), *_changes(spelling)),
        _is_plain(dataset, columns, keys, renamed),
        tools_as_text,
    )
    needed = renamed or tools_as_text or _changes(spelling) or "system" in columns
    return made if needed or not _is_usual(columns, keys, messages, sample) else None


def _items(value: object) -> list[object]:
    read = loaded(value)
    if isinstance(read, Mapping):
        return [read]
    return list(read) if isinstance(read, (list, tuple)) else []


def _check_conversation(sample: Sample, columns: Mapping[str, str], keys: tuple[str, str]) -> None:
    """Refuses a column that the caller called a conversation and that is none."""
    column = columns.get("messages")
    first = next(filter(None, sample.values(column)), None) if column is not None else None
    if column is None or first is None:
        return
    items = [loaded(item) for item in _items(first)]
    if not items or not isinstance(items[0], (Mapping, list, tuple)):
        raise faults.not_chats(sample.where, column, first)
    named = Spelling(*keys)
    if isinstance(items[0], Mapping) and not {"role"} <= {*_first_mapping(standard_messages(items, named))}:
        raise faults.unknown_keys(sample.where, column, items[0])


def _first_mapping(messages: object) -> Mapping[str, object]:
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, Mapping) or first.get("role") is None:
        return {}
    return first


def _joins_parts(messages: Iterable[Mapping[Any, object]], key: str, template: ChatTemplate | None) -> bool:
    has_parts = any(isinstance(message.get(key), (list, tuple)) for message in messages)
    return has_parts and template is not None and not takes_parts(template)


def _role_names(dataset: Any, columns: Sequence[str], key: str, messages: Iterable[Mapping[Any, object]]) -> list[Any]:
    """The names of all roles: of a column of structs all that occur, else those of the sampled rows."""
    names = dict.fromkeys(message[key] for message in messages if isinstance(message.get(key), (str, int)))
    for column in columns:
        kind = dataset._data.schema.field(column).type if hasattr(dataset, "_data") else None
        if kind is None or not is_list(kind) or not pa.types.is_struct(kind.value_type):
            continue
        if kind.value_type.get_field_index(key) >= 0:
            for chunk in dataset._data[column].chunks:
                roles = pc.unique(pc.struct_field(chunk.flatten(), key)).to_pylist()
                names.update(dict.fromkeys(role for role in roles if role is not None))
    return list(names)


def _refuse_without_assistant(
    dataset: Any, sample: Sample, found: Found, said: Sequence[object], key: str, names: RoleNames
) -> None:
    if not said or any(kind_of(names.role(role)) == "assistant" or names.role(role) == CALL for role in said):
        return
    answers = found.columns.get("messages") or found.columns.get("completion")
    if answers is None or not any(_items(value) for value in sample.values(answers)):
        return
    error = None if names.given else without_answers(dataset, sample.where)
    if error is not None:
        raise error
    ends = [loaded(items[-1]) for value in sample.values(answers) if (items := _items(value))]
    last = [message.get(key) for message in ends if isinstance(message, Mapping)]
    raise no_assistant(sample.where, answers, said, last, names.given)


def _is_unusual_tools(tools: object) -> bool:
    read = loaded(tools)
    texts = isinstance(read, list) and any(isinstance(tool, str) and loaded(tool) is not tool for tool in read)
    return texts or (isinstance(tools, str) and isinstance(read, Mapping))


def _is_usual(columns: Mapping[str, str], keys: tuple[str, str], messages: Sequence[object], sample: Sample) -> bool:
    """Whether TRL reads the dataset as it is."""
    if columns.get("messages") in ("messages", "conversations"):
        values = sample.values(columns["messages"])
    elif columns.get("completion") == "completion" and columns.get("prompt") == "prompt":
        values = []
    else:
        return False
    is_known = not messages or {*keys} in _KNOWN_TO_TRL
    return (
        is_known
        and all(isinstance(message, Mapping) for message in messages)
        and not any(isinstance(value, str) for value in values)
    )


def _is_plain(dataset: Any, columns: Mapping[str, str], keys: tuple[str, str], renamed: Mapping[Any, object]) -> bool:
    """Whether all messages have nothing but a role and text, by the types of the columns."""
    if not hasattr(dataset, "_data") or CALL in renamed.values():
        return False
    schema = dataset._data.schema
    fields = [field for field in ("messages", *PAIR, "response") if field in columns]
    kinds = [schema.field(columns[field]).type for field in fields]
    return (
        "history" not in columns
        and all(_is_text(kind) or _is_list_of(kind, {*keys}) for kind in kinds)
        and not ("messages" in columns and _is_text(schema.field(columns["messages"]).type))
    )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of(kind: pa.DataType, keys: set[str]) -> bool:
    inside = kind.value_type if is_list(kind) else kind
    return (
        bool(pa.types.is_struct(inside))
        and {inside.field(at).name for at in range(inside.num_fields)} == keys
        and all(_is_text(inside.field(at).type) for at in range(inside.num_fields))
    )


# how it is reported


def _title(columns: Mapping[str, str], keys: tuple[str, str], sample: Sample) -> str:
    if "messages" in columns:
        column = columns["messages"]
        title = "ShareGPT" if keys[0] == "from" else "messages"
        in_text = " in JSON text" if any(isinstance(value, str) for value in sample.values(column)) else ""
        return title + in_text + ("" if column in ("messages", "conversations") else f" in the column {column}")
    if "completion" in columns:
        return "prompt and completion"
    return "Alpaca" if columns["prompt"].lower() == "instruction" else "questions and answers"


def _arrows(columns: Mapping[str, str]) -> list[str]:
    if "response" not in columns:
        return [_arrow(columns["system"], "system message")] if columns.get("system", "system") != "system" else []
    asked = [columns[name] for name in ("prompt", "input") if name in columns]
    first = [
        f"{columns[name]} → {title}"
        for name, title in (("system", "system message"), ("history", "earlier turns"))
        if name in columns
    ]
    return [*first, f"{' + '.join(asked)} → user", f"{columns['response']} → assistant"]


def _arrow(old: object, new: object) -> str:
    return f"{old} → {'tool calls of the assistant' if new == CALL else new}"


def _changes(spelling: Spelling) -> list[str]:
    changes = ["parts of text joined"] if spelling.joins_parts else []
    if spelling.arguments != "as given":
        changes.append(f"arguments of tool calls as {'an object' if spelling.arguments == 'object' else 'JSON text'}")
    return changes
