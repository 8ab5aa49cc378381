"""Whether the mask reaches the loss: a few rows through the collator before the first step, and labels at the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask._compat import is_sft_trainer
from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.read import Row
from sft_mask.errors import LabelsChangedError

if TYPE_CHECKING:
    from torch import Tensor

_COLLATED_ROWS = 4


def check_collator(trainer: Any, dataset: object, split: str, *, may_train_all: bool = True) -> None:
    """Runs a few rows of a split through the trainer's collator: the trained labels must come out as they went in.

    A collator may shorten rows; it may not train a token more, nor drop all labels. Without ``may_train_all``, rows
    that train every token are refused too.

    Raises:
        LabelsChangedError: the collator drops or rebuilds labels, or the rows have none, or train every token.
    """
    name = type(trainer.data_collator).__name__
    _check_signature(trainer)
    rows = collator_rows(trainer, dataset)
    if any("labels" not in row for row in rows):
        raise LabelsChangedError(
            f"The rows of the {split} dataset have no labels (they have {', '.join(rows[0])}): it was replaced after "
            "train_on_responses_only. Call train_on_responses_only(trainer) again."
        )
    if not may_train_all and all(IGNORE_INDEX not in row["labels"] for row in rows):
        raise LabelsChangedError(
            f"Every token of the first {len(rows)} rows of the {split} dataset is trained: these labels are not the "
            "mask that was prepared. If you replaced the dataset, call train_on_responses_only again."
        )
    wanted = [_trained(row["labels"], row.get("seq_lengths")) for row in rows]
    try:
        given = trainer.data_collator([dict(row) for row in rows])
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise LabelsChangedError(
            f"The trainer's data collator ({name}) cannot collate rows that have labels ({type(error).__name__}: "
            f"{_first_line(error)}). {collator_way_out(trainer)}"
        ) from error
    labels = given.get("labels") if isinstance(given, Mapping) or hasattr(given, "get") else None
    if labels is None:
        raise LabelsChangedError(
            f"The trainer's data collator ({name}) returns no labels, so the loss would not see the mask. "
            f"{collator_way_out(trainer)}"
        )
    batch = np.asarray(labels)
    if _arrives(batch, wanted) or _arrives(batch, [_trained(row["labels"], None, first=True) for row in rows]):
        return
    went_in, came_out = sum(map(len, wanted)), int((batch != IGNORE_INDEX).sum())
    raise LabelsChangedError(
        f"The trainer's data collator ({name}) changes labels: {went_in} trained tokens went in, {came_out} came out. "
        f"One that rebuilds them from input_ids trains the prompts. {collator_way_out(trainer)}"
    )


def collator_way_out(trainer: Any) -> str:
    """What to do where a collator does not let labels through."""
    if is_sft_trainer(trainer):
        return "Use TRL's default collator, or one that pads the dataset's labels."
    tokenizer = "tokenizer" if getattr(trainer, "processing_class", None) is None else "trainer.processing_class"
    collator = f"transformers.DataCollatorForSeq2Seq({tokenizer})"
    return f"Use a collator that pads the dataset's labels: trainer.data_collator = {collator}."


def _first_line(error: Exception) -> str:
    return shorten(str(error).strip().partition("\n")[0], 120, placeholder=" …")


def _check_signature(trainer: Any) -> None:
    """Refuses a model for which the trainer would take the labels out of the rows."""
    if trainer.args.remove_unused_columns and "labels" not in signature_columns(trainer):
        raise LabelsChangedError(
            f"The forward of the trainer's {type(trainer.model).__name__} takes no labels, so the trainer removes them "
            "from the rows and the loss would not see the mask. Let forward take labels, or set "
            "trainer.args.remove_unused_columns = False if compute_loss reads them from the batch."
        )


def collator_rows(trainer: Any, dataset: Any, count: int = _COLLATED_ROWS) -> list[dict[str, Any]]:
    """The first rows as the trainer's dataloader hands them to the collator."""
    if hasattr(dataset, "__len__"):
        rows = [dataset[at] for at in range(min(count, len(dataset)))]
    else:
        rows = list(islice(dataset, count))
    if not trainer.args.remove_unused_columns:
        return [dict(row) for row in rows]
    names = signature_columns(trainer)
    return [{name: row[name] for name in names if name in row} for row in rows]


def signature_columns(trainer: Any) -> list[str]:
    """The columns that the trainer's dataloader keeps."""
    before = trainer._signature_columns
    try:
        trainer._set_signature_columns_if_needed()
        return list(trainer._signature_columns)
    finally:
        trainer._signature_columns = before


def _trained(labels: Iterable[Any], lengths: Sequence[int] | None, first: bool = False) -> list[int]:
    """Trained labels of a row; without the first of each document, which padding-free collators mask."""
    starts = set() if first else {0, *np.cumsum(lengths if lengths is not None else []).astype(int).tolist()}
    return [int(label) for at, label in enumerate(labels) if label != IGNORE_INDEX and at not in starts]


def _arrives(batch: np.ndarray[Any, Any], wanted: Sequence[list[int]]) -> bool:
    """Whether a batch trains what its rows did: all of it, or in each row its beginning or its end."""
    flat = batch[batch != IGNORE_INDEX].tolist()
    if flat == [token for row in wanted for token in row]:
        return True
    if not flat or batch.ndim != 2 or len(batch) != len(wanted):
        return False
    rows = [row[row != IGNORE_INDEX].tolist() for row in batch]
    return all(row in (full[: len(row)], full[len(full) - len(row) :]) for row, full in zip(rows, wanted, strict=True))


def check_labels(inputs: Row) -> None:
    """Checks a batch at the loss: it has labels, and each trained label is its own token.

    Args:
        inputs: the batch; its labels are plain ids.

    Raises:
        LabelsChangedError: there are no labels, or a trained label is not its token.
    """
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    shifted = inputs.get("shift_labels")
    if labels is None and shifted is not None and ids is not None:  # cut by sequence parallelism
        labels, ids = shifted[..., :-1], ids[..., 1:]
    if labels is None:
        raise LabelsChangedError(
            "A batch reached the loss without labels: the data collator drops them. Use a collator that keeps the "
            "labels of the dataset, such as TRL's default."
        )
    if ids is None or ids.shape != labels.shape:
        return
    moved: Tensor = (labels != IGNORE_INDEX) & (labels != ids)
    if not bool(moved.any()):
        return
    row, at = moved.nonzero()[0].tolist()
    raise LabelsChangedError(
        f"Row {row} of a batch trains label {int(labels[row, at])} at position {at}, where the token is "
        f"{int(ids[row, at])}: the labels are not aligned with input_ids. The data collator or the dataset changed "
        "them after train_on_responses_only."
    )
