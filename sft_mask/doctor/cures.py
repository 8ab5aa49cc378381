"""What to do about wrong labels; the lines of Python in a cure can be run as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_mask._compat import is_sft_trainer
from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import LabelsChangedError
from sft_mask.trainer.checks import check_collator, collator_way_out
from sft_mask.trainer.read import split_attribute

if TYPE_CHECKING:
    from datasets import Dataset

_TRLS_COLLATOR = "Build the trainer without data_collator=: TRL's own keeps input_ids and labels as they are."


@dataclass(frozen=True, slots=True)
class Cures:
    """The cures of one split.

    Attributes:
        mask: for labels that train too much.
        afresh: for labels that were masked where they should not be; such labels are kept by another call.
        collator: for a data collator that changes what the dataset holds.
        longer: for rows that are cut.
    """

    mask: str
    afresh: str
    collator: str
    longer: str


def cures_of(trainer: Any, split: str, rows: Dataset) -> Cures:
    """The cures for a split, of which some rows are tried on the collator."""
    is_trls, attribute = is_sft_trainer(trainer), split_attribute(split)
    collator = _TRLS_COLLATOR if is_trls else collator_way_out(trainer)
    tokenizer = "" if trainer.processing_class is not None else ", tokenizer=tokenizer"
    in_rows = "input_ids" in rows.column_names  # else the collator makes them, and its labels
    keeps = hasattr(trainer, "_sft_mask") or not in_rows or _keeps_masks(trainer, rows)
    first = "Call" if keeps else f"{collator} Then call"
    call = f"{first} train_on_responses_only(trainer{tokenizer})"
    return Cures(
        mask=f"{call} between building the trainer and .train().",
        afresh=(
            "Labels that are masked already are kept, so if they were not meant (Policy says what is), remove them: "
            f'{attribute} = {attribute}.remove_columns("labels"). {call}.'
        ),
        collator=collator,
        longer="Build the trainer with a larger max_length" if is_trls else "Tokenize with a larger max_length",
    )


def _keeps_masks(trainer: Any, rows: Dataset) -> bool:
    """Whether the collator would let labels through that mask the first half of each row."""
    bare = rows.remove_columns("labels") if "labels" in rows.column_names else rows
    labels = [
        [IGNORE_INDEX] * (len(ids) // 2) + list(ids[len(ids) // 2 :]) for ids in rows.with_format(None)["input_ids"]
    ]
    try:
        check_collator(trainer, bare.add_column("labels", labels), "train")
    except LabelsChangedError:
        return False
    return True
