"""``LogMask``: what is trained, in the tracker of the run."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from sft_mask.errors import DataError, SftMaskError, UnsupportedError, extra
from sft_mask.preview.source import preview_rows
from sft_mask.preview.terminal import draw_row
from sft_mask.tracking.pages import rows_page
from sft_mask.tracking.trackers import TABLES, Tracker, reports_to_tables, trackers_of
from sft_mask.trainer.group_loss import GroupLossHook
from sft_mask.trainer.summary import mask_numbers, mask_settings

with extra("train", "LogMask"):
    from transformers import TrainerCallback

if TYPE_CHECKING:
    from sft_mask.preview.rows import PreviewRow

logger = logging.getLogger(__name__)


class LogMask(TrainerCallback):
    """Logs what is trained to the trainer's trackers (``report_to``): trackio, tensorboard, wandb, mlflow.

    * at the first step, the numbers of ``trainer.mask_report``, the markers, the policy and the generation prompt, as
      configuration and summary of the run (``mask/train/share`` and so on), and again at the last step if they grew
      (of a stream they do);
    * at the first step, the first rows with their trained tokens marked (``mask/rows``);
    * wherever the trainer logs its loss, the mean loss of the end-of-turn tokens alone (``loss_end_of_turn``) and that
      of the other trained tokens (``loss_words``), not weighted; for an ``SFTTrainer`` of trl >= 1.15 without
      ``torch_compile``.

    Everything goes into the run that the trainer's own callback began, from the main process only. A tracker that fails
    is warned about, and training goes on.

    Args:
        trainer: a trainer that :func:`~sft_mask.train_on_responses_only` was called on.
        rows: how many rows are shown; 0 for none.

    Raises:
        UnsupportedError: the trainer was not masked.
        DataError: ``rows`` is not a number of rows.

    >>> from sft_mask import LogMask, train_on_responses_only
    >>> trainer = train_on_responses_only(trainer)  # doctest: +SKIP
    >>> trainer.add_callback(LogMask(trainer))  # doctest: +SKIP
    """

    def __init__(self, trainer: Any, rows: int = 8) -> None:
        require_mask(trainer, "LogMask")
        if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
            raise DataError(f"LogMask(rows={rows!r}) is not a number of rows. Give 0 or more.")
        self._trainer, self._rows = trainer, rows
        self._losses: GroupLossHook | None = None
        self._told: set[type[Tracker]] = set()
        self._numbers: Mapping[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._told.clear()
        self._losses = GroupLossHook.on(self._trainer)
        if state.is_world_process_zero and not reports_to_tables(self._trainer):
            logger.warning(
                "LogMask has nothing to log to: the trainer reports to none of %s. Set report_to='trackio' (or another "
                "of them) in its arguments, or leave LogMask out.",
                TABLES,
            )
        self._begin(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begin(state.global_step)  # a tracker whose callback comes after this one has begun its run only now

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if is_last_step(state, control) and mask_numbers(self._trainer.mask_report) != self._numbers:
            for tracker in trackers_of(self._trainer):
                tracker.safely(self._log_settings)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._losses is not None:
            self._losses.remove()

    def _begin(self, step: int) -> None:
        new = [tracker for tracker in trackers_of(self._trainer) if type(tracker) not in self._told]
        if not new:
            return
        shown = self._first_rows()
        table, page = [table_row(row) for row in shown], rows_page(shown)
        for tracker in new:
            self._told.add(type(tracker))
            tracker.safely(self._log_settings)
            if shown:
                tracker.safely(lambda each: each.table("mask/rows", table, page, step))

    def _first_rows(self) -> list[PreviewRow]:
        try:
            return list(islice(preview_rows(self._trainer), self._rows)) if self._rows else []
        except SftMaskError as error:
            logger.warning("LogMask shows no rows: %s", error)
            return []

    def _log_settings(self, tracker: Tracker) -> None:
        report = self._trainer.mask_report
        self._numbers = mask_numbers(report)
        tracker.settings(mask_settings(self._trainer), self._numbers, str(report))


def table_row(row: PreviewRow) -> dict[str, object]:
    """A row as a table holds it: its trained text in brackets."""
    return {
        "row": row.heading,
        "trained": row.trained_tokens,
        "tokens": len(row.input_ids),
        "text": draw_row(row, colour=False).plain,
    }


def is_last_step(state: Any, control: Any) -> bool:
    """Whether training ends after this step."""
    return bool(control.should_training_stop or state.global_step >= state.max_steps)


def require_mask(trainer: Any, name: str) -> None:
    """Refuses what was not masked.

    Raises:
        UnsupportedError: with the line that masks it.
    """
    if not hasattr(trainer, "callback_handler"):
        raise UnsupportedError(
            f"{name} needs the trainer itself, not {type(trainer).__name__}: "
            f"trainer.add_callback({name}(trainer, ...))."
        )
    if getattr(trainer, "_sft_mask", None) is None:
        raise UnsupportedError(
            f"{name} was given a trainer that was not masked. Call train_on_responses_only(trainer) before "
            f"trainer.add_callback({name}(trainer, ...))."
        )
