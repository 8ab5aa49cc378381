"""The trackers that a trainer reports to, each through its public functions and the run that the trainer began.

``report_to`` puts one callback of ``transformers`` for each tracker into the trainer; where that callback is, and its
run has begun, there is a tracker here. Nothing is begun or ended here.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeAlias

from sft_mask.errors import extra

with extra("train", "A tracker"):
    from transformers.integrations.integration_utils import (
        MLflowCallback,
        TensorBoardCallback,
        TrackioCallback,
        WandbCallback,
    )

logger = logging.getLogger(__name__)

TABLES = "trackio, tensorboard, wandb and mlflow"
"""The trackers that get tables; every other one gets the numbers that the trainer logs."""

Table: TypeAlias = Sequence[Mapping[str, object]]
"""Rows of a table, all with the same columns."""


@dataclass(frozen=True, slots=True)
class Tracker(ABC):
    """One tracker with its run.

    Attributes:
        run: what the tracker's own package logs with.
        errors: what it raises where its server or its disk fails.
    """

    run: Any
    errors: tuple[type[Exception], ...] = ()

    def safely(self, log: Callable[[Tracker], None]) -> None:
        """Logs something; a failure of the tracker becomes a warning, so that training goes on."""
        failures: tuple[type[Exception], ...] = (*self.errors, OSError, RuntimeError, ValueError)
        try:
            log(self)
        except failures as error:
            logger.warning("%s could not log: %s: %s", type(self).__name__, type(error).__name__, error)

    @abstractmethod
    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        """Logs what holds for the whole run: settings, numbers, and both as a text for people."""

    @abstractmethod
    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        """Logs a table; ``page`` is the same as HTML."""


class Trackio(Tracker):
    """``run`` is the module ``trackio``."""

    __slots__ = ()

    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        del text  # its configuration shows everything; there is no summary
        self.run.config["mask"] = {**values, **_nested(numbers)}

    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        # Its tables cut long texts; older versions have nothing else.
        shown = self.run.Html(page) if hasattr(self.run, "Html") else self.run.Table(data=[dict(row) for row in rows])
        self.run.log({name: shown, "train/global_step": step})


class Wandb(Tracker):
    """``run`` is ``wandb.run``."""

    __slots__ = ()

    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        del text
        self.run.config.update({"mask": dict(values)}, allow_val_change=True)
        self.run.summary.update(dict(numbers))

    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        del page
        wandb = import_module("wandb")
        columns = list(rows[0])
        data = [[row[column] for column in columns] for row in rows]
        self.run.log({name: wandb.Table(columns=columns, data=data), "train/global_step": step})


class TensorBoard(Tracker):
    """``run`` is the callback's ``SummaryWriter``."""

    __slots__ = ()

    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        del values
        self.run.add_text("mask/report", _as_code(text))
        for name, value in numbers.items():
            if name.endswith("/share"):
                self.run.add_scalar(name, value)

    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        del page
        self.run.add_text(name, "\n\n".join(map(_as_markdown, rows)), step)
        self.run.flush()


class MLflow(Tracker):
    """``run`` is the module ``mlflow``."""

    __slots__ = ()

    def settings(self, values: Mapping[str, object], numbers: Mapping[str, float], text: str) -> None:
        for name, value in values.items():
            self.run.log_param(f"mask/{name}", str(value)[:500])
        self.run.log_metrics(dict(numbers))
        self.run.log_text(text, "mask/report.txt")

    def table(self, name: str, rows: Table, page: str, step: int) -> None:
        del rows
        self.run.log_text(page, f"{name}_{step}.html")


def reports_to_tables(trainer: Any) -> bool:
    """Whether a trainer reports to a tracker that gets tables."""
    return any(isinstance(each, tuple(_TRACKERS)) for each in trainer.callback_handler.callbacks)


def trackers_of(trainer: Any) -> Iterator[Tracker]:
    """The trackers whose run has begun; none on other processes than the main one."""
    if not trainer.is_world_process_zero():
        return
    for callback in trainer.callback_handler.callbacks:
        for kind, tracker in _TRACKERS.items():
            if isinstance(callback, kind):
                found = tracker(callback)
                if found is not None:
                    yield found


def _trackio(callback: TrackioCallback) -> Tracker | None:
    del callback
    trackio = import_module("trackio")
    return None if trackio.context_vars.current_run.get() is None else Trackio(trackio)


def _wandb(callback: WandbCallback) -> Tracker | None:
    del callback
    wandb = import_module("wandb")
    return None if wandb.run is None else Wandb(wandb.run, (wandb.Error,))


def _tensorboard(callback: TensorBoardCallback) -> Tracker | None:
    return None if callback.tb_writer is None else TensorBoard(callback.tb_writer)


def _mlflow(callback: MLflowCallback) -> Tracker | None:
    del callback
    mlflow = import_module("mlflow")
    return None if mlflow.active_run() is None else MLflow(mlflow, (mlflow.MlflowException,))


_TRACKERS: dict[type, Callable[[Any], Tracker | None]] = {
    TrackioCallback: _trackio,
    WandbCallback: _wandb,
    TensorBoardCallback: _tensorboard,
    MLflowCallback: _mlflow,
}


def _nested(numbers: Mapping[str, float]) -> dict[str, object]:
    """``mask/train/share`` as ``{"train": {"share": ...}}``."""
    made: dict[str, Any] = {}
    for name, value in numbers.items():
        split, count = name.removeprefix("mask/").rsplit("/", 1)
        made.setdefault(split, {})[count] = value
    return made


def _as_code(text: str) -> str:
    """A block of code in Markdown, in which nothing of the text is markup."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _as_markdown(row: Mapping[str, object]) -> str:
    """A row: its short values on a line, each long text as a block of code."""
    short = [f"{name} {value}" for name, value in row.items() if not isinstance(value, str)]
    texts = [f"{name}\n\n{_as_code(value)}" for name, value in row.items() if isinstance(value, str)]
    return "\n\n".join([" · ".join(short), *texts])
