"""What an Arrow column of messages says about its rows, without a Python object for each message.

Three cheap questions tell which rows markers may decide: how many assistant messages there are, whether any message
quotes part of a marker, and which signature the conversation has (the roles that follow each other, the fields that are
filled). A template treats rows of one signature alike, so a signature is verified on a few rows and trusted afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sft_mask.constants import ASSISTANT_ROLES, ROLES
from sft_mask.core.arrays import Bools, Ints, offsets_of
from sft_mask.data.read.json_messages import read_messages

if TYPE_CHECKING:
    from numpy.typing import NDArray


_ROLES = ROLES[:-1]
_INSIDE = "[]"
_NOT_WHITESPACE = r"[^\t-\r\x1c-\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]"
"""Any character that ``utf8_trim_whitespace`` keeps."""
_THINKING = ("think", "[THINK]", "channel")


@dataclass(frozen=True, slots=True)
class Signatures:
    """What is known about each row of a batch.

    Attributes:
        answers: ``(rows,)`` number of assistant messages.
        quotes: ``(rows,)`` whether any text of the conversation quotes part of a marker.
        signature: ``(rows,)`` equal for conversations with the same sequence of roles and the same fields.
        answered_before: ``(rows,)`` whether the prompt of a prompt/completion row already holds an answer.
    """

    answers: Ints
    quotes: Bools
    signature: Ints
    answered_before: Bools


def flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which copies even one


def is_list(kind: pa.DataType) -> bool:
    """Whether values of a column type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def is_json(kind: pa.DataType) -> bool:
    """Whether values of a column type are kept as JSON text."""
    return getattr(kind, "extension_name", "") == "arrow.json"


def _leaves(
    array: pa.Array, rows: Ints, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], pa.Array, Ints]]:
    """Every leaf array below ``array``, with the row of each of its values; ``[]`` is a nested list."""
    kind = array.type
    if is_json(kind):
        yield from _leaves(read_messages(array).strings, rows, path)
    elif isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(array.storage, rows, path)
    elif is_list(kind):
        lengths = np.asarray(pc.fill_null(pc.list_value_length(array), 0), np.int64)
        yield from _leaves(array.flatten(), np.repeat(rows, lengths), (*path, _INSIDE) if path else path)
    elif pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            field = kind.field(index)
            yield from _leaves(pc.struct_field(array, index), rows, (*path, field.name))
    else:
        yield path, array, rows


def is_conversation(kind: pa.DataType) -> bool:
    """Whether a column type is a list of messages: structs with a role, or JSON objects."""
    if is_list(kind) and is_json(kind.value_type):
        return True
    return is_list(kind) and pa.types.is_struct(kind.value_type) and kind.value_type.get_field_index("role") >= 0


def _rows_where(found: Bools, rows: Ints, count: int) -> Bools:
    answer = np.zeros(count, np.bool_)
    answer[rows[found]] = True
    return answer


def quotes_any(column: pa.ChunkedArray | pa.Array, texts: Sequence[str]) -> Bools:
    """Rows in which any string of a (nested) column contains any of the texts.

    Known roles are skipped. Parts of one content are also searched joined, as a template joins them: half a marker in
    each of two parts is a marker.
    """
    array = flat(column)
    answer = np.zeros(len(array), np.bool_)
    for path, leaf, rows in _texts(array):
        answer[rows[contains_any(leaf, texts)]] = True
        if _INSIDE in path:
            answer |= contains_any(joined(leaf, rows, len(array)), texts)
    return answer


def contains_any(strings: pa.Array, texts: Sequence[str]) -> Bools:
    """``(strings,)`` whether each string contains any of the texts; a null contains nothing.

    One regular expression of all texts reads the strings once: ten times as fast as ``match_substring`` for each.
    """
    if not texts:
        return np.zeros(len(strings), np.bool_)
    pattern = "|".join("".join(f"\\x{{{ord(character):x}}}" for character in text) for text in texts)
    return np.asarray(pc.fill_null(pc.match_substring_regex(strings, pattern), False), np.bool_)


def has_items(column: pa.ChunkedArray | pa.Array) -> Bools:
    """Rows in which a column of lists has items; none if it is not a column of lists."""
    array = flat(column)
    if not is_list(array.type):
        return np.zeros(len(array), np.bool_)
    return np.asarray(pc.fill_null(pc.greater(pc.list_value_length(array), 0), False), np.bool_)


def rows_with(column: pa.ChunkedArray | pa.Array, fields: Sequence[str]) -> dict[str, Bools]:
    """For each of the fields, the rows with a message that has it; fields that no message has are left out."""
    array = flat(column)
    found: dict[str, Bools] = {}
    for path, leaf, rows in _leaves(array, np.arange(len(array))):
        if path and path[0] in fields and leaf.null_count < len(leaf):
            valid = _rows_where(np.asarray(leaf.is_valid()), rows, len(array))
            found[path[0]] = found.get(path[0], valid) | valid
    return found


def _texts(array: pa.Array) -> Iterator[tuple[tuple[str, ...], pa.Array, Ints]]:
    """The leaves that hold strings; of the roles only unknown ones."""
    for path, leaf, rows in _leaves(array, np.arange(len(array))):
        if not _is_text(leaf.type):
            continue
        if path == ("role",):
            strange = role_codes(leaf) == len(_ROLES)
            yield path, leaf.filter(pa.array(strange)), rows[strange]
        else:
            yield path, leaf, rows


def joined(leaf: pa.Array, rows: Ints, count: int) -> pa.Array:
    """The texts of each row as one."""
    offsets = offsets_of(np.bincount(rows, minlength=count)).astype(np.int32)
    texts = pc.fill_null(leaf.cast(pa.string()), "")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), texts), "")


def role_codes(roles: pa.Array) -> Ints:
    """The index of each role in :data:`~sft_mask.constants.ROLES`."""
    if not _is_text(roles.type):
        return np.full(len(roles), len(_ROLES), np.int64)
    index = pc.index_in(roles, value_set=pa.array(_ROLES, roles.type))
    return np.asarray(pc.fill_null(index, len(_ROLES)), np.int64)


def _role_bits(codes: Ints, rows: Ints, count: int) -> NDArray[np.uint64]:
    """Which pairs of roles follow each other in each row, as a bit set."""
    bits = np.zeros(count, np.uint64)
    if not len(codes):
        return bits
    first = np.append(True, rows[1:] != rows[:-1])
    before = np.where(first, len(_ROLES) + 1, np.append(0, codes[:-1]))
    pair = np.uint64(1) << (before * (len(_ROLES) + 1) + codes).astype(np.uint64)
    np.bitwise_or.at(bits, rows, pair)
    return bits


def filled(array: pa.Array) -> Bools:
    """Whether each value holds anything: text that is not whitespace alone, a list with items, or another value."""
    if _is_text(array.type):
        return np.asarray(pc.fill_null(pc.match_substring_regex(array, _NOT_WHITESPACE), False), np.bool_)
    if is_list(array.type):
        return np.asarray(pc.fill_null(pc.greater(pc.list_value_length(array), 0), False), np.bool_)
    return np.asarray(array.is_valid(), np.bool_)


def signatures(column: pa.ChunkedArray | pa.Array, texts: Sequence[str]) -> Signatures:
    """Reads a batch of conversations; see :class:`Signatures`."""
    array = flat(column)
    count = len(array)
    answers, key = np.zeros(count, np.int64), np.zeros(count, np.uint64)
    quotes = np.zeros(count, np.bool_)
    flags: list[Bools] = []
    for path, leaf, rows in _leaves(array, np.arange(count)):
        if path == ("role",):
            codes = role_codes(leaf)
            model = np.isin(codes, [_ROLES.index(role) for role in ASSISTANT_ROLES])
            answers = np.bincount(rows[model], minlength=count).astype(np.int64)
            key = _role_bits(codes, rows, count)
            strange = codes == len(_ROLES)
            if strange.any() and _is_text(leaf.type):
                quotes[rows[strange][contains_any(leaf.filter(pa.array(strange)), texts)]] = True
            continue
        if path == ("keys",):
            sums = np.bincount(rows, weights=np.asarray(leaf, np.float64), minlength=count)
            key = key * np.uint64(31) + (sums.astype(np.uint64) if len(rows) else np.uint64(0))
            continue
        is_filled = filled(leaf)
        flags.append(_rows_where(is_filled, rows, count))
        flags.append(_rows_where(~is_filled, rows, count))
        if _is_text(leaf.type):
            seen = contains_any(leaf, (*texts, *_THINKING))  # most strings hold none of them: read once
            held, held_rows = leaf.filter(pa.array(seen)), rows[seen]
            flags.extend(_rows_where(contains_any(held, [word]), held_rows, count) for word in _THINKING)
            quotes[held_rows[contains_any(held, texts)]] = True
            if _INSIDE in path:
                quotes |= contains_any(joined(leaf, rows, count), texts)
    for flag in flags:
        key = key * np.uint64(1_000_003) + flag.astype(np.uint64) + np.uint64(1)
    return Signatures(answers, quotes, key.view(np.int64), np.zeros(count, np.bool_))


def _has_offsets(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _values_between(array: pa.Array) -> tuple[pa.Array, Ints]:
    bounds = np.asarray(array.offsets, np.int64)
    return array.values.slice(bounds[0], bounds[-1] - bounds[0]), bounds - bounds[0]


def _values_of_one_size(array: pa.Array) -> tuple[pa.Array, Ints]:
    lengths = np.asarray(pc.list_value_length(array), np.int64)
    return array.flatten(), offsets_of(lengths)


def list_values(column: pa.ChunkedArray | pa.Array) -> tuple[NDArray[Any], Ints]:
    """Flat values and ``(rows + 1,)`` offsets of a list column, without a copy where Arrow allows it.

    Raises:
        ValueError: a row, or a value in a row, is null.
    """
    array = flat(column)
    if array.null_count:
        row = int(np.flatnonzero(np.asarray(array.is_null()))[0])
        raise ValueError(f"row {row} is null" if len(array) > 1 else "it is null")
    values, offsets = _values_between(array) if _has_offsets(array.type) else _values_of_one_size(array)
    if values.null_count:
        at = int(np.flatnonzero(np.asarray(values.is_null()))[0])
        row = int(np.searchsorted(offsets, at, side="right") - 1)
        what = f"row {row}" if len(array) > 1 else "it"
        raise ValueError(f"{what} holds a null at position {at - int(offsets[row])}")
    return values.to_numpy(zero_copy_only=False), offsets
