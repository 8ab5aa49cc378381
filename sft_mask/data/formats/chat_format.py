"""How the rows of one dataset become messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sft_mask.data.faults.wellformed import check_messages, check_text
from sft_mask.data.formats.detect import PAIR
from sft_mask.data.formats.messages import Spelling, loaded, standard_messages
from sft_mask.data.read import Row
from sft_mask.errors import DataError


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How the rows of one dataset become messages.

    Attributes:
        title: what the format is called.
        columns: field to column; see :data:`~sft_mask.data.formats.names.FIELDS`.
        spelling: of the messages.
        notes: what was called what.
        is_plain: whether messages have nothing but a role and text.
        tools_as_text: whether tool definitions are written as JSON text.
    """

    title: str
    columns: Mapping[str, str]
    spelling: Spelling = field(default_factory=Spelling)
    notes: tuple[str, ...] = ()
    is_plain: bool = False
    tools_as_text: bool = False

    def __str__(self) -> str:
        return f"{self.title}: {', '.join(self.notes)}" if self.notes else self.title

    @property
    def made(self) -> tuple[str, ...]:
        """The columns of messages that are made."""
        return PAIR if "completion" in self.columns else ("messages",)

    def read(self, row: Row) -> dict[str, object]:
        """The columns that a row gets.

        Raises:
            DataError: the row does not have this format.
        """
        columns = self.columns
        if "messages" in columns:
            made: dict[str, object] = {"messages": self._conversation(row)}
        elif "completion" in columns:
            made = {name: self._said(row, name, "") for name in PAIR}
        else:
            made = {"messages": self._question(row)}
        if self.tools_as_text:
            tools = _tools(row[columns["tools"]])
            made["tools"] = json.dumps(tools, ensure_ascii=False) if tools else None
        return made

    def _conversation(self, row: Row) -> object:
        column = self.columns["messages"]
        messages = standard_messages(row[column], self.spelling)
        check_messages(column, messages)
        system = self._text(row, "system")
        has_one = isinstance(messages, list) and messages[0].get("role") in ("system", "developer")
        return messages if not system or has_one else [_message("system", system), *_as_list(messages)]

    def _question(self, row: Row) -> list[object]:
        system, history = (
            self._text(row, "system"),
            loaded(row[self.columns["history"]]) if self._has("history") else None,
        )
        said: list[object] = [_message("system", system)] if system else []
        if history:
            before = standard_messages(history, self.spelling)
            check_messages(self.columns["history"], before)
            said.extend(_as_list(before))
        prompt, response = self._said(row, "prompt", "user"), self._said(row, "response", "assistant")
        more = self._text(row, "input")
        if more and isinstance(prompt, list):
            last = prompt[-1]
            joined = [str(last.get("content") or ""), more]
            prompt = [*prompt[:-1], {**last, "content": "\n".join(text for text in joined if text)}]
        return [*said, *_as_list(prompt), *_as_list(response)]

    def _said(self, row: Row, name: str, role: str) -> object:
        """A column as messages; text becomes one message, of the ``role`` if there is any."""
        column = self.columns[name]
        value = row[column]
        read = loaded(value)
        if isinstance(read, (list, tuple)) and (not read or isinstance(loaded(read[0]), Mapping)):
            messages = standard_messages(read, self.spelling)
            check_messages(column, messages, may_be_empty=name == "completion")
            return messages
        if role and isinstance(value, Mapping):
            return standard_messages([value], self.spelling)
        check_text(column, value)
        return [_message(role, value)] if role else value

    def _has(self, name: str) -> bool:
        return name in self.columns

    def _text(self, row: Row, name: str) -> str:
        """A column that is joined to others; empty where it is null."""
        value = row[self.columns[name]] if self._has(name) else None
        if value is not None:
            check_text(self.columns[name], value)
        return value if isinstance(value, str) and value.strip() else ""


def _message(role: str, text: object) -> dict[str, object]:
    return {"role": role, "content": text}


def _as_list(messages: object) -> list[Any]:
    return list(messages) if isinstance(messages, (list, tuple)) else []


def _tools(tools: object) -> list[object]:
    read = loaded(tools)
    return [loaded(tool) for tool in read] if isinstance(read, list) else [read] if read else []


def converted(row: Row, number: int, chat_format: ChatFormat) -> dict[str, object]:
    """What :meth:`ChatFormat.read` makes of a row; errors name its number."""
    try:
        return chat_format.read(row)
    except DataError as error:
        raise type(error)(f"Row {number}: {error}") from error
