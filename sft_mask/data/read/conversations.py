"""Conversations out of the columns of an Arrow table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from sft_mask.constants import FLAGS, SPAN_FLAGS
from sft_mask.data.read.census import Census, census
from sft_mask.data.read.columns import Signatures, has_items, is_conversation, quotes_any, rows_with, signatures
from sft_mask.data.read.spelling import standard_table
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools

_EXTRAS = ("tools", "chat_template_kwargs")
_MESSAGES = ("messages", "conversations", "prompt", "completion")
EXPANSION: Final = "expansion"
"""A column of rows that ``expand=True`` made: see :mod:`sft_mask.data.expand`."""
_JSON_ESCAPE = "\\u"
"""In JSON text any character, a marker's too, can be written as an escape."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row as a chat template is given it.

    Attributes:
        messages: of prompt and completion, those of both.
        tools: tool definitions.
        variables: ``chat_template_kwargs``.
        prompt: how many of the messages are the prompt's; they are never trained.
        trained: the only messages that are trained in an expanded row; ``None`` for all.
        refused: why a conversation could not be expanded.
    """

    messages: Sequence[Mapping[str, object]]
    tools: object = None
    variables: Mapping[str, object] | None = None
    prompt: int = 0
    trained: frozenset[int] | None = None
    refused: str | None = None


class Decoder:
    """Reads conversations out of Arrow tables.

    Args:
        features: the dataset's features; they know how to decode values that Arrow stores in another form.
    """

    def __init__(self, features: Any = None) -> None:
        self.features = features
        self._rewritten: set[str] = set()

    def prepared(self, table: pa.Table) -> pa.Table:
        """The table with conversations in their usual spelling (:mod:`sft_mask.data.read.spelling`), in one chunk.

        Every table goes through this first.
        """
        table, rewritten = standard_table(table)
        self._rewritten |= rewritten
        for name in self.columns(table):
            if table[name].num_chunks > 1:  # once, not for each question
                at = table.column_names.index(name)
                table = table.set_column(at, table.schema.field(at), pa.chunked_array([table[name].combine_chunks()]))
        return table

    @staticmethod
    def columns(table: pa.Table) -> tuple[str, ...]:
        """The columns that make up the conversation: ``messages``, ``conversations``, or prompt and completion."""
        kinds = {name: table.schema.field(name).type for name in table.column_names}
        for name in ("messages", "conversations"):
            if name in kinds and is_conversation(kinds[name]):
                return (name,)
        pair = ("prompt", "completion")
        if all(name in kinds and is_conversation(kinds[name]) for name in pair):
            return pair
        return ()

    def has_conversation(self, table: pa.Table) -> bool:
        """Whether the rows still hold their messages."""
        return bool(self.columns(table))

    def unknown(self, table: pa.Table) -> Bools:
        """``(rows,)`` rows whose conversation is null, so that they cannot be checked."""
        flags = np.zeros(table.num_rows, np.bool_)
        for name in self.columns(table):
            flags |= np.asarray(table[name].is_null(), np.bool_)
        return flags

    def flags(self, table: pa.Table) -> dict[str, Bools]:
        """The rows with a message that says itself whether, or how much, it is trained, by the name of the field."""
        found: dict[str, Bools] = {}
        for name in self.columns(table):
            for flag, rows in rows_with(table[name], (*FLAGS, *SPAN_FLAGS)).items():
                found[flag] = found.get(flag, rows) | rows
        return found

    def signatures(self, table: pa.Table, texts: Sequence[str]) -> Signatures:
        """Signatures of the rows; see :func:`sft_mask.data.read.columns.signatures`."""
        parts = [signatures(table[name], texts) for name in self.columns(table)]
        answers = sum((part.answers for part in parts), np.zeros(table.num_rows, np.int64))
        quotes = np.zeros(table.num_rows, np.bool_)
        key = np.zeros(table.num_rows, np.int64)
        for part in parts:
            quotes |= part.quotes
            key = key * np.int64(31) + part.signature
        for extra in _EXTRAS:
            if extra in table.column_names:
                filled = np.asarray(table[extra].is_valid(), np.bool_)
                quotes |= quotes_any(table[extra], (*texts, _JSON_ESCAPE))
                quotes |= filled & (extra == "chat_template_kwargs")
                key = key * np.int64(31) + filled + has_items(table[extra])
        answered_before = parts[0].answers > 0 if len(parts) > 1 else np.zeros(table.num_rows, np.bool_)
        return Signatures(answers, quotes, key, answered_before)

    def census(self, table: pa.Table) -> Census:
        """The fields of the rows' messages; see :func:`sft_mask.data.read.census.census`."""
        tools = table["tools"] if "tools" in table.column_names else None
        found = census([table[name] for name in self.columns(table)], tools, table.num_rows)
        if EXPANSION not in table.column_names:
            return found
        owned = table[EXPANSION].combine_chunks().field("owned").to_pylist()
        owners = [{-1, *own} if 0 in own else set(own) for own in owned]  # tool definitions with the first message
        places = zip(found.row.tolist(), found.message.tolist(), strict=True)
        return found.select(np.array([message in owners[row] for row, message in places], np.bool_))

    def row(self, table: pa.Table, row: int) -> Conversation:
        """The conversation of one row, decoded.

        Raises:
            DataError: a message is not a mapping, its tools are not JSON, or its variables are not a mapping.
        """
        names = [*self.columns(table), *(name for name in _EXTRAS if name in table.column_names)]
        values = {name: table[name][row].as_py() for name in names}
        if self.features is not None:
            known = [name for name in names if name in self.features and name not in self._rewritten]
            kinds = type(self.features)({name: self.features[name] for name in known})
            values = {**values, **kinds.decode_example({name: values[name] for name in kinds})}
        for name in self._rewritten & {*names}:
            values[name] = [json.loads(message) for message in values[name] or ()]
        parts = [mappings(name, values[name]) for name in self.columns(table)]
        messages = [message for part in parts for message in part]
        prompt = len(parts[0]) if len(parts) > 1 else 0
        variables = read_variables(values.get("chat_template_kwargs"))
        talk = Conversation(messages, read_tools(values.get("tools")), variables, prompt)
        return expanded(talk, table[EXPANSION][row].as_py()) if EXPANSION in table.column_names else talk


def expanded(talk: Conversation, expansion: Mapping[str, Any]) -> Conversation:
    """The conversation of a row that ``expand=True`` made."""
    return replace(talk, trained=frozenset(expansion["trained"]), refused=expansion["refused"])


def mappings(column: str, messages: Sequence[Any] | None) -> Sequence[Mapping[str, object]]:
    """The messages of a row, each of which must be a mapping.

    Raises:
        DataError: one is not.
    """
    for at, message in enumerate(messages or ()):
        if not isinstance(message, Mapping):
            seen = "null" if message is None else f"{message!r:.80}, of type {type(message).__name__}"
            raise DataError(
                f"message {at} of {column} is {seen}, not a mapping with a role and a content. Repair or remove it."
            )
    return messages or ()


def read_tools(tools: object) -> object:
    """Tool definitions as TRL gives them to a template: JSON text is read, and an empty list stays one.

    >>> read_tools('[{"name": "clock"}]'), read_tools([]), read_tools("")
    ([{'name': 'clock'}], [], None)
    """
    read = _tools_of_text(tools) if isinstance(tools, str) else tools
    if read is None or isinstance(read, (Sequence, Mapping)):
        return read
    raise DataError(
        f"The tools column holds {tools!r:.80}, which is not a list of tool definitions. Give JSON or a list."
    )


def _tools_of_text(text: str) -> object:
    if not text.strip():
        return None
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"The tools column holds {text[:80]!r}, which is not JSON: {error}. Give JSON or a list."
        ) from error


def read_variables(variables: object) -> Mapping[str, object] | None:
    """Variables of a template, as a row gives them.

    Raises:
        DataError: they are not a mapping.
    """
    if variables is None or isinstance(variables, Mapping):
        return variables
    read = '{"chat_template_kwargs": json.loads(row["chat_template_kwargs"])}'
    raise DataError(
        f"The chat_template_kwargs column holds {variables!r:.80}, of type {type(variables).__name__}, not a mapping. "
        "Give a mapping of names to values; if it is JSON text, read it:\n\n"
        f"    import json\n    dataset = dataset.map(lambda row: {read})"
    )


def as_chatml(row: Mapping[str, object]) -> dict[str, object]:
    """The row with ``messages`` of ``role`` and ``content``, as TRL's ``maybe_convert_to_chatml`` makes them.

    >>> as_chatml({"conversations": [{"from": "user", "value": "Hi"}], "id": 1})
    {'id': 1, 'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    made = {name: _role_and_content(value) if name in _MESSAGES else value for name, value in row.items()}
    if "conversations" in made:
        made["messages"] = made.pop("conversations")
    return made


def _role_and_content(messages: object) -> object:
    if not isinstance(messages, list):
        return messages
    return [_renamed_keys(message) if isinstance(message, dict) else message for message in messages]


def _renamed_keys(message: Mapping[str, object]) -> dict[str, object]:
    renamed = {new: message[old] for old, new in (("from", "role"), ("value", "content")) if old in message}
    return {key: value for key, value in message.items() if key not in ("from", "value")} | renamed
