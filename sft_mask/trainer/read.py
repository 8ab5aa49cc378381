"""What is read from a built trainer, once, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft_mask.core.packing import RowCutting
from sft_mask.data.dataset import check_columns
from sft_mask.data.read.formats import named_splits
from sft_mask.data.setup import TokenizerInfo, read_tokenizer
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.trainer.kinds import check_kind, check_rows


@dataclass(frozen=True, slots=True)
class TrainerInfo:
    """What was read from a trainer; nothing of it is changed before every split is masked.

    Attributes:
        tokenizer: the tokenizer and its chat template.
        splits: by name: ``train``, and ``eval`` or one ``eval:NAME`` for each of a dict.
        max_length: where TRL truncated the rows, for errors.
        cutting: how TRL cut the train rows where it may have cut inside an answer.
        eval_cutting: likewise for the evaluation rows.
        prompt_answers: whether answers in a prompt count like those of its completion (``completion_only_loss=False``).
    """

    tokenizer: TokenizerInfo
    splits: Mapping[str, object]
    max_length: int | None
    cutting: RowCutting | None
    eval_cutting: RowCutting | None
    prompt_answers: bool


def read_trainer(
    trainer: object, tokenizer: object, chat_template: str | None, verb: str = "train_on_responses_only"
) -> TrainerInfo:
    """Reads a built trainer. What an earlier call masked is taken as it was before that call.

    Args:
        trainer: an ``SFTTrainer``, or another ``transformers.Trainer`` over tokenized rows.
        tokenizer: instead of the trainer's ``processing_class``.
        chat_template: instead of the tokenizer's.
        verb: the function that the trainer was given to, for errors.

    Raises:
        UnsupportedError: another kind of trainer or model, or no tokenizer.
        DataError: there is no train dataset, or a split has no ``input_ids`` or no rows.
    """
    is_trls = check_kind(trainer, verb)
    built: Any = trainer
    if built.train_dataset is None:
        raise DataError(f"The trainer has no train_dataset. Give it one before {verb}.")
    tokenizer = speaker(built, tokenizer) or getattr(getattr(built, "_sft_mask", None), "tokenizer", None)
    if tokenizer is None:
        raise UnsupportedError(
            f"The trainer has no processing_class. Give its tokenizer: {verb}(trainer, tokenizer=...)."
        )
    info = read_tokenizer(tokenizer, chat_template or getattr(built, "chat_template", None))
    splits = _splits(built)
    for name, split in splits.items():
        check_rows(split, name, split_attribute(name))
        if hasattr(split, "__len__"):
            check_columns(split, name)
    if not is_trls:
        return TrainerInfo(info, splits, None, None, None, False)
    args = built.args
    cutting = _cutting(built, args.packing)
    eval_cutting = _cutting(built, args.packing if args.eval_packing is None else args.eval_packing)
    length = getattr(args, "max_length", None)
    return TrainerInfo(info, splits, length, cutting, eval_cutting, args.completion_only_loss is False)


def collates_labels(trainer: object, verb: str = "train_on_responses_only") -> bool:
    """Whether a trainer makes its labels while collating: TRL does for datasets with a column of images.

    Raises:
        UnsupportedError: another kind of trainer or model.
    """
    return check_kind(trainer, verb) and bool(getattr(trainer, "_is_vision_dataset", False))


def speaker(trainer: Any, given: object) -> object:
    """The tokenizer or processor that rendered the rows: the trainer's, unless another tokenizer was given."""
    own = trainer.processing_class
    return own if given is None or getattr(own, "tokenizer", own) is given else given


def split_attribute(name: str) -> str:
    """How a split of a trainer is written in Python.

    >>> split_attribute("train"), split_attribute("eval"), split_attribute("eval:chats")
    ('trainer.train_dataset', 'trainer.eval_dataset', "trainer.eval_dataset['chats']")
    """
    kind, _, key = name.partition(":")
    return f"trainer.{kind}_dataset" + (f"[{key!r}]" if key else "")


def _splits(trainer: Any) -> dict[str, object]:
    """The splits by name, as they were before an earlier call."""
    state, given = getattr(trainer, "_sft_mask", None), named_splits(trainer)
    return given if state is None else {name: state.original(split) for name, split in given.items()}


def _cutting(trainer: Any, packing: bool) -> RowCutting | None:
    """How a trainer cut its rows; ``None`` where every row begins where a conversation does."""
    args = trainer.args
    if args.max_length is None or trainer._skip_prepare_dataset:
        return None
    match packing, args.packing_strategy if packing else args.truncation_mode:
        case True, "wrapped":
            return RowCutting("wrapped", args.max_length)
        case True, "bfd_split":
            return RowCutting("split", args.max_length)
        case False, "keep_end":
            return RowCutting("tail", args.max_length)
    return None
