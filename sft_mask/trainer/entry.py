"""``train_on_responses_only``: one call between building the trainer and ``.train()``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sft_mask._compat import is_main_process
from sft_mask.core.policy import Policy, Reduction, combined
from sft_mask.data.prelabelled import is_masked, refuse_late_policy
from sft_mask.data.read.formats import readable, sample_rows
from sft_mask.data.setup import MaskSettings, build_masker, masker_for, read_tokenizer
from sft_mask.data.splits import SplitMasker
from sft_mask.data.stream import LabelBatch, batch_table, rows_of_batch
from sft_mask.errors import DataError, MarkerError, UnsupportedError
from sft_mask.trainer.checks import check_collator
from sft_mask.trainer.parallel import what_depends_on_the_ranks
from sft_mask.trainer.read import TrainerInfo, collates_labels, read_trainer, speaker
from sft_mask.trainer.refusals import normalizes_by_tokens, refuse_with_weights

if TYPE_CHECKING:
    from sft_mask.data.accounting.stats import SplitStats
    from sft_mask.data.masker import Masker, OnAmbiguous
    from sft_mask.report import MaskReport
    from sft_mask.trainer.collated import CollatedState
    from sft_mask.trainer.hook import MaskState

logger = logging.getLogger(__name__)


def train_on_responses_only(
    trainer: object = None,
    instruction_part: object = None,
    response_part: object = None,
    force_match: bool = True,
    tokenizer: object = None,
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
    """Makes a built ``trl.SFTTrainer`` train on the assistant's answers only, or any other ``transformers.Trainer``.

    Labels of ``train_dataset`` and ``eval_dataset`` become response-only: the token itself where the model has to
    sample it at inference (the answer and the end-of-turn token after it), ``IGNORE_INDEX`` everywhere else. A label
    that is already ``IGNORE_INDEX`` is kept. Rows that would train nothing are dropped and counted. Datasets given to
    ``evaluate`` and ``predict`` later are masked the same way, and ``compute_loss`` checks that the mask arrives. A
    second call starts from the data as it was before the first, so calling it twice is the same as calling it once.
    Rows with images get their labels in the collator, so there it is the collator that changes
    (:class:`~sft_mask.ResponseOnlyCollator`), and a row that trains nothing stays in its batch, masked.

    Args:
        trainer: a built ``SFTTrainer``, or another ``transformers.Trainer`` whose datasets have ``input_ids`` and whose
            collator pads labels; not needed with ``return_function`` and a ``tokenizer``.
        instruction_part: text before the user's words, several texts, or token ids. Leave both parts out to have them
            read from the chat template.
        response_part: text before the assistant's words, likewise.
        force_match: accepted for compatibility with other functions of this name; matching is always exact.
        tokenizer: the tokenizer, if it is not the trainer's ``processing_class``.
        return_function: return a function from a batch (``{"input_ids": rows}``) to ``{"labels": rows}`` instead.
        num_proc: accepted for compatibility, unused: labelling is one vectorised pass over Arrow buffers.
        last_response_only: train only the last answer of each conversation; short for ``Policy(turns="last")``.
        mask_out_tokens: texts that are never trained, wherever they occur in an answer (``["</think>"]``); short for
            ``Policy(regions=[Region(text=...)])``.
        policy: which turns, roles, regions and end-of-turn tokens are trained, and how much they count.
        prompt_weight: weight of the tokens outside the answers; short for ``Policy(prompt_weight=...)``.
        reduction: what has the same weight in the loss, every ``"token"``, ``"turn"`` or ``"sequence"``; short for
            ``Policy(reduction=...)``.
        on_ambiguous: what happens to a row whose markers and messages disagree, and which is not what the chat template
            renders: ``"error"``, ``"drop"`` or ``"mask"``.
        chat_template: the template that rendered the rows, if it is not the trainer's.

    Returns:
        The same trainer, with ``trainer.mask_report``.

    Raises:
        MarkerError: one marker for both roles, an empty one, only one of two, or one that occurs in no row.
        DetectionError: no markers were given and the chat template does not show them.
        DataError: no train dataset, no ``input_ids``, an empty split, or a malformed row.
        NothingToTrainError: every row of a split would be masked.
        UnsupportedError: another trainer, rows made on the fly, a slow tokenizer, a policy that needs messages
            for rows without them, or weights with a loss that would ignore them.
        LabelsChangedError: the trainer's collator does not let the labels through.

    The trainer is left as it was when anything is raised.
    """
    del force_match, num_proc
    chosen = combined(policy, last_response_only, mask_out_tokens, prompt_weight, reduction)
    settings = MaskSettings(instruction_part, response_part, chosen, on_ambiguous)
    if return_function:
        return _label_function(trainer, tokenizer, chat_template, settings)
    if collates_labels(trainer):
        return _mask_while_collating(trainer, tokenizer, chat_template, settings)
    info = read_trainer(trainer, tokenizer, chat_template)
    refuse_late_policy(info.splits["train"], chosen)
    if chosen.is_weighted:
        refuse_with_weights(trainer)
    splits = _split_masker(info, settings)
    masked = {name: splits.mask(split, name) for name, split in info.splits.items()}
    if splits.weighted:
        refuse_with_weights(trainer)
    check_collator(trainer, masked["train"][0], "train")
    _assign(trainer, info, masked, splits)
    return trainer


def _mask_while_collating(trainer: Any, tokenizer: object, chat_template: str | None, settings: MaskSettings) -> object:
    """The same for rows with images: the trainer's collator makes the labels, and another one is put around it."""
    from sft_mask.trainer.collated import collated_state

    if settings.policy.is_weighted:
        refuse_with_weights(trainer)
    template = chat_template or getattr(trainer, "chat_template", None)
    state = collated_state(trainer, speaker(trainer, tokenizer), settings, template)
    if state.weighted:
        refuse_with_weights(trainer)
    _hook(trainer, state)
    trainer.data_collator = state.collator
    _warn(trainer, state.report())
    return trainer


def _split_masker(info: TrainerInfo, settings: MaskSettings) -> SplitMasker:
    train = info.splits["train"]
    complete = replace(settings, max_length=info.max_length, prompt_answers=info.prompt_answers)
    masker: Masker | MarkerError | DataError
    try:
        masker = masker_for(info.tokenizer, sample_rows(train), complete, train, "the train dataset")
    except (MarkerError, DataError) as error:
        if not all(is_masked(split) for split in info.splits.values()):
            raise
        masker = error  # raised if another dataset is evaluated
    return SplitMasker(masker, info.max_length, info.cutting, info.eval_cutting)


def _assign(trainer: Any, info: TrainerInfo, masked: Mapping[str, tuple[Any, SplitStats]], splits: SplitMasker) -> None:
    """The only place where the trainer is changed."""
    from sft_mask.trainer.hook import MaskState

    state = MaskState(
        splits=splits,
        stats={name: stats for name, (_, stats) in masked.items()},
        originals=[(split, info.splits[name]) for name, (split, _) in masked.items()],
        tokenizer=info.tokenizer.tokenizer,
        collator=trainer.data_collator,
    )
    _hook(trainer, state)  # first: nothing after it can fail
    trainer.train_dataset = masked["train"][0]
    if isinstance(trainer.eval_dataset, dict):
        trainer.eval_dataset = {name: masked[f"eval:{name}"][0] for name in trainer.eval_dataset}
    elif "eval" in masked:
        trainer.eval_dataset = masked["eval"][0]
    _warn(trainer, state.report())


def _hook(trainer: Any, state: MaskState | CollatedState) -> None:
    from sft_mask.trainer.hook import hooked_class

    if normalizes_by_tokens(trainer):  # so that the step's number of tokens is counted also for models that ignore it
        trainer.model_accepts_loss_kwargs = True
    trainer.__class__ = hooked_class(type(trainer))
    trainer._sft_mask = state


def _warn(trainer: Any, report: MaskReport) -> None:
    if is_main_process():
        for warning in (*report.warnings, *what_depends_on_the_ranks(trainer)):
            logger.warning(warning)


def _label_function(
    trainer: object, tokenizer: object, chat_template: str | None, settings: MaskSettings
) -> LabelFunction:
    tokenizer = tokenizer or getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise UnsupportedError("return_function=True needs a tokenizer: give tokenizer=, or a trainer that has one.")
    return LabelFunction(tokenizer, chat_template, settings)


class LabelFunction:
    """Batch to labels, for any loop or ``datasets.map(batched=True)``; what ``return_function=True`` gives.

    Without a chat template the markers are completed from the first batch.
    """

    def __init__(self, tokenizer: object, chat_template: str | None, settings: MaskSettings) -> None:
        self._given = (tokenizer, chat_template, settings)
        self._info = read_tokenizer(tokenizer, chat_template)
        build_masker(self._info, [], settings)  # refuses bad markers now, not at the first batch
        self._label: LabelBatch | None = None

    def __call__(self, batch: Mapping[str, object]) -> dict[str, object]:
        if self._label is None:
            rows = readable(row for row in batch_table(batch)["input_ids"].to_pylist() if row)
            self._label = LabelBatch(masker_for(self._info, rows, self._given[2], rows_of_batch(batch), "the batch"))
        return self._label(batch)

    def __reduce__(self) -> tuple[object, ...]:
        """What was given, without what was learnt since: ``datasets`` hashes the same function before and after."""
        return LabelFunction, self._given
