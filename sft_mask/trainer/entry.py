"""``train_on_responses_only``: one call between building the trainer and ``.train()``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_mask._compat import is_main_process
from sft_mask.core.policy import Policy, Reduction, combined
from sft_mask.data.masker import Masker, OnAmbiguous
from sft_mask.data.prelabelled import is_masked, is_weighted, keep_labels, refuse_late_policy
from sft_mask.data.setup import (
    build_masker,
    column_names,
    marker_summary,
    masker_for,
    read_tokenizer,
    readable,
    sample_rows,
)
from sft_mask.data.splits import mask_split
from sft_mask.data.stream import LabelBatch, batch_table, rows_of_batch
from sft_mask.errors import DataError, MarkerError, NothingToTrainError, UnsupportedError
from sft_mask.trainer.checks import check_collator
from sft_mask.trainer.read import Plan, read_trainer
from sft_mask.trainer.refusals import normalizes_by_tokens, refuse_with_weights

if TYPE_CHECKING:
    from sft_mask.data.batches import Tally
    from sft_mask.trainer.hook import MaskState

logger = logging.getLogger(__name__)


def train_on_responses_only(
    trainer: Any = None,
    instruction_part: object = None,
    response_part: object = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
    mask_out_tokens: str | Sequence[str] | None = None,
    *,
    policy: Policy | None = None,
    prompt_weight: float | None = None,
    reduction: Reduction | None = None,
    on_ambiguous: OnAmbiguous = "error",
    chat_template: str | None = None,
) -> Any:
    """Trains a built ``trl.SFTTrainer`` on the model's own words only.

    Labels of ``train_dataset`` and ``eval_dataset`` become response-only: the token itself where the model would have
    to sample it at inference (the answer and the stop token that ends it), ``IGNORE_INDEX`` everywhere else. A label
    that was ``IGNORE_INDEX`` before stays so. Rows that would train nothing are dropped and counted. Later
    ``evaluate(other)`` and ``predict(other)`` are masked alike, and the ``compute_loss`` path checks that the mask
    arrives. A second call starts from the data as it was before the first, so calling it twice is calling it once.

    Args:
        trainer: a built ``SFTTrainer``; not needed with ``return_function`` and a ``tokenizer``.
        instruction_part: text before the user's words, several texts, or token ids. Leave both parts out to have them
            read from the chat template.
        response_part: text before the model's words, likewise.
        force_match: kept for callers of the function of the same name elsewhere; matching is always exact.
        tokenizer: the tokenizer, where the trainer's ``processing_class`` is not it.
        return_function: return a function from a batch (``{"input_ids": rows}``) to ``{"labels": rows}`` instead.
        num_proc: accepted and not needed: labelling is one vectorised pass over Arrow buffers.
        last_response_only: train only the last answer of each conversation; short for ``Policy(turns="last")``.
        mask_out_tokens: texts that are never trained, wherever they stand in an answer (``["</think>"]``); short for
            ``Policy(regions=[Region(text=...)])``.
        policy: which turns, roles, regions and stops are trained, and how much they count.
        prompt_weight: weight of the tokens outside of the answers; short for ``Policy(prompt_weight=...)``.
        reduction: what counts the same in the loss, every ``"token"``, ``"turn"`` or ``"sequence"``; short for
            ``Policy(reduction=...)``.
        on_ambiguous: what happens to a row whose markers and messages disagree and that the chat template does not
            render to its ids: ``"error"``, ``"drop"`` or ``"mask"``.
        chat_template: the template that rendered the rows, where it is not the trainer's.

    Returns:
        The same trainer, with ``trainer.mask_report``.

    Raises:
        MarkerError: one marker for both roles, an empty one, only one of two, or one that occurs in no row.
        DetectionError: no markers were given and the chat template does not show them.
        DataError: no train dataset, no ``input_ids``, an empty split, or a malformed row.
        NothingToTrainError: every row of a split would be masked.
        UnsupportedError: another trainer, images, rows made on the fly, a slow tokenizer, a policy that needs messages
            for rows without them, or weights with a loss that would ignore them.
        LabelsChangedError: the trainer's collator does not let the labels through.

    The trainer is left as it was when anything is raised.
    """
    del force_match, num_proc
    chosen = combined(policy, last_response_only, mask_out_tokens, prompt_weight, reduction)
    settings = {
        "instruction_part": instruction_part,
        "response_part": response_part,
        "policy": chosen,
        "on_ambiguous": on_ambiguous,
    }
    if return_function:
        return _label_function(trainer, tokenizer, chat_template, settings)
    plan = read_trainer(trainer, tokenizer, chat_template)
    refuse_late_policy(plan.splits["train"], chosen)
    if chosen.is_weighted:
        refuse_with_weights(trainer)
    way = _way(plan, settings)
    masked = {name: way.mask(split, name) for name, split in plan.splits.items()}
    if way.weighted:
        refuse_with_weights(trainer)
    check_collator(trainer, masked["train"][0])
    _assign(trainer, masked, _state(trainer, plan, way, masked))
    return trainer


@dataclass
class _Way:
    """How the splits of one call are masked.

    Attributes:
        plan: what was read from the trainer.
        masker: decides labels; the error that stands in its way where no split needs one.
        key: stands for the masker in fingerprints.
        weighted: whether any split's labels carry weights.
    """

    plan: Plan
    masker: Masker | MarkerError | DataError
    key: tuple[object, ...] = ()
    weighted: bool = False

    def mask(self, split: Any, name: str) -> tuple[Any, Tally]:
        """Masks a split of the trainer; one that came masked stays as it is."""
        return self._keep(split, name, False) if is_masked(split) else self._mask_raw(split, name, False)

    def mask_later(self, split: Any, name: str, *, keep_all_rows: bool) -> tuple[Any, Tally, bool]:
        """Masks a dataset that the trainer is given later; also says whether any labels carry weights by now."""
        done = is_masked(split) or is_weighted(split)
        masked, tally = (self._keep if done else self._mask_raw)(split, name, keep_all_rows)
        return masked, tally, self.weighted

    def _keep(self, split: Any, name: str, keep_all_rows: bool) -> tuple[Any, Tally]:
        size = self.plan.toolkit.vocabulary.size
        kept, tally, weighted = keep_labels(split, size, keep_all_rows=keep_all_rows)
        if not tally.report.trained_tokens:
            raise NothingToTrainError(
                f"All {len(split)} rows of the {name} dataset, which mask_dataset made, have nothing left to train: "
                "truncation ate the answers. Raise max_length, or use truncation_mode='keep_end'."
            )
        self.weighted |= weighted
        return kept, tally

    def _mask_raw(self, split: Any, name: str, keep_all_rows: bool) -> tuple[Any, Tally]:
        if not isinstance(self.masker, Masker):
            raise self.masker
        self.weighted |= self.masker.carries_weights(column_names(split))
        pieces = self.plan.pieces if name == "train" else self.plan.eval_pieces
        # predict prepares nothing, so it cuts nothing
        masker = self.masker.for_pieces(None if keep_all_rows else pieces)
        limit = self.plan.max_length
        return mask_split(split, masker, (*self.key, pieces), name, max_length=limit, keep_all_rows=keep_all_rows)


def _way(plan: Plan, settings: Mapping[str, Any]) -> _Way:
    train = plan.splits["train"]
    limited = {**settings, "max_length": plan.max_length, "prompt_answers": plan.prompt_answers}
    try:
        return _Way(plan, *masker_for(plan.toolkit, sample_rows(train), train, "the train dataset", **limited))
    except (MarkerError, DataError) as error:
        if all(is_masked(split) for split in plan.splits.values()):
            return _Way(plan, error)  # raised if another dataset is evaluated
        raise


def _state(trainer: Any, plan: Plan, way: _Way, masked: Mapping[str, tuple[Any, Tally]]) -> MaskState:
    from sft_mask.trainer.hook import MaskState

    streams = any(not hasattr(split, "__len__") for split, _ in masked.values())
    read_elsewhere = trainer.args.dataloader_num_workers > 0 or trainer.accelerator.num_processes > 1
    masker = way.masker if isinstance(way.masker, Masker) else None
    return MaskState(
        mask=way.mask_later,
        tallies={name: tally for name, (_, tally) in masked.items()},
        markers=marker_summary(masker) if masker is not None else None,
        text=plan.toolkit.vocabulary.text,
        originals=[(split, plan.splits[name]) for name, (split, _) in masked.items()],
        sees_all_rows=not (streams and read_elsewhere),
        stops_expected=masker is None or masker.policy.every_turn_stops,
        weighted=way.weighted,
        masker=masker,
    )


def _assign(trainer: Any, masked: Mapping[str, tuple[Any, Tally]], state: MaskState) -> None:
    """The only place where the trainer is changed."""
    from sft_mask.trainer.hook import hooked_class

    if normalizes_by_tokens(trainer):  # so that the step's number of tokens is counted also for models that ignore it
        trainer.model_accepts_loss_kwargs = True
    trainer.__class__ = hooked_class(type(trainer))  # first, for it is all that could fail
    trainer._sft_mask = state
    trainer.train_dataset = masked["train"][0]
    if isinstance(trainer.eval_dataset, dict):
        trainer.eval_dataset = {name: masked[f"eval:{name}"][0] for name in trainer.eval_dataset}
    elif "eval" in masked:
        trainer.eval_dataset = masked["eval"][0]
    if is_main_process():
        for warning in state.report().warnings:
            logger.warning(warning)


def _label_function(trainer: Any, tokenizer: Any, chat_template: str | None, settings: Mapping[str, Any]) -> Any:
    tokenizer = tokenizer or getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise UnsupportedError("return_function=True needs a tokenizer: give tokenizer=, or a trainer that has one.")
    return LabelFunction(tokenizer, chat_template, settings)


class LabelFunction:
    """Batch to labels, for any loop or ``datasets.map(batched=True)``; what ``return_function=True`` gives.

    Markers that are not complete without rows (a tokenizer without a chat template) are settled on the first batch.
    """

    def __init__(self, tokenizer: Any, chat_template: str | None, settings: Mapping[str, Any]) -> None:
        self._given = (tokenizer, chat_template, dict(settings))
        self._toolkit = read_tokenizer(tokenizer, chat_template)
        build_masker(self._toolkit, [], **settings)  # refuses bad markers now, not at the first batch
        self._label: LabelBatch | None = None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        if self._label is None:
            rows = readable(row for row in batch_table(batch)["input_ids"].to_pylist() if row)
            source = rows_of_batch(batch)
            self._label = LabelBatch(masker_for(self._toolkit, rows, source, "the batch", **self._given[2])[0])
        return self._label(batch)

    def __reduce__(self) -> tuple[Any, ...]:
        """What was given, without what was learnt since: ``datasets`` sees the same function before and after a map."""
        return LabelFunction, self._given
