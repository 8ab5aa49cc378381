"""What is read from a built trainer, once, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sft_mask._compat import is_sft_trainer
from sft_mask.core.packing import Cutting, Pieces
from sft_mask.data.dataset import check_columns
from sft_mask.data.setup import Toolkit, read_tokenizer
from sft_mask.errors import DataError, UnsupportedError


@dataclass(frozen=True)
class Plan:
    """What was read from a trainer; nothing of it is changed before every split is masked.

    Attributes:
        toolkit: the tokenizer and its chat template.
        splits: by name: ``train``, and ``eval`` or one ``eval:NAME`` for each of a dict.
        max_length: where TRL truncated the rows, for errors.
        pieces: how TRL cut the train rows where it may have cut inside an answer.
        eval_pieces: likewise of the rows to evaluate on.
        prompt_answers: whether answers in a prompt count like those of its completion (``completion_only_loss=False``).
    """

    toolkit: Toolkit
    splits: Mapping[str, Any]
    max_length: int | None
    pieces: Pieces | None
    eval_pieces: Pieces | None
    prompt_answers: bool


def read_trainer(trainer: Any, tokenizer: Any, chat_template: str | None) -> Plan:
    """Reads a built trainer. What an earlier call masked is taken as it was before that call.

    Raises:
        UnsupportedError: not an ``SFTTrainer``, or one for images.
        DataError: there is no train dataset, or a split has no ``input_ids`` or no rows.
    """
    if not is_sft_trainer(trainer):
        raise UnsupportedError(
            f"train_on_responses_only needs a trl.SFTTrainer, not {type(trainer).__name__}. For another trainer or "
            "your own loop, mask the data before: mask_dataset(dataset, tokenizer)."
        )
    built: Any = trainer
    if getattr(built, "_is_vision_dataset", False):
        raise UnsupportedError(
            "The trainer's dataset holds images: TRL makes its labels while collating, and they are not masked here. "
            "Use TRL's assistant_only_loss, or train on text."
        )
    if built.train_dataset is None:
        raise DataError("The trainer has no train_dataset. Give it one before train_on_responses_only.")
    template = chat_template or getattr(built, "chat_template", None)
    toolkit = read_tokenizer(tokenizer or built.processing_class, template)
    state = getattr(built, "_sft_mask", None)
    given = {"train": built.train_dataset, **_eval_splits(built.eval_dataset)}
    splits = {name: state.original(split) if state is not None else split for name, split in given.items()}
    for name, split in splits.items():
        if hasattr(split, "__len__"):
            check_columns(split, name)
    packs_evals = built.args.packing if built.args.eval_packing is None else built.args.eval_packing
    pieces, eval_pieces = (_pieces(built, packing) for packing in (built.args.packing, packs_evals))
    length = getattr(built.args, "max_length", None)
    return Plan(toolkit, splits, length, pieces, eval_pieces, built.args.completion_only_loss is False)


def _pieces(trainer: Any, packing: bool) -> Pieces | None:
    """How a trainer cut its rows; ``None`` where every row begins where a conversation does."""
    args = trainer.args
    if args.max_length is None or trainer._skip_prepare_dataset:
        return None
    if packing:
        cuttings: dict[str, Cutting] = {"wrapped": "wrapped", "bfd_split": "split"}
        cutting = cuttings.get(args.packing_strategy)
    else:
        cutting = "tail" if args.truncation_mode == "keep_end" else None
    return Pieces(cutting, args.max_length) if cutting is not None else None


def _eval_splits(evals: Any) -> dict[str, Any]:
    if evals is None:
        return {}
    return {f"eval:{name}": split for name, split in evals.items()} if isinstance(evals, dict) else {"eval": evals}
