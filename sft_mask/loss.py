"""The hook on the trainer: what reaches the loss is checked and counted, and later data is masked alike.

A mixin is put in front of the trainer's own class. With a 0/1 mask the labels say everything, so TRL's ``compute_loss``
runs untouched behind the check. ``evaluate`` and ``predict`` on other data see the same mask.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sft_mask.batches import Tally
from sft_mask.checks import check_collator
from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import LabelsChangedError
from sft_mask.report import MarkerSummary, MaskReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ALWAYS_CHECKED = 8
_CHECK_EVERY = 50
"""On an accelerator a check waits for the device, so after the first batches it is made now and then."""


@dataclass(slots=True)
class MaskState:
    """What the hook needs to know about the mask that was prepared.

    Attributes:
        mask: masks another prepared dataset as the training data was: ``mask(dataset, name, keep_all_rows=False)``.
        tallies: counts of the trainer's splits, by name; those of streams grow.
        markers: in use.
        text: ids to text, for errors.
        originals: pairs of a masked split and what it was before.
        sees_all_rows: whether every row of every split is counted in this process (not those that dataloader workers or
            other ranks read from a stream).
        later: counts of datasets that ``evaluate`` and ``predict`` were given.
        calls: batches seen.
    """

    mask: Callable[..., tuple[Any, Tally]]
    tallies: Mapping[str, Tally]
    markers: MarkerSummary
    text: Callable[[list[int]], str]
    originals: Sequence[tuple[Any, Any]]
    sees_all_rows: bool = True
    later: dict[str, Tally] = field(default_factory=dict)
    calls: int = 0

    def report(self) -> MaskReport:
        """What the splits train, as far as they have been read."""
        return MaskReport({name: tally.report for name, tally in self.tallies.items()}, self.markers)

    def original(self, split: Any) -> Any:
        """What a split was before it was masked; itself where it is not one of ours."""
        return next((before for masked, before in self.originals if masked is split), split)

    def mask_later(self, dataset: Any, name: str, *, keep_all_rows: bool = False) -> Any:
        """Masks a dataset that was not the trainer's, and remembers which ids it trains."""
        masked, self.later[name] = self.mask(dataset, name, keep_all_rows=keep_all_rows)
        return masked

    def trained_ids(self) -> NDArray[np.bool_] | None:
        """``(vocabulary,)`` ids that some row trains; ``None`` where this process cannot know."""
        if not self.sees_all_rows:
            return None
        tables = [tally.trained_ids for tally in (*self.tallies.values(), *self.later.values())]
        seen = np.zeros(max(map(len, tables)), np.bool_)
        for table in tables:
            seen[: len(table)] |= table
        return seen


def check_labels(inputs: Mapping[str, Any], state: MaskState) -> None:
    """Raises if a batch cannot come from the mask that was prepared.

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
    seen = state.trained_ids()
    if seen is not None:
        _check_known(labels, trained, torch.from_numpy(seen).to(labels.device), state)


def _check_alignment(ids: torch.Tensor, labels: torch.Tensor, moved: torch.Tensor) -> None:
    if not bool(moved.any()):
        return
    row, at = _first(moved)
    raise LabelsChangedError(
        f"Row {row} of a batch trains label {int(labels[row, at])} at position {at}, where the token is "
        f"{int(ids[row, at])}: the labels are not aligned with input_ids. The data collator or the dataset changed "
        "them after train_on_responses_only."
    )


def _check_known(labels: torch.Tensor, trained: torch.Tensor, seen: torch.Tensor, state: MaskState) -> None:
    strange = trained & ((labels >= len(seen)) | ~seen[labels.clamp(0, len(seen) - 1)])
    if not bool(strange.any()):
        return
    row, at = _first(strange)
    token = int(labels[row, at])
    raise LabelsChangedError(
        f"Row {row} of a batch trains token {token} ({state.text([token])!r}) at position {at}, which no row of the "
        "prepared data trains: these labels are not the mask that was prepared. A data collator that rebuilds labels "
        "(transformers' DataCollatorForLanguageModeling does) trains the prompts too; use one that keeps them, such as "
        "TRL's default. If you replaced the dataset, call train_on_responses_only again."
    )


def _first(found: torch.Tensor) -> tuple[int, int]:
    row, at = torch.nonzero(found)[0].tolist()
    return row, at


class ResponseOnlyMixin:
    """Goes in front of a trainer class; see :func:`hooked_class`."""

    _sft_mask: MaskState

    @property
    def mask_report(self) -> MaskReport:
        """What is trained and what is not; of a stream, as far as it has been read by this process."""
        return self._sft_mask.report()

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

    def _count_supervised(self, inputs: Mapping[str, Any]) -> None:
        """Tokens that a batch grades, over all ranks, and their share of the tokens that are not padding."""
        trainer: Any = self
        labels, mask = inputs["labels"], inputs.get("attention_mask")
        total = mask.sum() if mask is not None and mask.shape == labels.shape else labels.new_tensor(labels.numel())
        counts = torch.stack([(labels[..., 1:] != IGNORE_INDEX).sum(), total.to(labels.device)]).unsqueeze(0)
        trained, seen = trainer.accelerator.gather(counts).sum(0).tolist()
        metrics = trainer._metrics["train" if trainer.model.training else "eval"]
        metrics["supervised_tokens"].append(float(trained))
        metrics["supervised_share"].append(trained / max(seen, 1))

    def get_train_dataloader(self) -> Any:
        trainer: Any = self
        if trainer.train_dataset is not None:  # the collator or the dataset may have been exchanged since the call
            check_collator(trainer, trainer.train_dataset)
        return super().get_train_dataloader()  # type: ignore[misc]

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)  # type: ignore[misc]
        name = kwargs.get("dataset_name") or (args[-1] if args and isinstance(args[-1], str) else "eval")
        return self._sft_mask.mask_later(prepared, str(name))

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        trainer: Any = self
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        if given and trainer._skip_prepare_dataset:  # otherwise TRL calls _prepare_dataset
            if isinstance(eval_dataset, dict):
                eval_dataset = {name: self._sft_mask.mask_later(split, name) for name, split in eval_dataset.items()}
            else:
                eval_dataset = self._sft_mask.mask_later(eval_dataset, "eval")
        return super().evaluate(eval_dataset, *args, **kwargs)  # type: ignore[misc]

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        # prediction i belongs to row i, so rows that train nothing stay
        masked = self._sft_mask.mask_later(test_dataset, "test", keep_all_rows=True)
        return super().predict(masked, *args, **kwargs)  # type: ignore[misc]


def hooked_class(kind: type) -> type:
    """The class with the mixin in front, under its own name; itself where the mixin is there already."""
    if issubclass(kind, ResponseOnlyMixin):
        return kind
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (ResponseOnlyMixin, kind), names)
