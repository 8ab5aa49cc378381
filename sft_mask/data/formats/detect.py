"""Which columns of a dataset hold a conversation; what is ambiguous is refused, with the argument that decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sft_mask.data.faults import formats as faults
from sft_mask.data.formats.messages import is_conversation, is_message, loaded
from sft_mask.data.formats.names import FIELDS, LABELS, PREFERENCES, TELLING
from sft_mask.data.read import Row

Columns = Mapping[str, str | None]
PAIR = ("prompt", "completion")
_READ_BY_TRL = ("messages", "conversations")
_EXTRAS = ("system", "history", "tools")
_MAIN = ("messages", "text", "prompt", "response", "completion")


@dataclass(frozen=True, slots=True)
class Found:
    """The columns of a dataset that are read.

    Attributes:
        columns: field (of :data:`~sft_mask.data.formats.names.FIELDS`) to column.
        keys: the keys of the role and the content in a message, where the caller named them.
    """

    columns: Mapping[str, str]
    keys: tuple[str | None, str | None] = (None, None)


class Sample:
    """Some rows of a dataset, and what their columns hold."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Row], where: str) -> None:
        self.columns, self.rows, self.where = list(columns), rows, where

    def values(self, column: str) -> list[object]:
        """The values of a column, without nulls."""
        return [row[column] for row in self.rows if row.get(column) is not None]

    def holds_chats(self, column: str) -> bool:
        """Whether a column holds conversations (or JSON text of them) in a known spelling."""
        filled = [value for value in self.values(column) if loaded(value) not in ([], {}, "")]
        return bool(filled) and is_conversation(filled[0])

    def holds_text(self, column: str) -> bool:
        """Whether a column holds text."""
        values = self.values(column)
        return bool(values) and all(isinstance(value, str) for value in values)

    def texts(self) -> list[str]:
        """The columns that hold text, and not the name of something."""
        return [name for name in self.columns if self.holds_text(name) and name.lower() not in LABELS]

    def is_filled(self, column: str) -> bool:
        """Whether any value is more than whitespace."""
        return any(value.strip() if isinstance(value, str) else value for value in self.values(column))

    def named(self, field: str) -> list[str]:
        """The columns with a usual name of a field, in the order of these names."""
        return [column for name in FIELDS[field] for column in self.columns if column.lower() == name]


def find_columns(sample: Sample, given: Columns | None) -> Found | None:
    """What the columns of a dataset are; ``None`` for one without any column that could be read.

    Raises:
        DataError: that is ambiguous, or the data are preferences.
    """
    fields, keys = _given(sample, given or {})
    free = Sample([name for name in sample.columns if name not in (given or {})], sample.rows, sample.where)
    if not fields.keys() & {*_MAIN}:
        _refuse_preferences(free)
    if "messages" in fields or "text" in fields:
        main = fields
    elif fields.keys() & {*_MAIN}:
        main = _question(free, fields)
    else:
        chosen = _usual(free)
        if chosen is None:
            return None
        main = {**chosen, **fields}
    return Found({**_extras(free, main), **main}, keys)


def _given(sample: Sample, given: Columns) -> tuple[dict[str, str], tuple[str | None, str | None]]:
    """The fields that the caller decided, and the keys of a message."""
    fields: dict[str, str] = {}
    keys: dict[str, str] = {}
    inside = _keys_inside(sample)
    for column, field in given.items():
        known = field if field in FIELDS else next((name for name, names in FIELDS.items() if field in names), None)
        is_key = known in ("role", "content")
        if field is not None and known is None and column in sample.columns:
            raise faults.unknown_field(column, field)
        if column not in (inside if is_key else sample.columns):
            raise faults.unknown_column(sample.where, column, field, sorted(inside) if is_key else sample.columns)
        if known is None:
            continue
        if known in fields or known in keys:
            raise faults.given_twice(known, fields.get(known) or keys[known], column)
        (keys if is_key else fields)[known] = column
    return fields, (keys.get("role"), keys.get("content"))


def _keys_inside(sample: Sample) -> set[str]:
    """The keys of the messages in any column."""
    found: set[str] = set()
    for column in sample.columns:
        for value in sample.values(column)[:8]:
            read = loaded(value)
            for message in read if isinstance(read, (list, tuple)) else ():
                item = loaded(message)
                found.update(map(str, item) if isinstance(item, Mapping) else ())
    return found


def _refuse_preferences(sample: Sample) -> None:
    there = [name for name in sample.columns if name.lower() in PREFERENCES]
    if there:
        better = next((sample.values(name) for name in there if name.lower() == "chosen"), [])
        raise faults.preferences(sample.where, there, better[0] if better else None)
    is_pair = {*PAIR} <= {*sample.columns}
    labels = [name for name in sample.columns if name == "kto_tag" or (name == "label" and is_pair)]
    for label in (name for name in labels if any(value is False for value in sample.values(name))):
        raise faults.unpaired_preferences(sample.where, label)


def _usual(sample: Sample) -> dict[str, str] | None:
    """The columns by their usual names; what TRL reads comes first, in TRL's order."""
    if {*PAIR} <= {*sample.columns}:
        return dict(zip(PAIR, PAIR, strict=True))
    chats = [name for name in sample.named("messages") if sample.holds_chats(name)]
    trls = [name for name in chats if name in _READ_BY_TRL]
    if len(trls) > 1 or (not trls and len(chats) > 1):
        raise faults.several(sample.where, "messages", trls or chats)
    if trls:
        return {"messages": trls[0]}
    if any(name in sample.columns for name in (*_READ_BY_TRL, "text")):
        return None  # as they are, with the errors for malformed rows
    if not chats:
        others = {name for field in ("tools", "history") for name in FIELDS[field]}
        chats = [name for name in sample.columns if name.lower() not in others and sample.holds_chats(name)]
        if len(chats) > 1 and not (sample.named("prompt") and sample.named("response")):
            raise faults.several(sample.where, "messages", chats)
    return {"messages": chats[0]} if len(chats) == 1 else _question(sample, {})


def _question(sample: Sample, fields: Mapping[str, str]) -> dict[str, str]:
    """The columns of a question and of its answer."""
    made = dict(fields)
    asked = [name for name in sample.named("prompt") if sample.is_filled(name)]
    inputs = [name for name in sample.named("input") if sample.is_filled(name) or name.lower() == "input"]
    answered = [name for name in sample.named("response") if sample.is_filled(name)]
    if "prompt" not in made and not asked and "input" not in made:
        asked, inputs = [name for name in inputs if name.lower() == "input"], []
    for field, there in (("prompt", asked), ("response", answered)):
        if field in made or (field == "response" and "completion" in made):
            continue
        if len(there) > 1:
            raise faults.several(sample.where, field, there, made)
        if not there:
            _refuse_lists_of_text(sample)
            read = {**made, **_first(asked, answered)}
            raise faults.nothing_to_read(sample.where, sample.columns, sample.texts(), read)
        made[field] = there[0]
    if "input" not in made and "completion" not in made:
        made.update(_input(sample, made["prompt"], inputs))
    _refuse_leftovers(sample, made)
    return made


def _refuse_lists_of_text(sample: Sample) -> None:
    for column in sample.columns:
        first = next((value for value in sample.values(column) if value), None)
        if isinstance(first, (list, tuple)) and len(first) > 1 and all(isinstance(text, str) for text in first):
            raise faults.lists_of_text(sample.where, column, first)


def _first(asked: Sequence[str], answered: Sequence[str]) -> dict[str, str]:
    named = (("prompt", asked), ("response", answered))
    return {field: names[0] for field, names in named if len(names) == 1}


def _input(sample: Sample, prompt: str, inputs: Sequence[str]) -> dict[str, str]:
    """The column that is joined to the prompt; ``context`` only where it follows an ``instruction``."""
    there = [name for name in inputs if name.lower() == "input" or prompt.lower() == "instruction"]
    if len(there) > 1:
        raise faults.several(sample.where, "input", there)
    return {"input": there[0]} if there else {}


def _refuse_leftovers(sample: Sample, made: Mapping[str, str]) -> None:
    taken = {*made.values()}
    left = [name for name in sample.columns if name.lower() in TELLING and name not in taken]
    left = [name for name in left if sample.holds_text(name) and sample.is_filled(name)]
    if left:
        raise faults.leftover(sample.where, left[0], made)


def _extras(sample: Sample, main: Mapping[str, str]) -> dict[str, str]:
    found = {field: sample.named(field) for field in _EXTRAS if field not in main}
    if "text" in main:
        return {}
    if "messages" in main or "completion" in main:
        found.pop("history", None)
        if "completion" in main or "system" not in main:
            found["system"] = [name for name in found.get("system", ()) if _is_separate(sample, main, name)]
    return {field: names[0] for field, names in found.items() if names}


def _is_separate(sample: Sample, main: Mapping[str, str], system: str) -> bool:
    """Whether a system column says something that the messages do not begin with."""
    column = main.get("messages")
    if column is None or not sample.holds_text(system) or not sample.is_filled(system):
        return False
    for row in sample.rows:
        read = loaded(row.get(column))
        first = read[0] if isinstance(read, list) and read else None
        roles = {str(first.get(key)).lower() for key in FIELDS["role"]} if isinstance(first, Mapping) else set()
        if row.get(system) and "system" not in roles:
            return True
    return False


def is_one_message(value: object) -> bool:
    """Whether a value is one message (a ``response`` of a preference pair can be one)."""
    return isinstance(value, Mapping) and is_message(value)
