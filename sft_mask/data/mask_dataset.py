"""``mask_dataset``: response-only labels before there is a trainer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sft_mask._compat import is_main_process
from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.arrays import common_prefix_length
from sft_mask.core.policy import Policy, Reduction, combined
from sft_mask.core.vocabulary import tokenizer_and_processor
from sft_mask.data.dataset import check_columns
from sft_mask.data.expand import expanded_dataset, refuse_what_cannot_expand
from sft_mask.data.faults.roles import without_answers
from sft_mask.data.faults.wellformed import PAIR, check_row, oddities
from sft_mask.data.masker import OnAmbiguous
from sft_mask.data.prelabelled import note_masked
from sft_mask.data.read import Row
from sft_mask.data.read.conversations import as_chatml, read_tools, read_variables
from sft_mask.data.read.formats import column_names, in_format_of, plain, sample_rows
from sft_mask.data.setup import MaskSettings, TokenizerInfo, masker_for, read_tokenizer
from sft_mask.data.splits import SplitMasker
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.templates.chat_template import with_parts

_LEARNT_FROM = 64
"""Rows that are tokenized before a dataset is expanded."""

logger = logging.getLogger(__name__)

_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What bugs in a template raise, in addition to the errors of Jinja."""


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
    expand: bool = False,
    return_report: bool = False,
) -> Any:
    """Response-only labels before there is a trainer: exact under any packing and truncation that follows.

    Args:
        dataset: has ``input_ids``, or ``messages`` (also ``conversations``, ``prompt`` and ``completion``), or
            ``text``, which are then tokenized as ``SFTTrainer`` does. A ``DatasetDict`` is masked split by split.
        tokenizer: a fast tokenizer, or a processor that has one, which then renders the messages as its own template
            reads them (for data without images: labels of images are made while collating).
        instruction_part: see :func:`~sft_mask.trainer.entry.train_on_responses_only`; so are the other arguments.
            Weights travel inside the labels (:mod:`sft_mask.core.label_codec`); ``train_on_responses_only(trainer)`` on
            the trainer that is built on them puts them into the loss.
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
    if info.processor is not None:
        _refuse_images(splits)
    if expand:
        for name, split in splits.items():
            refuse_what_cannot_expand(split, name)
    first = next(iter(splits))
    ready = {first: _head(splits[first])} if expand else splits
    ready = {name: tokenized(split, info, chat_template, name) for name, split in ready.items()}
    masker = masker_for(info, sample_rows(ready[first]), settings, splits[first], f"the {first} dataset")
    split_masker = SplitMasker(masker)
    if expand:
        ready = {name: expanded_dataset(split, masker, name) for name, split in splits.items()}
    masked = {
        name: split_masker.label(split, name, source=splits[name], expand=expand) for name, split in ready.items()
    }
    report = split_masker.report({name: stats for name, (_, stats) in masked.items()})
    weighted = [name for name, split in splits.items() if masker.carries_weights(column_names(split))]
    if weighted and is_main_process():
        logger.warning(
            "Labels of %s carry weights. Call train_on_responses_only(trainer) on the trainer that is built on them: "
            "without it the loss is silently wrong.",
            ", ".join(weighted),
        )
    made = {name: note_masked(split, masker.policy) for name, (split, _) in masked.items()}
    answer = type(dataset)(made) if is_dict else made["train"]
    return (answer, report) if return_report else answer


def _head(dataset: Any) -> object:
    """The first rows, from which markers are learnt."""
    return dataset.select(range(min(_LEARNT_FROM, len(dataset)))) if hasattr(dataset, "__len__") else dataset


def _refuse_other_data(splits: Mapping[str, object]) -> None:
    for name, split in splits.items():
        if not hasattr(split, "column_names"):
            raise DataError(
                f"The {name} dataset is a {type(split).__name__}, not a datasets.Dataset. Make it one: "
                "Dataset.from_list(rows), or load_dataset('json', data_files=...)."
            )


def _refuse_images(splits: Mapping[str, object]) -> None:
    for name, split in splits.items():
        there = [column for column in ("image", "images") if column in column_names(split)]
        if there and "input_ids" not in column_names(split):
            raise UnsupportedError(
                f"The {name} dataset has the column {there[0]!r}: a processor makes the ids of such rows, and "
                "with them their labels, while they are collated. Call train_on_responses_only(trainer), or put "
                "ResponseOnlyCollator(collator, processor) around your own collator. To train on the text alone, "
                f"remove the column: dataset.remove_columns({there[0]!r})."
            )


def tokenized(dataset: object, info: TokenizerInfo, chat_template: str | None, name: str) -> object:
    """The dataset with ``input_ids``, made from its messages or its text where they are not there yet."""
    columns = column_names(dataset)
    if "input_ids" not in columns:
        if not {"messages", "conversations", "text"} & set(columns) and not {"prompt", "completion"} <= set(columns):
            there = ", ".join(columns) or "no columns"
            raise DataError(
                f"The {name} dataset has no input_ids, messages, conversations, prompt and completion, or text (it has "
                f"{there}). Give it one of these."
            )
        if hasattr(dataset, "__len__") and not len(dataset):
            raise DataError(f"There are no rows in the {name} dataset. Give it rows, or leave this split out.")
        read = plain(dataset)
        _render_once(read, info)
        arguments = {"tokenizer": info.processor or info.tokenizer, "chat_template": chat_template}
        keeps = "conversations" not in columns or _reads_text(next(iter(read)))
        renamed = None if keeps else "conversations"
        dataset = in_format_of(dataset, _mapped(read, arguments, renamed, name))
    if hasattr(dataset, "__len__"):
        check_columns(dataset, name)
    return dataset


class _RefusedError(DataError):
    """The chat template refuses a conversation."""


def _mapped(dataset: Any, arguments: Mapping[str, object], renamed: str | None, name: str) -> object:
    """The dataset with its rows tokenized; of a stream the first one at once."""
    try:
        made = dataset.map(tokenize_row, with_indices=True, fn_kwargs=arguments, remove_columns=renamed)
        if not hasattr(made, "__len__"):
            next(iter(made), None)
    except _RefusedError as error:
        found = without_answers(dataset, f"the {name} dataset")
        if found is None:
            raise
        raise found from error
    return made


def _render_once(dataset: Any, info: TokenizerInfo) -> None:
    """Raises for a chat template that never ends, which the tokenizer would render forever."""
    first: Mapping[str, object] = next(iter(dataset), {})
    conversation = first.get("messages") or first.get("conversations")
    if info.template is not None and isinstance(conversation, list):
        with suppress(DataError):  # raised again, with the row's number, when the row is tokenized
            info.template.render(conversation)


def tokenize_row(
    row: Mapping[str, object], number: int, tokenizer: object, chat_template: str | None
) -> dict[str, object]:
    """``input_ids`` of one row as TRL's ``SFTTrainer`` makes them; of prompt and completion also ``labels``.

    ``conversations`` become ``messages``, as TRL renames them.

    Raises:
        DataError: the row is malformed, or the chat template refuses it; with the row's number.
    """
    try:
        check_row(row)
        return _tokenized_row(row, tokenizer, chat_template)
    except DataError as error:
        raise type(error)(f"Row {number}: {error}") from error


def _tokenized_row(row: Row, tokenizer: Any, chat_template: str | None) -> dict[str, Any]:
    if _reads_text(row):
        return {"input_ids": _text_ids(_with_eos(row["text"], tokenizer), tokenizer)}
    example = as_chatml(row)
    if example.keys() >= {*PAIR}:
        return _prompt_completion(example, tokenizer, chat_template)
    conversation = example["messages"]
    renamed = {"messages": conversation} if "conversations" in row else {}
    return {**renamed, "input_ids": _rendered(example, conversation, tokenizer, chat_template)}


def _reads_text(row: Row) -> bool:
    """Whether TRL tokenizes the text of a row: unless there are ``conversations`` of ``from`` and ``value``.

    >>> _reads_text({"text": "Q: Hi", "conversations": [{"role": "user", "content": "Hi"}]})
    True
    >>> _reads_text({"text": "Q: Hi", "conversations": [{"from": "user", "value": "Hi"}]})
    False
    """
    if row.get("text") is None or row.get("messages") is not None or row.keys() >= {*PAIR}:
        return False
    first = next(iter(row.get("conversations") or ()), None)
    return not (isinstance(first, Mapping) and "from" in first)


def _prompt_completion(example: Row, tokenizer: Any, chat_template: str | None) -> dict[str, list[int]]:
    prompt, completion = example["prompt"], example["completion"]
    if isinstance(prompt, str):
        before = _text_ids(prompt, tokenizer)
        ids = _text_ids(prompt + _with_eos(completion, tokenizer), tokenizer)
    else:
        before = _rendered(example, prompt, tokenizer, chat_template, add_generation_prompt=True)
        ids = _rendered(example, prompt + completion, tokenizer, chat_template)
    start = common_prefix_length(before, ids)
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * start + ids[start:]}


def _text_ids(text: str, tokenizer: Any) -> list[int]:
    """The ids of a text; a tokenizer that belongs to a processor adds the same tokens around it."""
    ids: list[int] = tokenizer_and_processor(tokenizer)[0](text)["input_ids"]
    return ids


def _with_eos(text: str, tokenizer: Any) -> str:
    eos = tokenizer_and_processor(tokenizer)[0].eos_token or ""
    return text if text.endswith(eos) else text + eos


def _rendered(
    example: Mapping[str, object],
    conversation: Any,
    tokenizer: Any,
    chat_template: str | None,
    add_generation_prompt: bool = False,
) -> list[int]:
    from jinja2.exceptions import TemplateError

    if not (chat_template or tokenizer.chat_template):
        raise UnsupportedError(
            f"{type(tokenizer).__name__} has no chat template, so messages cannot be rendered. Give the one that the "
            "model speaks as chat_template=, or a dataset with text and both markers."
        )
    processor = tokenizer_and_processor(tokenizer)[1]
    tools, variables = read_tools(example.get("tools")), read_variables(example.get("chat_template_kwargs"))
    try:
        encoded = tokenizer.apply_chat_template(
            conversation if processor is None else [with_parts(message) for message in conversation],
            tools=tools,
            tokenize=True,
            return_dict=True,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **(variables or {}),
        )
    except (TemplateError, *_TEMPLATE_FAULTS) as error:
        roles = ", ".join(str(message.get("role")) for message in conversation[:12])
        why = ". ".join(part for part in (str(error).rstrip("."), oddities(conversation).rstrip(".")) if part)
        raise _RefusedError(
            f"The chat template refuses a conversation of {len(conversation)} messages ({roles}): {why}. Repair or "
            "remove it, or give another chat_template."
        ) from error
    ids: list[int] = encoded["input_ids"] if processor is None else encoded["input_ids"][0]
    return ids
