"""What the messages of a batch hold, field by field, without a Python object for each message.

A chat template treats fields alike that look alike: of messages with the same role, after the same role, before or
after the last user, with or without a tool call. So a field's ``look`` says what is worth knowing about it, and what
was seen of a few fields of one look and one conversation signature is known of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.constants import ASSISTANT_ROLES, REASONING, ROLES
from sft_mask.core.arrays import Bools, Ints, offsets_of
from sft_mask.data.read.columns import contains_any, filled, flat, is_json, is_list, joined, role_codes
from sft_mask.data.read.json_messages import read_messages
from sft_mask.templates.fields import FieldKind, fields_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ANSWER: Final = 4
"""Kind of the entry of an answer as a whole, next to those of :class:`~sft_mask.templates.fields.FieldKind`."""
_CLOSED = r"(?s)\A\s*(?:<think>|\[THINK\])?(.*?)(?:</think>|\[/THINK\])"
_OWN = [ROLES.index(role) for role in sorted(ASSISTANT_ROLES)]
_USER = ROLES.index("user")


@dataclass(frozen=True, slots=True)
class Census:
    """The fields of a batch, in order of rows and messages.

    Attributes:
        row: ``(fields,)``.
        message: ``(fields,)`` index of the message in its conversation, ``-1`` for tool definitions.
        kind: ``(fields,)`` one of :class:`~sft_mask.templates.fields.FieldKind`, or :data:`ANSWER`.
        item: ``(fields,)`` which of several tool calls.
        role: ``(fields,)`` index into :data:`~sft_mask.constants.ROLES`.
        look: ``(fields,)`` equal for fields that a template treats alike.
    """

    row: Ints
    message: Ints
    kind: Ints
    item: Ints
    role: Ints
    look: Ints

    def __len__(self) -> int:
        return len(self.row)

    def select(self, keep: Bools | Ints) -> Census:
        """The entries that ``keep`` points at."""
        return Census(*(getattr(self, name)[keep] for name in self.__slots__))

    @classmethod
    def joined(cls, parts: Sequence[Census]) -> Census:
        """The entries of several, by row and message."""
        if len(parts) == 1:
            return parts[0]
        both = cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__))
        widest = int(both.message.max(initial=0)) + 2
        place = (both.row * widest + both.message + 1) * (ANSWER + 1) + both.kind
        return both.select(np.argsort(place, kind="stable"))  # the parts are ordered, items too


@dataclass(frozen=True, slots=True)
class _Messages:
    """The messages of a batch, one after the other: their rows, their roles, and what each holds."""

    row: Ints
    role: Ints
    content: Bools
    reasoning: Bools
    inline: Bools
    calls: Ints


def census(columns: Sequence[pa.ChunkedArray], tools: pa.ChunkedArray | None, rows: int) -> Census:
    """The fields of a batch.

    Args:
        columns: the columns that make up the conversation.
        tools: the column of tool definitions.
        rows: rows of the batch.
    """
    parts, before = [], np.zeros(rows, np.int64)
    for column in columns:
        parts.append(_entries(_messages(flat(column)), before))
        before = before + np.asarray(pc.fill_null(pc.list_value_length(flat(column)), 0), np.int64)
    if tools is not None:
        given = np.flatnonzero(_are_given(flat(tools)))
        some = np.full(len(given), -1, np.int64)
        kind = np.full(len(given), int(FieldKind.TOOLS), np.int64)
        parts.append(Census(given, some, kind, some * 0, some * 0, kind))
    return Census.joined(parts)


def census_of(conversations: Sequence[Sequence[Mapping[str, object]]]) -> Census:
    """The fields of some conversations that are Python objects: a few rows, for which Arrow would take longer."""
    return of_entries([entries_of(messages) for messages in conversations])


def entries_of(messages: Sequence[Mapping[str, object]]) -> Ints:
    """``(fields, 5)`` the message, kind, item, role and look of each field of one conversation."""
    entries: list[tuple[int, int, int, int, int]] = []
    codes = [_code_of(message) for message in messages]
    own = [at for at, code in enumerate(codes) if code in _OWN]
    fields = [(field.message, int(field.kind), field.item) for field in fields_of(messages)]
    kinds: dict[int, frozenset[int]] = {}
    for at, kind, _ in fields:
        kinds[at] = kinds.get(at, frozenset()) | {kind}
    for at, kind, item in sorted([*fields, *((at, ANSWER, 0) for at in own)]):
        before = codes[at - 1] if at else len(ROLES)
        ends = (_USER not in codes[at:], at in own[-1:])
        look = hash((codes[at], before, *ends, *sorted(kinds.get(at, ())), -1, kind, item > 0)) % (1 << 62)
        entries.append((at, kind, item, codes[at], look))
    return np.array(entries, np.int64).reshape(-1, 5)


def of_entries(entries: Sequence[Ints]) -> Census:
    """The census of conversations, by the :func:`entries_of` each."""
    row = np.repeat(np.arange(len(entries)), list(map(len, entries)))
    return Census(row, *np.concatenate([np.zeros((0, 5), np.int64), *entries]).T)


def _code_of(message: Mapping[str, object]) -> int:
    role = message.get("role")
    return ROLES.index(role) if role in ROLES else len(ROLES) - 1


def _are_given(tools: pa.Array) -> Bools:
    if pa.types.is_string(tools.type) or pa.types.is_large_string(tools.type):
        empty = pc.is_in(pc.utf8_trim_whitespace(tools), value_set=pa.array(["", "[]", "null"], tools.type))
        return np.asarray(pc.and_(tools.is_valid(), pc.invert(empty)), np.bool_)
    return filled(tools)


# what each message holds


def _messages(array: pa.Array) -> _Messages:
    lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
    rows = np.repeat(np.arange(len(array)), lengths)
    messages = array.flatten()
    if is_json(messages.type):
        messages = read_messages(messages).fields
    fields = {messages.type.field(index).name: index for index in range(messages.type.num_fields)}

    def field(name: str) -> pa.Array | None:
        return pc.struct_field(messages, fields[name]) if name in fields else None

    count = len(messages)
    role = role_codes(pc.struct_field(messages, fields["role"])) if "role" in fields else np.zeros(count, np.int64)
    own = np.zeros(count, np.bool_)
    for thoughts in map(field, REASONING):
        own |= False if thoughts is None else filled(thoughts)
    text = _text(field("content"), count)
    inline = contains_any(text, ("</think>", "[/THINK]")) & ~own & np.isin(role, _OWN)
    content, reasoning = filled(text), own
    if inline.any():
        closed = text.filter(pa.array(inline))
        rest = pc.replace_substring_regex(closed, _CLOSED, "", max_replacements=1)
        content[inline] = filled(rest)
        thought = pc.struct_field(pc.extract_regex(closed, _CLOSED.replace("(.*?)", "(?P<thought>.*?)")), 0)
        reasoning[inline] = filled(thought)
    return _Messages(rows, role, content, reasoning, inline, _calls(field("tool_calls"), count))


def _text(array: pa.Array | None, count: int) -> pa.Array:
    """The text of each content; of several parts joined."""
    if array is None or pa.types.is_null(array.type):
        return pa.array([""] * count, pa.string())
    if is_list(array.type):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
        parts = array.flatten()
        if pa.types.is_struct(parts.type):
            index = parts.type.get_field_index("text")
            parts = pc.struct_field(parts, index) if index >= 0 else pa.nulls(len(parts), pa.string())
        if not (pa.types.is_string(parts.type) or pa.types.is_large_string(parts.type)):
            parts = pa.nulls(len(parts), pa.string())
        return joined(parts, np.repeat(np.arange(len(array)), lengths), len(array))
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        return pc.fill_null(array, "").cast(pa.string())
    return pa.array([""] * count, pa.string())


def _calls(array: pa.Array | None, count: int) -> Ints:
    """How many tool calls each message has."""
    if array is not None and is_list(array.type):
        return np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
    if array is not None and pa.types.is_integer(array.type):  # counted already
        return np.asarray(pc.fill_null(array, 0), np.int64)
    return np.zeros(count, np.int64) if array is None else filled(array).astype(np.int64)


# entries


def _entries(messages: _Messages, before: Ints) -> Census:
    """An entry for each field with words, and one for each answer; ``before``: messages of an earlier column."""
    row, role = messages.row, messages.role
    starts = offsets_of(np.bincount(row, minlength=len(before)))
    number = np.arange(len(row)) - starts[row]
    is_first = number == 0
    previous = np.where(is_first, len(ROLES), np.append(0, role[:-1]) if len(role) else role)
    is_user = role == _USER
    users = offsets_of(is_user)
    is_after_users = users[1:] == users[starts[row + 1]] if len(row) else is_user
    is_own = np.isin(role, _OWN)
    answers = offsets_of(is_own)
    is_last_answer = is_own & (answers[1:] == answers[starts[row + 1]]) if len(row) else is_own
    look = role * (len(ROLES) + 1) + previous
    flags = (is_after_users, is_last_answer, messages.calls > 0, messages.reasoning, messages.inline, messages.content)
    for flag in flags:
        look = look * 2 + flag
    index = before[row] + number

    def entries(chosen: Ints, kind: int, item: Ints | None = None) -> Census:
        items = np.zeros(len(chosen), np.int64) if item is None else item
        looks = (look[chosen] * 8 + kind) * 2 + (items > 0)
        return Census(row[chosen], index[chosen], np.full(len(chosen), kind), items, role[chosen], looks)

    def parts() -> Iterator[Census]:
        yield entries(np.flatnonzero(messages.content), FieldKind.CONTENT)
        yield entries(np.flatnonzero(messages.reasoning), FieldKind.REASONING)
        calling = np.repeat(np.arange(len(row)), messages.calls)
        first = offsets_of(messages.calls)[:-1]
        yield entries(calling, FieldKind.CALL, np.arange(len(calling)) - first[calling])
        yield entries(np.flatnonzero(is_own), ANSWER)

    return Census.joined(list(parts()))
