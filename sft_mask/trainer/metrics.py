"""What the log says about the mask: sums on the device, read and added over ranks only when something is logged."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from sft_mask.constants import IGNORE_INDEX
from sft_mask.data.read import Row
from sft_mask.trainer.parallel import batch_labels, predicted_labels

if TYPE_CHECKING:
    from torch import Tensor


_GROUPS = ("loss_end_of_turn", "loss_words")


@dataclass(slots=True)
class Meter:
    """Sums since the last log.

    Attributes:
        batches: batches of this process.
        tokens: ``(2,)`` trained tokens, and all that are not padding.
        losses: ``(4,)`` of the end-of-turn tokens and of the other trained tokens, if they are measured: the sum of
            their losses, and their number; see :mod:`sft_mask.trainer.group_loss`.
        since: when the first of the batches came, in seconds.
    """

    batches: int = 0
    tokens: Tensor | None = None
    losses: Tensor | None = None
    since: float = 0.0

    def add_losses(self, losses: Tensor) -> None:
        """Adds the losses of a batch by group."""
        self.losses = losses if self.losses is None else self.losses + losses

    def count(self, inputs: Row, weights: Tensor | None = None) -> None:
        """Counts the tokens of a batch; its labels are plain ids, and those of weight 0 are not trained."""
        labels, mask = batch_labels(inputs), inputs.get("attention_mask")
        if mask is None or mask.shape != labels.shape:
            mask = torch.ones_like(labels)
        total = (mask != 0).sum()  # some packers number the documents in it
        trained = predicted_labels(inputs) != IGNORE_INDEX if weights is None else weights[..., 1:] > 0
        counts = torch.stack([trained.sum(), total.to(labels.device)])
        self.since = self.since or time.monotonic()
        self.tokens = counts if self.tokens is None else self.tokens + counts
        self.batches += 1

    def read(self, accelerator: Any, copies: int = 1) -> dict[str, float]:
        """The values to log, over all ranks, of which ``copies`` have the same rows; resets the sums.

        ``supervised_tokens`` is the number of trained tokens of a batch, over all ranks, on average since the last log;
        ``supervised_share`` their share of all tokens that are not padding. ``loss_end_of_turn`` and ``loss_words`` are
        mean losses, where a rank has measured them.
        """
        if self.tokens is None:
            return {}
        seconds = time.monotonic() - self.since
        wide = torch.float32 if self.tokens.device.type == "mps" else torch.float64
        losses = torch.zeros(4, dtype=wide) if self.losses is None else self.losses
        sums = torch.cat([self.tokens.to(wide), losses.to(self.tokens.device)])  # of one size, so that all ranks agree
        trained, seen, *by_group = (count / copies for count in accelerator.reduce(sums, "sum").tolist())
        read = {
            "supervised_tokens": trained / self.batches,
            "supervised_share": trained / max(seen, 1),
            "supervised_tokens_per_second": trained / seconds if seconds else 0.0,
        }
        for name, total, count in zip(_GROUPS, by_group[::2], by_group[1::2], strict=True):
            if count:
                read[name] = total / count
        self.batches, self.tokens, self.losses, self.since = 0, None, None, 0.0
        return read


@dataclass(slots=True)
class EvalLoss:
    """The mean loss of an evaluation over its tokens, independent of the batches.

    Attributes:
        sums: ``(2,)`` sum of the losses of the batches times their weights, and of the weights.
    """

    sums: Tensor | None = None

    def add(self, loss: Tensor, weight: Tensor) -> None:
        """Adds the mean loss of a batch, and its weight."""
        wide = torch.float32 if loss.device.type == "mps" else torch.float64
        weight = weight.detach().to(loss.device, wide)
        pair = torch.stack([torch.where(weight > 0, loss.detach().to(wide) * weight, torch.zeros_like(weight)), weight])
        self.sums = pair if self.sums is None else self.sums + pair

    def mean(self, accelerator: Any) -> float | None:
        """Over all ranks; ``None`` if nothing was trained."""
        if self.sums is None:
            return None
        total, weight = accelerator.reduce(self.sums, "sum").tolist()
        return float(total / weight) if weight else None


@dataclass(slots=True, kw_only=True)
class Measured:
    """What is measured of the batches of a masked trainer.

    Attributes:
        calls: batches seen.
        step_weight: sum of the weights of the optimizer step, over all its batches and ranks.
        meters: what is logged, for training and for evaluation.
        eval_loss: the loss of the evaluation that is under way.
    """

    calls: int = 0
    step_weight: Tensor | None = None
    meters: dict[str, Meter] = field(default_factory=lambda: {"train": Meter(), "eval": Meter()})
    eval_loss: EvalLoss = field(default_factory=EvalLoss)
