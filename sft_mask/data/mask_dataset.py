"""``mask_dataset``: response-only labels before there is a trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from sft_mask._compat import is_main_process, main_process_first
from sft_mask.core.policy import Policy, Reduction, combined
from sft_mask.data.dataset import check_columns, refuse_transform
from sft_mask.data.expand import expanded_dataset, refuse_what_cannot_expand
from sft_mask.data.faults.media import refuse_media
from sft_mask.data.faults.roles import without_answers
from sft_mask.data.faults.wellformed import PAIR, check_row
from sft_mask.data.formats.detect import Columns
from sft_mask.data.formats.read import Roles, read_chats
from sft_mask.data.masker import OnAmbiguous
from sft_mask.data.prelabelled import note_masked
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import as_chatml
from sft_mask.data.read.formats import column_names, in_format_of, plain, sample_rows
from sft_mask.data.setup import MaskSettings, TokenizerInfo, masker_for, read_tokenizer
from sft_mask.data.splits import SplitMasker
from sft_mask.data.stream import tokenized_stream
from sft_mask.data.tokenize.rows import RefusedError, RowTokenizer, reads_text
from sft_mask.data.tokenize.shards import with_ids
from sft_mask.errors import DataError

_LEARNT_FROM = 64
"""Rows that are tokenized before a dataset is expanded."""

logger = logging.getLogger(__name__)


def mask_dataset(
    dataset: Any,
    tokenizer: object,
    instruction_part: object = None,
    response_part: object = None,
    *,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    policy: Policy | None = None,
    prompt_weight: float | None = None,
    reduction: Reduction | None = None,
    on_ambiguous: OnAmbiguous = "error",
    chat_template: str | None = None,
    num_proc: int | None = None,
    columns: Columns | None = None,
    roles: Roles | None = None,
    expand: bool = False,
    return_report: bool = False,
) -> Any:
    """Response-only labels before there is a trainer: exact under any packing and truncation that follows.

    Args:
        dataset: has ``input_ids``, or chats in any format in use (``messages``, ShareGPT, Alpaca, questions and
            answers, JSON text, ...), or ``text``, which are then tokenized as ``SFTTrainer`` does. A ``DatasetDict`` is
            masked split by split.
        tokenizer: a fast tokenizer, or a processor that has one, which then renders the messages as its own template
            reads them (for data without images: labels of images are made while collating).
        instruction_part: see :func:`~sft_mask.trainer.entry.train_on_responses_only`; so are the other arguments.
            Weights travel inside the labels (:mod:`sft_mask.core.label_codec`); ``train_on_responses_only(trainer)`` on
            the trainer that is built on them puts them into the loss.
        num_proc: how many processes tokenize. Without it this process does, and the tokenizer uses its own threads.
        columns: what the columns are, and the keys of a message, where their names do not say it:
            ``{"ask": "prompt", "reply": "response"}``, ``{"dialog": "messages", "speaker": "role"}``; ``None`` leaves
            a column out.
        roles: what the roles are, likewise: ``{"alice": "user", "bob": "assistant"}``. Well-known names (``human``,
            ``gpt``, ``observation``, ...) are read without it, and the report says so.
        expand: make the fewest rows in which every trained turn is as inference shows it: the same context, the same
            words, after its generation prompt (:mod:`sft_mask.templates.expand`). Each turn is trained exactly once,
            and conversations of a template that keeps its prefix stay one row each. Rows of one conversation share
            context, so split train and evaluation data before. Needs conversations that are not tokenized yet.
        return_report: also return the :class:`~sft_mask.report.MaskReport` (of a stream: of its first rows).

    Returns:
        The dataset with ``input_ids`` and ``labels``, ready for ``SFTTrainer``, which keeps them under truncation and
        packing.

    Raises:
        DataError: there is nothing to tokenize, a split is empty, or a row is malformed. Further errors as in
            :func:`~sft_mask.trainer.entry.train_on_responses_only`.
    """
    info = read_tokenizer(tokenizer, chat_template)
    chosen = combined(policy, last_response_only, mask_out_tokens, prompt_weight, reduction)
    settings = MaskSettings(instruction_part, response_part, chosen, on_ambiguous)
    is_dict = isinstance(dataset, dict)
    splits = dict(dataset) if is_dict else {"train": dataset}
    _refuse_other_data(splits)
    read = {name: read_chats(split, name, info.template, columns, roles) for name, split in splits.items()}
    chats = {name: split for name, (split, _) in read.items()}
    if expand:
        for name, split in chats.items():
            refuse_what_cannot_expand(split, name)
    first = next(iter(chats))
    ready = {first: head(chats[first])} if expand else chats
    ready = {name: tokenized(split, info, chat_template, name, num_proc) for name, split in ready.items()}
    masker = masker_for(info, sample_rows(ready[first]), settings, chats[first], f"the {first} dataset")
    split_masker = SplitMasker(masker)
    if expand:
        ready = {name: expanded_dataset(split, masker, name) for name, split in chats.items()}
    masked = {name: split_masker.label(split, name, source=chats[name], expand=expand) for name, split in ready.items()}
    read_as = {name: told for name, (_, told) in read.items() if told}
    report = replace(split_masker.report({name: stats for name, (_, stats) in masked.items()}), read_as=read_as)
    weighted = [name for name, split in chats.items() if masker.carries_weights(column_names(split))]
    if weighted and is_main_process():
        logger.warning(
            "Labels of %s carry weights. Call train_on_responses_only(trainer) on the trainer that is built on them: "
            "without it the loss is silently wrong.",
            ", ".join(weighted),
        )
    made = {name: note_masked(split, masker.policy) for name, (split, _) in masked.items()}
    answer = type(dataset)(made) if is_dict else made["train"]
    return (answer, report) if return_report else answer


def head(dataset: Any) -> object:
    """The first rows, from which markers are learnt."""
    return dataset.select(range(min(_LEARNT_FROM, len(dataset)))) if hasattr(dataset, "__len__") else dataset


def _refuse_other_data(splits: Mapping[str, object]) -> None:
    for name, split in splits.items():
        if not hasattr(split, "column_names"):
            raise DataError(
                f"The {name} dataset is a {type(split).__name__}, not a datasets.Dataset. Make it one: "
                "Dataset.from_list(rows), or load_dataset('json', data_files=...)."
            )


def tokenized(
    dataset: Any, info: TokenizerInfo, chat_template: str | None, name: str, num_proc: int | None = None
) -> object:
    """The dataset with ``input_ids``, made from its messages or its text where they are not there yet."""
    columns = column_names(dataset)
    if "input_ids" not in columns:
        if info.processor is not None:
            refuse_media(dataset, name)
        if not {"messages", "conversations", "text"} & set(columns) and not {*PAIR} <= set(columns):
            there = ", ".join(columns) or "no columns"
            raise DataError(
                f"The {name} dataset has no input_ids, messages, conversations, prompt and completion, or text (it has "
                f"{there}). Give it one of these."
            )
        if hasattr(dataset, "__len__") and not len(dataset):
            raise DataError(f"There are no rows in the {name} dataset. Give it rows, or leave this split out.")
        refuse_transform(dataset, name)
        read = plain(dataset)
        _render_once(read, info)
        try:
            chats = _with_messages(read, num_proc)
            rows = RowTokenizer(info.tokenizer, chat_template, info.processor)
            made = _with_ids(chats, rows, name, num_proc)
        except RefusedError as error:
            found = without_answers(read, f"the {name} dataset")
            if found is None:
                raise
            raise found from error
        dataset = in_format_of(dataset, made)
    if hasattr(dataset, "__len__"):
        check_columns(dataset, name)
    return dataset


def _with_messages(dataset: Any, num_proc: int | None) -> Any:
    """The dataset with ``conversations`` as ``messages`` of ``role`` and ``content``, as TRL makes them."""
    if "conversations" not in column_names(dataset) or reads_text(next(iter(dataset))):
        return dataset
    options = {"num_proc": num_proc} if hasattr(dataset, "__len__") else {}
    return dataset.map(messages_of_conversations, with_indices=True, remove_columns="conversations", **options)


def messages_of_conversations(row: Row, number: int) -> dict[str, object]:
    """The ``messages`` of a row with ``conversations``.

    Raises:
        DataError: the row is malformed; with its number.
    """
    try:
        check_row(row)
    except DataError as error:
        raise type(error)(f"Row {number}: {error}") from error
    return {"messages": as_chatml(row).get("messages")}


def _with_ids(dataset: Any, tokenizer: RowTokenizer, name: str, num_proc: int | None) -> object:
    """The dataset with ``input_ids``; of a stream the first row is tokenized at once."""
    if hasattr(dataset, "__len__"):
        with main_process_first():  # the other processes of a node read what it wrote
            return with_ids(dataset, tokenizer, name, num_proc)
    made = tokenized_stream(dataset, tokenizer)
    next(iter(made), None)
    return made


def _render_once(dataset: Any, info: TokenizerInfo) -> None:
    """Raises for a chat template that never ends, which the tokenizer would render forever."""
    first: Mapping[str, object] = next(iter(dataset), {})
    conversation = first.get("messages") or first.get("conversations")
    if info.template is not None and isinstance(conversation, list):
        with suppress(DataError):  # raised again, with the row's number, when the row is tokenized
            info.template.render(conversation)
