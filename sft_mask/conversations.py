"""Conversations out of the columns of an Arrow table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sft_mask.columns import Shapes, has_items, holds_any, is_conversation, rows_with, shapes
from sft_mask.constants import FLAGS
from sft_mask.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_EXTRAS = ("tools", "chat_template_kwargs")
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
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Any = None
    variables: Mapping[str, Any] | None = None
    prompt: int = 0


class Decoder:
    """Reads conversations out of Arrow tables.

    Args:
        features: the dataset's features; they know how to decode values that Arrow stores in another form.
    """

    def __init__(self, features: Any = None) -> None:
        self.features = features

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

    def unknown(self, table: pa.Table) -> NDArray[np.bool_]:
        """``(rows,)`` rows whose conversation is null: there is nothing to check them against."""
        flags = np.zeros(table.num_rows, np.bool_)
        for name in self.columns(table):
            flags |= np.asarray(table[name].is_null(), np.bool_)
        return flags

    def flagged(self, table: pa.Table) -> NDArray[np.bool_]:
        """``(rows,)`` rows with a message that says itself whether, or how much, it is trained."""
        flags = np.zeros(table.num_rows, np.bool_)
        for name in self.columns(table):
            flags |= rows_with(table[name], FLAGS)
        return flags

    def answered_before(self, table: pa.Table) -> NDArray[np.bool_]:
        """``(rows,)`` rows whose prompt holds an answer already."""
        columns = self.columns(table)
        if len(columns) < 2:
            return np.zeros(table.num_rows, np.bool_)
        return shapes(table[columns[0]], ()).answers > 0

    def shapes(self, table: pa.Table, needles: Sequence[str]) -> Shapes:
        """Shapes of the rows; see :func:`sft_mask.columns.shapes`."""
        parts = [shapes(table[name], needles) for name in self.columns(table)]
        answers = sum((part.answers for part in parts), np.zeros(table.num_rows, np.int64))
        quotes = np.zeros(table.num_rows, np.bool_)
        key = np.zeros(table.num_rows, np.int64)
        for part in parts:
            quotes |= part.quotes
            key = key * np.int64(31) + part.shape
        for extra in _EXTRAS:
            if extra in table.column_names:
                filled = np.asarray(table[extra].is_valid(), np.bool_)
                quotes |= holds_any(table[extra], (*needles, _JSON_ESCAPE))
                quotes |= filled & (extra == "chat_template_kwargs")
                key = key * np.int64(31) + filled + has_items(table[extra])
        return Shapes(answers, quotes, key)

    def row(self, table: pa.Table, row: int) -> Conversation:
        """The conversation of one row, decoded.

        Raises:
            DataError: its tools are text that is no JSON.
        """
        names = [*self.columns(table), *(name for name in _EXTRAS if name in table.column_names)]
        values = {name: table[name][row].as_py() for name in names}
        if self.features is not None:
            kinds = type(self.features)({name: self.features[name] for name in names if name in self.features})
            values = {**values, **kinds.decode_example({name: values[name] for name in kinds})}
        parts = [values[name] or () for name in self.columns(table)]
        messages = [message for part in parts for message in part]
        prompt = len(parts[0]) if len(parts) > 1 else 0
        return Conversation(messages, read_tools(values.get("tools")), values.get("chat_template_kwargs"), prompt)


def read_tools(tools: Any) -> Any:
    """Tool definitions as TRL gives them to a template: JSON text is read, and an empty list stays one.

    >>> read_tools('[{"name": "clock"}]'), read_tools([]), read_tools(None)
    ([{'name': 'clock'}], [], None)
    """
    if not isinstance(tools, str):
        return tools
    try:
        return json.loads(tools)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(
            f"The tools column holds {tools[:80]!r}, which is no JSON: {error}. Give JSON or a list."
        ) from error
