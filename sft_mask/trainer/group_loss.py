"""The loss of the end-of-turn tokens and that of the other trained tokens, read from what the model returns anyway.

TRL's loss is made of ``outputs.log_probs``, one for each token. A forward hook adds them up by group; the loss, its
gradients and what is communicated between ranks stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sft_mask.constants import IGNORE_INDEX
from sft_mask.errors import extra
from sft_mask.trainer.inference import known_stops

with extra("train", "LogMask"):
    import torch

if TYPE_CHECKING:
    from torch import Tensor


class GroupLossHook:
    """The hook on the model of a masked trainer.

    Args:
        trainer: a masked trainer; its meters are added to.
        stops: ids of the end-of-turn tokens.
    """

    def __init__(self, trainer: Any, stops: tuple[int, ...]) -> None:
        self._trainer = trainer
        self._stops = torch.tensor(stops)
        self._handle = trainer.model.register_forward_hook(self._count, with_kwargs=True)

    @classmethod
    def on(cls, trainer: Any) -> GroupLossHook | None:
        """The hook; ``None`` where the template has no end-of-turn token of one id, and for compiled models."""
        stops = known_stops(trainer).ids
        return None if not stops or trainer.args.torch_compile else cls(trainer, stops)

    def remove(self) -> None:
        """Takes the hook off the model."""
        self._handle.remove()

    def _count(self, model: Any, args: tuple[object, ...], kwargs: dict[str, Any], outputs: Any) -> None:
        del args
        labels, log_probs = kwargs.get("labels"), getattr(outputs, "log_probs", None)
        if labels is None or log_probs is None:
            return
        labels = labels[..., 1:]
        virtual = log_probs.shape[-1] - labels.shape[-1]  # of prompt learning, in front
        if virtual < 0:
            return
        mode = "train" if model.training else "eval"
        losses = grouped(-log_probs.detach()[..., virtual:], labels, self._stops.to(labels.device))
        self._trainer._sft_mask.meters[mode].add_losses(losses)


def grouped(losses: Tensor, labels: Tensor, stops: Tensor) -> Tensor:
    """``(4,)`` sum of the losses and number of tokens: of the end-of-turn tokens, then of all other trained tokens.

    >>> labels = torch.tensor([[-100, 5, 7]])
    >>> grouped(torch.tensor([[9.0, 2.0, 1.0]]), labels, torch.tensor([7])).tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    trained = labels != IGNORE_INDEX
    ends = trained & torch.isin(labels, stops)
    words = trained & ~ends
    parts = [part for group in (ends, words) for part in ((losses.to(wide) * group).sum(), group.sum().to(wide))]
    return torch.stack(parts)
