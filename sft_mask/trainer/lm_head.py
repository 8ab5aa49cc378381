"""The LM head on devices for which TRL has no kernel: supervised positions only, and each projected once.

Where Triton runs, TRL scores supervised positions only. Elsewhere, as on a CPU, it scores every position, and projects
all of them again in the backward pass. With ``z = h W^T`` the log-probability of a target ``t`` has the gradients

    d log p_t / dh = W_t - sum_v p_v W_v        d log p_t / dW = (onehot(t) - p) h^T

The first is a row for each position: it is made while the logits are there, and multiplied by whatever gradient comes
in later. The second is summed over positions, so how they weigh against each other must be known beforehand: the mask
says so. Where a loss turns out to weigh them otherwise, TRL's own function makes the gradients. Making gradients in the
forward pass is an idea of Liger's (arXiv:2410.10989), leaving ignored tokens out that of Cut Cross-Entropy
(arXiv:2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sft_mask._compat import ChunkedHead, chunked_head
from sft_mask.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from torch import Tensor

Again = Callable[..., tuple["Tensor | None", ...]]

_DEVICES = frozenset({"cpu", "cuda", "mps"})
"""Kinds of devices that do not compile for every new shape, as those of XLA and Neuron do."""
_TILE = 1 << 23
"""Logits that are held at once; there are two buffers of them."""
_SCORES = frozenset({"log_probs", "entropy", "is_top1"})
_ROUNDING = 1e-6
"""How far gradients may be from the foreseen proportions and still be these, relative to the largest."""


@contextmanager
def supervised_positions_only(
    model: object, labels: Tensor | None, weights: Tensor | None, *, proportional: bool
) -> Iterator[None]:
    """Has TRL's loss score supervised positions only while the block runs.

    Nothing changes where TRL does so itself, where its loss is another, and for compiled models.

    Args:
        model: what will be called.
        labels: ``(B, T)`` of the batch, on its device.
        weights: ``(B, T)`` of the same tokens; ``None`` where they count the same.
        proportional: whether the loss is a multiple of the sum of ``weights * log_probs``.
    """
    theirs = chunked_head()
    if theirs is None or labels is None or hasattr(model, "_orig_mod"):
        yield
        return
    if labels.device.type not in _DEVICES or theirs.is_compact(labels.device):
        yield
        return
    counted = None if weights is None else weights[..., 1:][labels[..., 1:] != IGNORE_INDEX]
    with theirs.replaced_by(_Head(theirs, counted, proportional)):
        yield


@dataclass(frozen=True, slots=True)
class _Head:
    """Replaces TRL's autograd function; the same arguments and results."""

    theirs: ChunkedHead
    weights: Tensor | None
    proportional: bool

    def apply(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        logit_scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        def again(*inputs: Tensor | None) -> tuple[Tensor | None, ...]:
            scores = self.theirs.apply(*inputs, targets, temperature, chunk_size, softcap, logit_scale, outputs)
            return tuple(scores)

        known = _SCORES.issuperset(outputs) and not self.theirs.is_compact(hidden.device)
        if not known or not self._foresees(weight, len(targets)):
            return again(hidden, weight, bias)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        weights = self.weights
        if weights is None or len(weights) != len(targets):  # prompt learning predicts a token more; nothing is summed
            weights = torch.ones(len(targets))
        scale = _Scale(logit_scale, softcap, temperature)
        log_probs, entropy, is_top1 = _Scores.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, weights.to(hidden.device, wide), scale, torch.is_grad_enabled(), again
        )
        return log_probs, entropy if "entropy" in outputs else None, None, None, is_top1

    def _foresees(self, weight: Tensor, positions: int) -> bool:
        """Whether the weights of all positions are known, or not needed; a sharded head is left to TRL."""
        if hasattr(weight, "ds_id"):
            return False
        return not weight.requires_grad or (
            self.proportional and (self.weights is None or len(self.weights) == positions)
        )


class _Scale(NamedTuple):
    """What becomes of a projection ``y``: ``factor * y``, or ``cap * tanh(factor * y / cap)``; over temperature."""

    factor: float
    cap: float | None
    temperature: float

    def logits(self, projected: Tensor) -> tuple[Tensor, Tensor | float | None]:
        """The logits and their derivative by the projection (``None`` for 1), whose memory is used."""
        slope = self.factor / self.temperature
        if self.cap is None:
            return (projected, None) if slope == 1 else (projected.mul_(slope), slope)
        bent = projected.mul_(self.factor / self.cap).tanh_()
        return bent * (self.cap / self.temperature), bent.square_().neg_().add_(1).mul_(slope)


class _Scores(torch.autograd.Function):
    """``(N,)`` log-probabilities, entropies, and whether the target is the first of the most likely tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        scale: _Scale,
        differentiate: bool,
        again: Again,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        needed = ctx.needs_input_grad[:3] if differentiate else (False, False, False)
        sums = _Sums.of(hidden, weight, bias, weights, needed)
        scores = _score(hidden, weight, bias, targets, scale, sums)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.sums, ctx.again = sums, again
        ctx.mark_non_differentiable(scores[2])
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, of_entropy: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        sums, ctx.sums = ctx.sums, None  # handed out below, where they may become a parameter's own gradient
        made = None
        if sums is not None and gradient is not None and of_entropy is None:
            made = sums.times(gradient)
        if made is None:  # the loss is another than was foreseen, or this is the second time
            made = _by_theirs(ctx.again, (hidden, weight, bias), ctx.needs_input_grad, (gradient, of_entropy))
        kinds = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return (*(None if x is None else x.to(kind) for x, kind in zip(made, kinds, strict=True)), *[None] * 5)


@dataclass(slots=True)
class _Sums:
    """Gradients of the log-probabilities, as far as they can be made before the loss is known.

    Attributes:
        weights: ``(N,)`` by which positions are summed.
        hidden: ``(N, H)`` of each log-probability by its own hidden state.
        weight: ``(V, H)`` of their weighted sum by the head.
        bias: ``(V,)`` of their weighted sum by its bias.
    """

    weights: Tensor
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, weights: Tensor, needed: Sequence[bool]
    ) -> _Sums | None:
        """Zeros where a gradient is needed; ``None`` where none is."""
        if not any(needed):
            return None
        inputs = zip((hidden, weight, bias), needed, strict=True)
        made = [None if x is None or not need else torch.zeros_like(x, dtype=weights.dtype) for x, need in inputs]
        return cls(weights, *made)

    def add(self, rows: slice, hidden: Tensor, weight: Tensor, by_projection: Tensor) -> None:
        """Adds a tile of ``(n, V)`` gradients of ``-log p``, whose memory is free afterwards."""
        weighted = self.weights[rows].unsqueeze(1)
        if self.hidden is not None:
            self.hidden[rows] = (by_projection.to(weight.dtype) @ weight).neg_()
        if self.weight is not None:
            self.weight.addmm_(by_projection.t(), hidden.to(weighted.dtype) * weighted, alpha=-1)
        if self.bias is not None:
            self.bias.addmv_(by_projection.t(), weighted.squeeze(1), alpha=-1)

    def mean_logit_over_own(self, rows: slice, hidden: Tensor, bias: Tensor | None, by_projection: Tensor) -> Tensor:
        """``(n,)`` by how much ``sum_v p_v z_v`` exceeds the target's logit, of the tile that was added last."""
        assert self.hidden is not None, "gradients by hidden states are among the sums"
        beyond = -(self.hidden[rows] * hidden).sum(1)
        return beyond if bias is None else beyond + by_projection @ bias.to(beyond.dtype)

    def times(self, gradient: Tensor) -> tuple[Tensor | None, ...] | None:
        """Gradients of the inputs; ``None`` where the loss does not weigh positions as the sums do."""
        gradient = gradient.to(self.weights.dtype)
        share = (gradient @ self.weights) / (self.weights @ self.weights).clamp(min=torch.finfo(gradient.dtype).tiny)
        summed = [x for x in (self.weight, self.bias) if x is not None]
        if summed and not _nearly(gradient, share * self.weights):
            return None
        for x in summed:
            x.mul_(share)
        return None if self.hidden is None else self.hidden.mul_(gradient.unsqueeze(1)), self.weight, self.bias


def _nearly(given: Tensor, wanted: Tensor) -> bool:
    largest = given.abs().amax() if len(given) else given.sum()
    return bool(((given - wanted).abs() <= _ROUNDING * largest).all())


def _by_theirs(
    again: Again, inputs: Sequence[Tensor | None], needed: Sequence[bool], gradients: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs by TRL's own function: whatever the loss made of its results."""
    alone = [None if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=False)]
    with torch.enable_grad():
        scores = again(*alone)
        pairs = zip(scores, gradients, strict=False)
        terms = [(score * gradient).sum() for score, gradient in pairs if score is not None and gradient is not None]
    leaves = [x for x in alone if x is not None and x.requires_grad]
    made = iter(torch.autograd.grad(terms, leaves))
    return tuple(None if x is None or not x.requires_grad else next(made) for x in alone)


@dataclass(slots=True)
class _Projection:
    """The head, and memory for a tile: ``(n, V)`` logits and probabilities."""

    weight: Tensor
    bias: Tensor | None
    logits: Tensor
    probs: Tensor

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> _Projection:
        """In the precision that autocast asks for, as TRL has it; what follows the projection is float32 at least."""
        kind = hidden.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        wide = torch.promote_types(precision, torch.float32)
        height = max(1, min(len(hidden), _TILE // len(weight)))
        logits, probs = (hidden.new_empty(height, len(weight), dtype=wide) for _ in range(2))
        return cls(weight.to(precision), None if bias is None else bias.to(precision), logits, probs)

    def tiles(self, positions: int) -> Iterator[slice]:
        height = len(self.logits)
        return (slice(start, min(start + height, positions)) for start in range(0, positions, height))

    def __call__(self, hidden: Tensor) -> Tensor:
        projected = self.logits[: len(hidden)]
        hidden, head = hidden.to(self.weight.dtype), self.weight.t()
        if projected.dtype == head.dtype:
            torch.mm(hidden, head, out=projected)
        else:
            projected.copy_(hidden @ head)
        return projected if self.bias is None else projected.add_(self.bias)


def _score(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, scale: _Scale, sums: _Sums | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The scores, tile by tile; ``sums`` are filled on the way."""
    project = _Projection.of(hidden, weight, bias)
    log_probs, entropy = (torch.empty_like(targets, dtype=project.logits.dtype) for _ in range(2))
    is_top1 = torch.empty_like(targets, dtype=torch.bool)
    # sum_v p_v z_v is (sum_v p_v W_v) h, and the gradient by h holds that product, if nothing was rounded or bent
    by_gradient = sums is not None and scale.cap is None and sums.hidden is not None and weight.dtype == log_probs.dtype
    with torch.autocast(hidden.device.type, enabled=False):
        for rows in project.tiles(len(targets)):
            logits, slope = scale.logits(project(hidden[rows]))
            probs = project.probs[: len(logits)]
            own, log_z, is_top1[rows] = _normalized(logits, targets[rows], probs)
            log_probs[rows] = own - log_z
            if not by_gradient:
                entropy[rows] = log_z - logits.mul_(probs).sum(1)
            if sums is not None:
                probs[torch.arange(len(probs), device=probs.device), targets[rows]] -= 1
                sums.add(rows, hidden[rows], weight, probs if slope is None else probs.mul_(slope))
            if sums is not None and by_gradient:
                entropy[rows] = log_z - own - sums.mean_logit_over_own(rows, hidden[rows], bias, probs)
    return log_probs, entropy, is_top1


def _normalized(logits: Tensor, targets: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(n,)`` logits of the targets, log-partition functions, and whether the target is the first of the largest."""
    index = targets.unsqueeze(1)
    own = logits.gather(1, index)
    others = logits.scatter_(1, index, -torch.inf).amax(1, keepdim=True)
    logits.scatter_(1, index, own)
    torch.softmax(logits, 1, out=probs)
    log_z = torch.maximum(own, others) - probs.amax(1, keepdim=True).log_()
    is_top1, tied = (own > others).squeeze(1), (own == others).squeeze(1)
    if tied.any():
        is_top1[tied] = logits[tied].argmax(1) == targets[tied]
    return own.squeeze(1), log_z.squeeze(1), is_top1
