"""Weights at the loss, in torch: labels are decoded, and the model's log-probabilities are weighted.

TRL's loss is ``sum(-log_probs) / num_items`` over the optimizer step. With every ``log_prob`` multiplied by
``w * num_items / sum(w)`` the same code gives ``sum(w * nll) / sum(w)``, and TRL's metrics, its scaling over ranks
and the auxiliary loss of mixtures of experts stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.label_codec import ID_MASK, ONE_BITS, WEIGHT_SHIFT
from sft_mask.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor


def split_labels(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids and float32 weights (0 where ignored) of labels; see :mod:`sft_mask.core.label_codec`.

    >>> ids, weights = split_labels(torch.tensor([-100, 7, 36028797018963976]))
    >>> ids.tolist(), weights.tolist()
    ([-100, 7, 8], [0.0, 1.0, 0.5])
    """
    labels = labels.long()
    ignored = labels == IGNORE_INDEX
    bits = ((labels >> WEIGHT_SHIFT) ^ ONE_BITS).to(torch.int32)
    weights = bits.view(torch.float32).masked_fill(ignored, 0.0)
    return (labels & ID_MASK).masked_fill(ignored, IGNORE_INDEX), weights


def total_weight(labels: Tensor) -> Tensor:
    """The sum of the weights of labels that are predicted: all but the first of each row."""
    _, weights = split_labels(labels[..., 1:])
    wide = torch.float32 if labels.device.type == "mps" else torch.float64
    return weights.sum(dtype=wide)


class WeightedModel:
    """The model as TRL's loss calls it, with each log-probability multiplied by its token's weight.

    Args:
        model: what the trainer would call.
        weights: ``(B, T)`` aligned with the labels.
        num_items: tokens of the optimizer step, by which TRL will divide; ``None`` where it takes those of the batch.
        step_weight: sum of the weights of the step; ``None`` for that of the batch.
    """

    def __init__(self, model: Any, weights: Tensor, num_items: object, step_weight: Tensor | None) -> None:
        self._model = model
        self._weights = weights[..., 1:]
        self._num_items = num_items
        self._step_weight = step_weight
        self.log_probs: Tensor | None = None

    def __call__(self, *args: object, **kwargs: object) -> object:
        outputs = self._model(*args, **kwargs)
        log_probs = getattr(outputs, "log_probs", None)
        if log_probs is None:
            if kwargs.get("labels") is not None:
                raise UnsupportedError(
                    f"{type(self._model).__name__} computed its own loss and returned no log-probabilities "
                    "of its tokens, so their weights cannot be applied. Weights need the compute_loss of TRL's "
                    "SFTTrainer (trl >= 1.15): where the trainer's class changes it, it must always call "
                    "super().compute_loss(...). Or train without weights."
                )
            return outputs
        self.log_probs = log_probs.detach()
        weights = self.aligned(self._weights)
        # TRL's own metrics are those of the tokens that are trained.
        outputs.label_mask = outputs.label_mask & (weights > 0)
        outputs.entropy = outputs.entropy * outputs.label_mask
        outputs.is_top1 = outputs.is_top1 & outputs.label_mask
        outputs.log_probs = log_probs * (weights * self._scale(outputs.label_mask))
        return outputs

    def check_items(self, num_items: object, trainer: str) -> None:
        """Raises if TRL's loss was not given the number of tokens that it should divide by."""
        if num_items is None and self._num_items is not None:
            raise UnsupportedError(
                f"The compute_loss of {trainer} calls super().compute_loss without the num_items_in_batch that it was "
                "given, so the weighted loss would be divided by the tokens of one batch, not by those of the whole "
                "optimizer step. Pass it on: super().compute_loss(model, inputs, return_outputs, num_items_in_batch). "
                "Or train without weights."
            )

    def check_scored(self, trainer: str) -> None:
        """Raises if a loss was computed without the log-probabilities that were weighted."""
        if self.log_probs is None:
            raise UnsupportedError(
                f"The compute_loss of {trainer} did not go through that of TRL's SFTTrainer with the model it was "
                "given, so the weights of the tokens were ignored. Let it always call super().compute_loss(model, "
                "inputs, return_outputs, num_items_in_batch), with this model. Or train without weights."
            )

    def _scale(self, label_mask: Tensor) -> Tensor:
        """The factor of the weights that turns a division by the number of tokens into one by the sum of weights."""
        alone = self._num_items is None or self._step_weight is None
        items = torch.as_tensor(label_mask.sum() if alone else self._num_items, device=label_mask.device)
        total = self._weights.sum(dtype=torch.float32) if alone else self._step_weight
        assert total is not None, "the weight of a step that has a number of items is known"
        total = total.to(label_mask.device)
        return torch.where(total > 0, items.clamp(min=1) / total, torch.zeros_like(total)).float()

    def aligned(self, values: Tensor) -> Tensor:
        """Values padded to the length of the log-probabilities: prompt learning puts virtual tokens in front."""
        assert self.log_probs is not None, "the model has not been called"
        virtual = self.log_probs.shape[-1] - values.shape[-1]
        return torch.nn.functional.pad(values, (virtual, 0)) if virtual else values

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)
