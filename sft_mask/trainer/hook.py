"""The hook on the trainer: it checks, weights and counts batches at the loss, and masks later datasets the same way.

A mixin is put in front of the trainer's own class. A 0/1 mask is fully described by the labels, so TRL's own
``compute_loss`` runs after the check; with weights it gets a model whose log-probabilities are weighted
(:mod:`sft_mask.trainer.weighted_loss`). ``evaluate`` and ``predict`` on other data apply the same mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch

from sft_mask._compat import LossPath
from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.accounting.stats import SplitStats
from sft_mask.data.masker import Masker
from sft_mask.data.read import Row
from sft_mask.data.splits import SplitMasker
from sft_mask.report import MaskReport
from sft_mask.trainer.checks import check_collator, check_labels
from sft_mask.trainer.collated import CollatedState
from sft_mask.trainer.lm_head import supervised_positions_only
from sft_mask.trainer.metrics import EvalLoss, Measured
from sft_mask.trainer.model_card import add_to_model_card
from sft_mask.trainer.parallel import (
    batch_labels,
    place_among_rows,
    ranks_with_the_same_rows,
    ranks_with_the_same_tokens,
)
from sft_mask.trainer.refusals import refuse_with_weights
from sft_mask.trainer.weighted_loss import WeightedModel, split_labels, total_weight

if TYPE_CHECKING:
    from torch import Tensor

_ALWAYS_CHECKED = 8
_CHECK_EVERY = 50
"""On an accelerator a check waits for the device, so after the first batches only every 50th is checked."""


@dataclass(slots=True)
class MaskState(Measured):
    """What the hook knows about the mask that was prepared.

    Attributes:
        splits: masks later datasets as the training data was, and knows whether labels carry weights.
        stats: counts of the trainer's splits, by name; those of streams grow.
        originals: pairs of a masked split and what it was before.
        tokenizer: the one that wrote the rows.
        collator: the one that was found to let labels through.
        masked: datasets that were masked later, as long as they exist, by ``id``.
    """

    splits: SplitMasker
    stats: Mapping[str, SplitStats]
    originals: Sequence[tuple[object, object]]
    tokenizer: object = None
    collator: object = None
    masked: WeakValueDictionary[int, object] = field(default_factory=WeakValueDictionary)

    @property
    def weighted(self) -> bool:
        """Whether labels carry weights."""
        return self.splits.weighted

    @property
    def masker(self) -> Masker | None:
        """What decides labels; ``None`` where the data came masked and no markers were found."""
        return self.splits.masker if isinstance(self.splits.masker, Masker) else None

    def report(self) -> MaskReport:
        """What the splits train, as far as they have been read."""
        return self.splits.report(self.stats)

    def is_ours(self, dataset: object) -> bool:
        """Whether this very dataset was masked here already."""
        return self.masked.get(id(dataset)) is dataset or any(dataset is split for split, _ in self.originals)

    def original(self, split: object) -> object:
        """What a split was before it was masked; itself where it is not one of ours."""
        return next((before for masked, before in self.originals if masked is split), split)

    def check(self, trainer: Any, dataset: object, split: str) -> None:
        """Checks that the trainer's collator lets the labels of a split through.

        Raises:
            LabelsChangedError: it does not.
        """
        check_collator(trainer, dataset, split, may_train_all=self.weighted or self.is_ours(dataset))
        self.collator = trainer.data_collator

    def counting(self, trainer: Any, split: str) -> AbstractContextManager[None]:
        """Nothing: the rows were counted when they were masked."""
        del trainer, split
        return nullcontext()

    def mask_later(self, dataset: object, name: str, *, keep_all_rows: bool = False) -> object:
        """Masks a dataset that is not one of the trainer's own."""
        masked, _ = self.splits.mask_later(dataset, name, keep_all_rows=keep_all_rows)
        self.masked[id(masked)] = masked
        return masked


class ResponseOnlyMixin:
    """Goes in front of a trainer class; see :func:`hooked_class`."""

    _sft_mask: MaskState | CollatedState
    args: Any
    model: Any
    accelerator: Any
    train_dataset: Any
    eval_dataset: Any
    data_collator: object

    @property
    def mask_report(self) -> MaskReport:
        """What is trained and what is not; of a stream, as far as it has been read by this process."""
        return self._sft_mask.report()

    # the loss

    def get_batch_samples(self, *args: object, **kwargs: object) -> object:
        samples, num_items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        if self._sft_mask.weighted:
            self._sft_mask.step_weight = _weight_of_step(self, samples)
        return samples, num_items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> object:
        state = self._sft_mask
        training = bool(self.model.training)
        if not training:
            inputs = without_repeats(inputs, self.accelerator)
        weights = None
        if state.weighted and inputs.get("labels") is not None:
            ids, weights = split_labels(inputs["labels"])
            inputs = {**inputs, "labels": ids}
        self._check(inputs)
        labels = batch_labels(inputs)  # a compute_loss may take them out of the batch
        state.meters["train" if training else "eval"].count(inputs, weights)
        called = model
        if weights is not None:
            called = WeightedModel(model, weights, num_items_in_batch, state.step_weight if training else None)
        # Only then is the loss a multiple of the weighted sum of the log-probabilities.
        is_sum = getattr(self.args, "loss_type", "nll") == "nll"
        with supervised_positions_only(model, labels, weights, proportional=is_sum):
            result = super().compute_loss(  # type: ignore[misc]
                called, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if weights is not None:
            called.check_scored(type(self).__name__)
        if not training:
            loss = result[0] if return_outputs else result
            state.eval_loss.add(loss, _weight_of_batch(labels, weights))
        return result

    def _check(self, inputs: Row) -> None:
        state, labels = self._sft_mask, inputs.get("labels")
        on_cpu = labels is None or labels.device.type == "cpu"
        if on_cpu or state.calls < _ALWAYS_CHECKED or state.calls % _CHECK_EVERY == 0:
            check_labels(inputs)
        state.calls += 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: object) -> None:
        mode = "train" if self.model.training else "eval"
        named = next((name for name in logs if name.startswith("eval_") and name.endswith("_loss")), "eval_loss")
        prefix = named.removesuffix("loss") if mode == "eval" else ""
        read = self._sft_mask.meters[mode].read(self.accelerator, ranks_with_the_same_tokens(self))
        logs.update({prefix + name: value for name, value in read.items()})
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    # data

    def get_train_dataloader(self) -> object:
        if self.train_dataset is not None:  # the collator or the dataset may have been replaced since the call
            self._check_collator(self.train_dataset, "train")
        if self._sft_mask.weighted:
            refuse_with_weights(self)
        with self._sft_mask.counting(self, "train"):
            return super().get_train_dataloader()  # type: ignore[misc]

    def get_eval_dataloader(self, eval_dataset: object = None) -> object:
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]
        if self.data_collator is not self._sft_mask.collator and hasattr(chosen, "column_names"):
            self._check_collator(chosen, "eval")
        with self._sft_mask.counting(self, f"eval:{eval_dataset}" if isinstance(eval_dataset, str) else "eval"):
            return super().get_eval_dataloader(eval_dataset)  # type: ignore[misc]

    def get_test_dataloader(self, test_dataset: Any) -> object:
        if self.data_collator is not self._sft_mask.collator:
            self._check_collator(test_dataset, "test")
        with self._sft_mask.counting(self, "test"):
            return super().get_test_dataloader(test_dataset)  # type: ignore[misc]

    def _check_collator(self, dataset: object, split: str) -> None:
        self._sft_mask.check(self, dataset, split)

    def _prepare_dataset(self, dataset: object, *args: object, **kwargs: object) -> object:
        if self._sft_mask.is_ours(dataset):  # evaluate of a dict calls this again for each of its sets
            return dataset
        prepared = super()._prepare_dataset(dataset, *args, **kwargs)  # type: ignore[misc]
        name = kwargs.get("dataset_name") or (args[-1] if args and isinstance(args[-1], str) else "eval")
        return self._masked_later(prepared, str(name))

    def _masked_later(self, dataset: object, name: str, *, keep_all_rows: bool = False) -> object:
        if self._sft_mask.is_ours(dataset):
            return dataset
        masked = self._sft_mask.mask_later(dataset, name, keep_all_rows=keep_all_rows)
        if self._sft_mask.weighted:
            refuse_with_weights(self)
        return masked

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        super().create_model_card(*args, **kwargs)  # type: ignore[misc]
        add_to_model_card(self)

    # evaluation

    def evaluate(self, eval_dataset: object = None, *args: object, **kwargs: object) -> object:
        given = eval_dataset is not None and not isinstance(eval_dataset, str)
        if given and getattr(self, "_skip_prepare_dataset", True):  # otherwise TRL calls _prepare_dataset
            if isinstance(eval_dataset, dict):
                eval_dataset = {name: self._masked_later(split, name) for name, split in eval_dataset.items()}
            else:
                eval_dataset = self._masked_later(eval_dataset, "eval")
        return super().evaluate(eval_dataset, *args, **kwargs)  # type: ignore[misc]

    def predict(self, test_dataset: object, *args: object, **kwargs: object) -> object:
        # prediction i belongs to row i, so rows that train nothing stay
        masked = self._masked_later(test_dataset, "test", keep_all_rows=True)
        return super().predict(masked, *args, **kwargs)  # type: ignore[misc]

    def evaluation_loop(self, *args: object, **kwargs: object) -> object:
        """The trainer's own loop; the mean loss over batches is replaced by the mean over tokens (or their weights)."""
        self._sft_mask.eval_loss = EvalLoss()
        output = super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]
        loss = self._sft_mask.eval_loss.mean(self.accelerator)
        names = [name for name in output.metrics if name.endswith("_loss")]
        if loss is not None and len(names) == 1:
            output.metrics[names[0]] = loss
        return output

    def prediction_step(self, *args: object, **kwargs: object) -> object:
        loss, logits, labels = super().prediction_step(*args, **kwargs)  # type: ignore[misc]
        if labels is not None and self._sft_mask.weighted:
            labels = split_labels(labels)[0]
        return loss, logits, labels


def _weight_of_step(trainer: Any, samples: Sequence[Row]) -> Tensor:
    """The sum of the weights of an optimizer step, summed over ranks exactly where ``transformers``
    sums the number of tokens (``_get_num_items_in_batch``).
    """
    device = trainer.args.device
    total = torch.stack([total_weight(batch["labels"]).to(device) for batch in samples]).sum()
    if trainer.args.average_tokens_across_devices and trainer.args.world_size > 1:
        total = trainer.accelerator.gather(total.unsqueeze(0)).sum() / ranks_with_the_same_rows(trainer)
    return total


def _weight_of_batch(labels: Tensor, weights: Tensor | None) -> Tensor:
    """The weight of a batch in an evaluation: its number of predicted tokens, or the sum of their weights."""
    return (labels[..., 1:] != IGNORE_INDEX).sum() if weights is None else weights[..., 1:].sum()


def without_repeats(inputs: dict[str, Any], accelerator: Any) -> dict[str, object]:
    """A batch without labels for the rows that ``accelerate`` repeats to give every rank the same number.

    Rows of a padding-free batch cannot be told apart; they stay, as they do in TRL.
    """
    progress, labels = accelerator.gradient_state, inputs.get("labels")
    if accelerator.num_processes == 1 or labels is None or inputs.get("attention_mask") is None:
        return inputs
    if not progress.end_of_dataloader or progress.remainder <= 0:
        return inputs
    rows = torch.arange(len(labels), device=labels.device) + place_among_rows(accelerator) * len(labels)
    repeated = rows >= progress.remainder
    return {**inputs, "labels": labels.masked_fill(repeated.unsqueeze(1), IGNORE_INDEX)}


class _BeforeTrls:
    """Comes directly before TRL's class and after those that override ``compute_loss``: sees what they pass on."""

    def compute_loss(
        self, model: object, inputs: dict[str, object], return_outputs: bool = False, num_items_in_batch: object = None
    ) -> object:
        if isinstance(model, WeightedModel):
            model.check_items(num_items_in_batch, type(self).__name__)
        return super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )


def hooked_class(kind: type) -> type:
    """The class with the mixin in front, under its own name; the class itself if it already has the mixin."""
    if issubclass(kind, ResponseOnlyMixin):
        return kind
    path = LossPath.of(kind)
    last = (type(path.trls.__name__, (_BeforeTrls, path.trls), {}),) if path.trls is not None and path.before else ()
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (ResponseOnlyMixin, kind, *last), names)
