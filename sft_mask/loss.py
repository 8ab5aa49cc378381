"""The hook on the trainer's ``compute_loss`` path.

A mixin is put in front of the trainer's own class. With a 0/1 mask the labels say everything, so TRL's ``compute_loss``
runs untouched; the mixin checks what reaches it and counts. ``evaluate`` and ``predict`` on other data see the same mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import LabelsChangedError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ALWAYS_CHECKED = 8
_CHECK_EVERY = 50
"""On an accelerator a check waits for the device, so after the first batches it is made now and then."""


@dataclass(slots=True)
class MaskState:
    """What the hook needs to know about the mask that was prepared.

    Attributes:
        relabel: masks a prepared dataset as the training data was.
        trained_ids: ``(vocabulary,)`` ids that some row trains; ``None`` where nobody could look (streams).
        text: ids to text, for errors.
        calls: batches seen.
    """

    relabel: Callable[[Any, str], Any]
    trained_ids: NDArray[np.bool_] | None
    text: Callable[[list[int]], str]
    calls: int = 0
    table: torch.Tensor | None = None

    def trained_table(self, device: torch.device) -> torch.Tensor | None:
        """``trained_ids`` on a device."""
        if self.trained_ids is None:
            return None
        if self.table is None or self.table.device != device:
            self.table = torch.from_numpy(self.trained_ids).to(device)
        return self.table


def check_labels(inputs: dict[str, Any], state: MaskState) -> None:
    """Raises if a batch cannot come from the mask that was prepared.

    Raises:
        LabelsChangedError: there are no labels, a trained label is not its token, or a token is trained that no row
            of the prepared data trains (a header, a prompt).
    """
    labels, ids = inputs.get("labels"), inputs.get("input_ids")
    if labels is None:
        raise LabelsChangedError(
            "A batch reached the loss without labels: the data collator drops them. Use a collator that keeps the labels "
            "of the dataset, such as TRL's default."
        )
    if ids is None or ids.shape != labels.shape:
        return
    trained = labels != IGNORE_INDEX
    moved = trained & (labels != ids)
    if bool(moved.any()):
        row, at = (int(index[0]) for index in torch.nonzero(moved, as_tuple=True))
        raise LabelsChangedError(
            f"Row {row} of a batch trains label {int(labels[row, at])} at position {at}, where the token is "
            f"{int(ids[row, at])}: the labels are not aligned with input_ids. The data collator or the dataset changed "
            "them after train_on_responses_only."
        )
    table = state.trained_table(labels.device)
    if table is None:
        return
    strange = trained & ~table[labels.clamp(0, len(table) - 1)]
    if bool(strange.any()):
        row, at = (int(index[0]) for index in torch.nonzero(strange, as_tuple=True))
        token = int(labels[row, at])
        raise LabelsChangedError(
            f"Row {row} of a batch trains token {token} ({state.text([token])!r}) at position {at}, which no row of the "
            "prepared data trains: these labels are not the mask that was prepared. A data collator that rebuilds labels "
            "(transformers' DataCollatorForLanguageModeling does) trains the prompts too; use one that keeps them, such "
            "as TRL's default. If you replaced the dataset, call train_on_responses_only again."
        )


class ResponseOnlyMixin:
    """Goes in front of a trainer class; see :func:`hook`."""

    _sft_mask: MaskState

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        state = self._sft_mask
        labels = inputs.get("labels")
        on_cpu = labels is None or labels.device.type == "cpu"
        if on_cpu or state.calls < _ALWAYS_CHECKED or state.calls % _CHECK_EVERY == 0:
            check_labels(inputs, state)
        state.calls += 1
        self._count_supervised(inputs)
        return super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )

    def _count_supervised(self, inputs: dict[str, Any]) -> None:
        trainer: Any = self
        labels = inputs["labels"]
        mask = inputs.get("attention_mask")
        total = mask.sum() if mask is not None and mask.shape == labels.shape else labels.new_tensor(labels.numel())
        counts = torch.stack([(labels[..., 1:] != IGNORE_INDEX).sum(), total.to(labels.device)]).unsqueeze(0)
        trained, seen = trainer.accelerator.gather(counts).sum(0).tolist()
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        metrics["supervised_tokens"].append(float(trained))
        metrics["supervised_share"].append(trained / max(seen, 1))

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)  # type: ignore[misc]
        name = kwargs.get("dataset_name") or (args[-1] if args and isinstance(args[-1], str) else "eval")
        return self._sft_mask.relabel(prepared, str(name))

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        masked = self._sft_mask.relabel(test_dataset, "test")
        return super().predict(masked, *args, **kwargs)  # type: ignore[misc]


def hook(trainer: Any, state: MaskState) -> None:
    """Puts the mixin in front of the trainer's class, once; later calls only exchange the state."""
    trainer._sft_mask = state
    kind = type(trainer)
    if not issubclass(kind, ResponseOnlyMixin):
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        trainer.__class__ = type(kind.__name__, (ResponseOnlyMixin, kind), names)
