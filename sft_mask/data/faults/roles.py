"""The roles of a dataset, and the error for one without a single assistant message."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.constants import ASSISTANT_ROLES
from sft_mask.data.formats.names import RoleNames, kind_of
from sft_mask.data.read import Row
from sft_mask.data.read.columns import is_json, is_list
from sft_mask.errors import DataError, NothingToTrainError

Role = str | int | None

_KEYS = ("role", "from")
_PAIR = ("prompt", "completion")
_ROWS_AT_ONCE = 1000
_OF_A_STREAM = 1000
_LOOKED_AT = 100
_SHOWN = 8
_LONGEST = 64


@dataclass
class _RoleCounts:
    """The roles in the conversations of some rows.

    Attributes:
        columns: the columns of messages; the last one has the answers.
        key: the field of a message that names its role.
        counts: messages by role, those of all columns.
        last: how often each role has the last message in the sampled rows.
        rows: conversations.
        answers: whether a message of the last column is the assistant's.
    """

    columns: tuple[str, ...]
    key: str = "role"
    counts: Counter[Role] = field(default_factory=Counter)
    last: Counter[Role] = field(default_factory=Counter)
    rows: int = 0
    answers: bool = False

    def add(self, name: str, roles: Counter[Role], last: Iterable[Role], rows: int) -> None:
        """Counts some rows of a column."""
        self.counts.update(roles)
        if name == self.columns[-1]:
            self.rows += rows
            self.last.update(last)
            self.answers |= any(role in ASSISTANT_ROLES for role in roles)


def without_answers(data: object, where: str) -> NothingToTrainError | None:
    """The error for a dataset without an assistant message; ``None`` if there is one, or no message at all.

    Args:
        data: a ``Dataset`` (if it has no rows, those that a filter removed are read), a stream, or rows.
        where: what to call it (``"the train dataset"``).
    """
    speakers = _speakers(data)
    if speakers is None or speakers.answers or not speakers.counts:
        return None
    columns, last = _columns_of(data), speakers.columns[-1]
    own = " or ".join(map(repr, sorted(ASSISTANT_ROLES)))
    known = (
        f"the chat template calls the assistant {own}" if "input_ids" in columns else "none of these is the assistant"
    )
    stream = not hasattr(data, "__len__")
    seen = f"{'the first ' if stream else ''}{speakers.rows} conversation{'' if speakers.rows == 1 else 's'}"
    named = "" if speakers.key == "role" else f" (under the key {speakers.key!r})"
    return NothingToTrainError(
        f"No message in the {last} column of {where} is the assistant's, so there is nothing to train. The roles of "
        f"{seen} are {_listed(speakers.counts)}{named}; {known}. {_way_out(speakers, columns)}"
    )


def without_roles(data: object, where: str, wanted: Iterable[str]) -> NothingToTrainError | None:
    """The error for a policy that trains only roles which no message has; ``None`` if a message has one of them."""
    speakers = _speakers(data, to_the_end=True)
    if speakers is None or not speakers.counts or any(role in speakers.counts for role in wanted):
        return None
    listed = " and ".join(sorted(map(repr, wanted)))
    return NothingToTrainError(
        f"Only messages with the role {listed} are to be trained, and no message of {where} has it: the roles there "
        f"are {_listed(speakers.counts)}. Name one of these as the role to train (the default is the assistant)."
    )


def no_rows(dataset: Any, where: str) -> DataError:
    """The error for a dataset without rows; it says whether a filter removed them, and which roles they had."""
    removed = dataset._data.num_rows
    if not removed:
        return DataError(f"There are no rows in {where}. Give it rows, or leave this split out.")
    taken = (
        f"There are no rows left in {where}: all {removed} of them were removed. SFTTrainer removes rows that have "
        "no token to train."
    )
    found = without_answers(dataset, where)
    if found is not None:
        return NothingToTrainError(f"{taken} {found}")
    why = (
        "If truncation removed the answers, raise max_length, or use truncation_mode='keep_end'; else give it other "
        "rows."
    )
    return NothingToTrainError(f"{taken} {why}")


# the roles


def _speakers(data: Any, to_the_end: bool = False) -> _RoleCounts | None:
    rows = None if hasattr(data, "_data") else list(islice(data, _OF_A_STREAM))
    kinds = _kinds_of_rows(rows) if rows is not None else _kinds_of_table(data._data)
    columns = next((names for names in (("conversations",), ("messages",), _PAIR) if kinds.keys() >= {*names}), None)
    if columns is None:
        return None
    found = _RoleCounts(columns, kinds[columns[-1]])
    for name in columns:
        parts = _of_rows(rows, name) if rows is not None else _of_dataset(data, name)
        for roles, last, count in parts:
            found.add(name, roles, last, count)
            if found.answers and not to_the_end:
                return found
    return found


def _kinds_of_table(table: Any) -> dict[str, str]:
    """The columns of messages, with the field that names the role."""
    kinds = {}
    for name in table.column_names:
        kind = table.schema.field(name).type
        if not is_list(kind):
            continue
        inside = kind.value_type
        if is_json(inside):
            kinds[name] = _key_of(message for row in _first(table[name]) for message in row)
        elif pa.types.is_struct(inside):
            kinds[name] = next((key for key in _KEYS if inside.get_field_index(key) >= 0), "")
    return {name: key for name, key in kinds.items() if key}


def _kinds_of_rows(rows: Iterable[Row]) -> dict[str, str]:
    kinds: dict[str, str] = {}
    for row in rows:
        for name in ("conversations", "messages", *_PAIR):
            if name not in kinds and isinstance(row.get(name), (list, tuple)):
                kinds[name] = _key_of(row[name])
    return {name: key for name, key in kinds.items() if key}


def _key_of(messages: Iterable[object]) -> str:
    there = {key for message in messages if isinstance(message, Mapping) for key in message}
    return next((key for key in _KEYS if key in there), "")


def _role(message: object) -> Role:
    fields = message if isinstance(message, Mapping) else {}
    role = next((fields[key] for key in _KEYS if fields.get(key) is not None), None)
    return role if role is None or isinstance(role, (str, int)) else repr(role)


def _of_rows(rows: Iterable[Mapping[str, object]], name: str) -> Iterator[tuple[Counter[Role], list[Role], int]]:
    for row in rows:
        messages = row.get(name)
        if isinstance(messages, (list, tuple)):
            roles = [_role(message) for message in messages]
            yield Counter(roles), roles[-1:], 1


def _of_dataset(dataset: Any, name: str) -> Iterator[tuple[Counter[Role], list[Role], int]]:
    if len(dataset):
        parts = dataset.select_columns([name]).with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
    else:
        parts = iter([dataset._data])
    for part in parts:
        column = part[name]
        last = [_role(row[-1]) for row in _first(column)]
        yield _counted(column), last, len(column) - column.null_count


def _first(column: pa.ChunkedArray) -> list[list[object]]:
    """The first conversations of a column that hold messages."""
    rows = [row for row in column.slice(0, _LOOKED_AT).to_pylist() if row]
    return [[_read(message) for message in row] for row in rows] if is_json(column.type.value_type) else rows


def _read(text: str | None) -> object:
    return None if text is None else json.loads(text)


def _counted(column: pa.ChunkedArray) -> Counter[Role]:
    counts: Counter[Role] = Counter()
    for chunk in column.chunks:
        messages = chunk.flatten()
        if is_json(messages.type):
            counts.update(_role(_read(text)) for text in messages.storage.to_pylist())
            continue
        key = next(key for key in _KEYS if messages.type.get_field_index(key) >= 0)
        for pair in pc.struct_field(messages, key).value_counts().to_pylist():
            counts[_role({key: pair["values"]})] += pair["counts"]
    return counts


# the error text


def _listed(counts: Counter[Role]) -> str:
    parts = [f"{_spelled(role)} ({count} message{'' if count == 1 else 's'})" for role, count in counts.most_common()]
    more = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _spelled(role: Role) -> str:
    return "null" if role is None else repr(role[:_LONGEST] if isinstance(role, str) else role)


def _columns_of(data: Any) -> dict[str, object]:
    """The columns, with the features of those that have any."""
    features = getattr(data, "features", None)
    return dict(features) if features is not None else dict.fromkeys(next(iter(data), {}))


def _way_out(speakers: _RoleCounts, columns: Mapping[str, object]) -> str:
    renaming, is_guessed = _renaming(speakers)
    if not renaming:
        return _without_assistant(speakers, columns)
    guessed = ", with the right names where these are guessed wrong" if is_guessed else ""
    if "input_ids" not in columns:
        return f"Say what they are{guessed}:\n\n    dataset = mask_dataset(dataset, tokenizer, roles={renaming!r})"
    named = "" if all(kind_of(role) for role in renaming) else f", roles={renaming!r}"
    return (
        "The rows were rendered with these names, which a prompt never has at inference. Have the dataset read before "
        f"it is tokenized{guessed}, and build the trainer on that:\n\n"
        f"    dataset = mask_dataset(dataset, tokenizer{named})"
    )


def _renaming(speakers: _RoleCounts) -> tuple[dict[Role, str], bool]:
    """New names for roles, and whether they are guessed; empty if no role can be the assistant's."""
    roles = [role for role in speakers.counts if role is not None and len(str(role)) <= _LONGEST]
    targets: dict[Role, object] = {role: RoleNames().role(role) for role in roles}
    strange = [role for role in roles if kind_of(role) is None]
    strange.sort(key=lambda role: -speakers.last[role])
    is_guessed = "assistant" not in targets.values() and bool(strange)
    if is_guessed:
        targets[strange[0]] = "assistant"
        if "user" not in targets.values() and len(strange) > 1:
            targets[max(strange[1:], key=lambda role: speakers.counts[role])] = "user"
    renaming: dict[Role, str] = {role: str(target) for role, target in targets.items() if target != role}
    return (renaming if "assistant" in renaming.values() else {}), is_guessed


def no_assistant(
    where: str, column: str, roles: Iterable[Any], last: Iterable[Any], given: Mapping[str, str]
) -> NothingToTrainError:
    """The error for a column of messages of which none is the assistant's, by the names of the roles alone."""
    speakers = _RoleCounts((column,), counts=Counter(roles), last=Counter(last))
    there = ", ".join(map(_spelled, speakers.counts))
    decided = f" (roles makes {', '.join(f'{old} {new}' for old, new in given.items())})" if given else ""
    renaming, _ = _renaming(speakers)
    return NothingToTrainError(
        f"No message in the {column} column of {where} is the assistant's, so there is nothing to train. The roles "
        f"are {there}{decided}. Say which of them is the assistant's: "
        f"roles={(renaming or {str(next(iter(speakers.counts))): 'assistant'})!r}."
    )


def _without_assistant(speakers: _RoleCounts, columns: Mapping[str, object]) -> str:
    """What to do if only users (and systems, and tools) have messages."""
    name = speakers.columns[-1]
    others = [other for other, kind in columns.items() if getattr(kind, "dtype", None) == "string"]
    if not others or "input_ids" in columns:
        answer = '{"role": "assistant", "content": ...}'
        return f"Give each conversation its answer, a message such as {answer}, or leave this split out."
    answer = f'{{"role": "assistant", "content": row["{others[0]}"]}}'
    made = f'{{"{name}": [*row["{name}"], {answer}]}}'
    return (
        f"If the answers are in another column ({', '.join(others)}), append them, or leave this split out:\n\n"
        f"    dataset = dataset.map(lambda row: {made})"
    )
