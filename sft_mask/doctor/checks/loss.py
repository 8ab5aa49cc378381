"""Is the loss cross-entropy over the trained tokens, and over nothing else?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from typing import Any

import sft_mask.doctor.symptoms as symptoms
from sft_mask._compat import is_sft_trainer
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
    names = ("_metrics", "_total_train_tokens") if is_sft_trainer(trainer) else ()
    before, state = {name: deepcopy(getattr(trainer, name)) for name in names}, getattr(trainer, "_sft_mask", None)
    counted = copy(state)
    if state is not None:
        state.meters = {mode: Meter() for mode in state.meters}
    try:
        yield
    finally:
        vars(trainer).update(before)
        if counted is not None:
            trainer._sft_mask = counted


def _compare(trainer: Any, batch: dict[str, object]) -> Iterator[Finding]:
    loss = _loss(trainer, batch)
    other, after = _with_other_trained_token(batch), _with_other_last_token(batch)
    reference = _reference(trainer, batch)
    if other is not None and _ignores_labels(trainer, other, loss):
        why = "the loss does not change with a trained label."
    elif after is not None and abs(_loss(trainer, after) - loss) > 1e-6 * max(abs(loss), 1.0):
        why = "the loss changes with a masked token that nothing trained follows."
    elif abs(loss - reference) > _CLOSE * max(abs(reference), 1.0):
        why = f"the trainer's loss of a batch is {loss:.6g}, cross-entropy over its labels in fp32 is {reference:.6g}."
    else:
        return
    yield Finding(symptoms.BROKEN, why, _cure(trainer))


def _cure(trainer: Any) -> str:
    """What to do about a changed loss: the first thing that is known to change it."""
    smoothing, kind = trainer.args.label_smoothing_factor, getattr(trainer.args, "loss_type", "nll")
    if smoothing:
        return f"Build the trainer without label_smoothing_factor={smoothing:g}."
    if trainer.compute_loss_func is not None:
        return "trainer.compute_loss_func = None"
    if kind not in ("nll", "chunked_nll"):
        return f"Build the trainer without loss_type={kind!r}."
    if "compute_loss" in vars(trainer):
        return "Remove the compute_loss that was set on the trainer: del trainer.compute_loss"
    owner = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind) and not _is_ours(kind))
    return (
        f"Let compute_loss of {owner.__name__} return super().compute_loss(model, inputs, return_outputs, "
        "num_items_in_batch) with the batch it was given, or remove it."
    )


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("sft_mask.") or vars(kind)["compute_loss"].__module__.startswith("sft_mask.")


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
