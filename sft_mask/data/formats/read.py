"""Datasets in any format in use, read as messages: what :func:`~sft_mask.data.mask_dataset.mask_dataset` does first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from sft_mask.data.faults import formats as faults
from sft_mask.data.formats.chat_format import ChatFormat, converted
from sft_mask.data.formats.choose import choose_format
from sft_mask.data.formats.detect import PAIR, Columns, Sample, find_columns
from sft_mask.data.formats.names import CALL, RoleNames
from sft_mask.data.formats.needs import writes_calls
from sft_mask.data.read.formats import column_names, in_format_of, plain
from sft_mask.templates.chat_template import ChatTemplate

Roles = Mapping[Any, str]
_SAMPLED = 200


def read_chats(
    dataset: Any, name: str, template: ChatTemplate | None, columns: Columns | None = None, roles: Roles | None = None
) -> tuple[Any, str]:
    """The dataset with ``messages`` (or ``prompt`` and ``completion``, or ``text``), and what it was read as.

    A dataset that TRL reads as it is comes back as it is, and the second value is empty.

    Args:
        dataset: a ``Dataset`` or a stream.
        name: of the split.
        template: the chat template; it decides what roles, parts and arguments of tool calls have to look like.
        columns: what columns and keys of messages are: their name to ours (``{"question": "prompt"}``).
        roles: what roles are: their name to ours (``{"bot": "assistant"}``).

    Raises:
        DataError: the format is ambiguous, holds preferences, or no role is the assistant's.
    """
    faults.check_arguments(columns, roles)
    where, names = f"the {name} dataset", column_names(dataset)
    if "input_ids" in names and not columns and not roles:
        return dataset, ""
    read = plain(dataset)
    rows = list(islice(read, _SAMPLED))
    if not rows:
        return dataset, ""
    sample = Sample(names, rows, where)
    found = find_columns(sample, columns)
    if found is None:
        if roles:
            raise faults.no_roles(where, names)
        if "input_ids" not in names and not {"messages", "conversations", "text"} & {*names}:
            raise faults.nothing_to_read(where, names, sample.texts(), {})
        return dataset, ""
    if "text" in found.columns:
        return _as_text(dataset, found.columns["text"]), ""
    chat_format = choose_format(read, sample, found, _names(template, roles), template)
    if chat_format is None:
        return dataset, ""
    return in_format_of(dataset, _applied(read, chat_format)), str(chat_format)


def _names(template: ChatTemplate | None, given: Roles | None) -> RoleNames:
    if template is None:
        return RoleNames.of("", given)
    source = template.source + (template.tool_source or "")
    return RoleNames.of(source, given, CALL if "tool_calls" in source and writes_calls(template) else "assistant")


def _as_text(dataset: Any, column: str) -> Any:
    others = [name for name in ("text", "messages", "conversations", *PAIR) if name != column]
    left = dataset.remove_columns([name for name in others if name in column_names(dataset)])
    return left if column == "text" else left.rename_column(column, "text")


def _applied(dataset: Any, chat_format: ChatFormat) -> Any:
    taken = {*chat_format.columns.values(), "messages", "conversations", "text", *PAIR}
    if not chat_format.tools_as_text:
        taken.discard("tools")
    removed = [name for name in column_names(dataset) if name in taken]
    given: dict[str, object] = {"fn_kwargs": {"chat_format": chat_format}, "remove_columns": removed}
    if getattr(dataset, "features", None) is not None:
        given["features"] = _features(dataset.features, removed, chat_format)
    return dataset.map(converted, with_indices=True, **given)


def _features(features: Any, removed: Sequence[str], chat_format: ChatFormat) -> Any:
    """The features of the new dataset; messages that may differ in their fields are kept as JSON."""
    from datasets import Json, List, Value

    text = Value("string")
    message = {"role": text, "content": text} if chat_format.is_plain else Json()
    kinds = {name: kind for name, kind in features.items() if name not in removed}
    is_text = chat_format.made == PAIR and all(
        getattr(features.get(chat_format.columns[name]), "dtype", None) == "string" for name in PAIR
    )
    made = dict.fromkeys(chat_format.made, text if is_text else List(message))
    return type(features)({**kinds, **made, **({"tools": text} if chat_format.tools_as_text else {})})
