"""Is the loss cross-entropy over the trained tokens, and over nothing else?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import sft_mask.doctor.symptoms as symptoms
from sft_mask.constants import IGNORE_INDEX
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined
from sft_mask.errors import LabelsChangedError, extra

with extra("train", "The doctor"):
    import torch

    from sft_mask.functional import compute_sft_loss
    from sft_mask.trainer.metrics import Meter
    from sft_mask.trainer.weighted_loss import split_labels

_CLOSE = 2e-3
"""Relative difference that half precision and another order of summation can make."""
_METHOD = "The trainer's compute_loss was changed: call super().compute_loss, or remove the change."


def check_loss(examined: Examined) -> Iterator[Finding]:
    """Finds a wrong loss on one batch; the trainer's model and metrics are left as they were.

    Only if labels reach the loss: otherwise there is nothing to compare it with.
    """
    trainer = examined.trainer
    labels_fail = any(finding.symptom in (symptoms.NOTHING, symptoms.BROKEN) for finding in examined.findings)
    if labels_fail or examined.samples["train"].trained_padding:
        return
    training = trainer.model.training
    with _metrics_kept(trainer), torch.no_grad():
        trainer.model.eval()
        findings = list(_compare(trainer, trainer._prepare_inputs(dict(examined.samples["train"].batches[0]))))
    trainer.model.train(training)
    yield from findings


@contextmanager
def _metrics_kept(trainer: Any) -> Iterator[None]:
    """Keeps what the loss counts in the block out of the trainer's log."""
    metrics = {mode: dict(kept) for mode, kept in trainer._metrics.items()}
    tokens, state = trainer._total_train_tokens, getattr(trainer, "_sft_mask", None)
    counted = copy(state)
    if state is not None:
        state.meters = {mode: Meter() for mode in state.meters}
    try:
        yield
    finally:
        trainer._total_train_tokens = tokens
        for mode, kept in metrics.items():
            trainer._metrics[mode].clear()
            trainer._metrics[mode].update(kept)
        if counted is not None:
            trainer._sft_mask = counted


def _compare(trainer: object, batch: dict[str, object]) -> Iterator[Finding]:
    loss = _loss(trainer, batch)
    reference = _reference(trainer, batch)
    if abs(loss - reference) > _CLOSE * max(abs(reference), 1.0):
        yield Finding(
            symptoms.BROKEN,
            f"the trainer's loss of a batch is {loss:.6g}, cross-entropy over its labels in fp32 is {reference:.6g}.",
            "Remove what changes the loss (label smoothing, loss_type, compute_loss_func, a compute_loss of your own).",
        )
    other = _with_other_trained_token(batch)
    if other is not None and _ignores_labels(trainer, other, loss):
        yield Finding(symptoms.BROKEN, "the loss does not change with a trained label.", _METHOD)
    after = _with_other_last_token(batch)
    if after is not None and abs(_loss(trainer, after) - loss) > 1e-6 * max(abs(loss), 1.0):
        yield Finding(symptoms.BROKEN, "the loss changes with a masked token that nothing trained follows.", _METHOD)


def _loss(trainer: Any, batch: dict[str, object]) -> float:
    return float(trainer.compute_loss(trainer.model, dict(batch)))


def _ignores_labels(trainer: object, other: dict[str, object], loss: float) -> bool:
    """Whether another label changes nothing; an error of this library about it is a change."""
    try:
        return _loss(trainer, other) == loss
    except LabelsChangedError:
        return False


def _reference(trainer: Any, batch: dict[str, Any]) -> float:
    labels, weights = split_labels(batch["labels"])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = trainer.model(**inputs, use_cache=False).logits
    virtual = logits.shape[1] - labels.shape[1]
    return float(compute_sft_loss(logits[:, virtual:].float(), labels, weights))


def _with_other_trained_token(batch: dict[str, Any]) -> dict[str, Any] | None:
    """The batch with one trained label exchanged for another trained id."""
    labels = batch["labels"].clone()
    places = torch.nonzero(labels[:, 1:] != IGNORE_INDEX) + torch.tensor([0, 1], device=labels.device)
    others = [place for place in places.tolist() if labels[tuple(place)] != labels[tuple(places[0].tolist())]]
    if not others:
        return None
    labels[tuple(places[0].tolist())] = labels[tuple(others[0])]
    return {**batch, "labels": labels}


def _with_other_last_token(batch: dict[str, Any]) -> dict[str, object] | None:
    """The batch with the last token of a row exchanged, if it is masked and not padding: no other token sees it."""
    labels, ids, mask = batch["labels"], batch["input_ids"].clone(), batch.get("attention_mask")
    for row in range(len(labels)):
        last = int(mask[row].nonzero()[-1]) if mask is not None else labels.shape[1] - 1
        if labels[row, last] == IGNORE_INDEX and int(ids[row, 0]) != int(ids[row, last]):
            ids[row, last] = ids[row, 0]
            return {**batch, "input_ids": ids}
    return None
