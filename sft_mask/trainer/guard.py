"""The guard at the loss: a batch that cannot come from the mask that was prepared is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import LabelsChangedError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools


def check_labels(inputs: Mapping[str, Any], seen: Bools | None, text: Callable[[list[int]], str]) -> None:
    """Raises if a batch cannot come from the mask that was prepared.

    Args:
        inputs: the batch; its labels are plain ids.
        seen: ``(vocabulary,)`` ids that some row trains; ``None`` where this process cannot know.
        text: ids to text, for errors.

    Raises:
        LabelsChangedError: there are no labels, a trained label is not its token, or a token is trained that no row
            of the prepared data trains (a header, a prompt).
    """
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    if labels is None:
        raise LabelsChangedError(
            "A batch reached the loss without labels: the data collator drops them. Use a collator that keeps the "
            "labels of the dataset, such as TRL's default."
        )
    trained = labels != IGNORE_INDEX
    if ids is not None and ids.shape == labels.shape:
        _check_alignment(ids, labels, trained & (labels != ids))
    if seen is not None:
        _check_known(labels, trained, torch.from_numpy(seen).to(labels.device), text)


def _check_alignment(ids: torch.Tensor, labels: torch.Tensor, moved: torch.Tensor) -> None:
    if not bool(moved.any()):
        return
    row, at = _first(moved)
    raise LabelsChangedError(
        f"Row {row} of a batch trains label {int(labels[row, at])} at position {at}, where the token is "
        f"{int(ids[row, at])}: the labels are not aligned with input_ids. The data collator or the dataset changed "
        "them after train_on_responses_only."
    )


def _check_known(
    labels: torch.Tensor, trained: torch.Tensor, seen: torch.Tensor, text: Callable[[list[int]], str]
) -> None:
    strange = trained & ((labels >= len(seen)) | ~seen[labels.clamp(0, len(seen) - 1)])
    if not bool(strange.any()):
        return
    row, at = _first(strange)
    token = int(labels[row, at])
    raise LabelsChangedError(
        f"Row {row} of a batch trains token {token} ({text([token])!r}) at position {at}, which no row of the "
        "prepared data trains: these labels are not the mask that was prepared. A data collator that rebuilds labels "
        "(transformers' DataCollatorForLanguageModeling does) trains the prompts too; use one that keeps them, such as "
        "TRL's default. If you replaced the dataset, call train_on_responses_only again."
    )


def _first(found: torch.Tensor) -> tuple[int, int]:
    row, at = torch.nonzero(found)[0].tolist()
    return row, at
