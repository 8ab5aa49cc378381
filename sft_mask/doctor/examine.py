"""``diagnose``: takes a sample of every split of a built trainer, and runs every check on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import sft_mask.doctor.symptoms as symptoms
from sft_mask.core.policy import Policy
from sft_mask.data.read.formats import column_names, named_splits, sample_rows
from sft_mask.data.setup import MaskSettings, masker_for
from sft_mask.doctor.checks import SPLIT_CHECKS, TRAINER_CHECKS
from sft_mask.doctor.checks.collator import check_collator
from sft_mask.doctor.cures import cures_of
from sft_mask.doctor.findings import Diagnosis, Finding, by_cause
from sft_mask.doctor.samples import Examined, Sample, some_rows, take_collated_sample, take_sample
from sft_mask.errors import LabelsChangedError
from sft_mask.explanations.rows import never_raising
from sft_mask.trainer.checks import collator_way_out
from sft_mask.trainer.kinds import check_kind
from sft_mask.trainer.read import TrainerInfo, collates_labels, read_trainer, speaker
from sft_mask.vision.collator import ResponseOnlyCollator
from sft_mask.vision.counts import CollatedCounts

if TYPE_CHECKING:
    from sft_mask.data.masker import Masker

_NO_ROWS = Finding(
    symptoms.NOTHING,
    "the train dataset has no rows left: TRL drops rows whose labels are all ignored.",
    "Build the trainer with a larger max_length if it cut the answers off, or without the labels column if it masks "
    "them.",
)


def diagnose(
    trainer: object,
    instruction_part: object = None,
    response_part: object = None,
    *,
    tokenizer: object = None,
    chat_template: str | None = None,
) -> Diagnosis:
    """Checks a built trainer, masked by this library or not, without changing it.

    Some rows of every split go through the trainer's own dataloader and collator. Their labels are compared with who
    speaks each token; the loss of one batch with cross-entropy over these labels in fp32, and with the loss after a
    trained label, or a masked token that nothing trained follows, was exchanged.

    Args:
        trainer: a built ``SFTTrainer``, or another ``transformers.Trainer``, trained or not.
        instruction_part: as in :func:`~sft_mask.trainer.entry.train_on_responses_only`, like ``response_part``,
            ``tokenizer`` and ``chat_template``; not needed for a trainer that was masked by it, or whose chat template
            shows its markers.

    Returns:
        The findings, each with its cure; print it.

    Raises:
        UnsupportedError: a trainer of another kind (``DPOTrainer``, say), or a slow tokenizer.
        MarkerError: no markers were given, and the chat template does not show them.
        DataError: there is no train dataset, or a split has no ``input_ids``.
    """
    check_kind(trainer, "diagnose")
    rows: object = getattr(trainer, "train_dataset", None)
    if hasattr(rows, "__len__") and not len(rows):
        return Diagnosis((_NO_ROWS,))
    collator = _collator(trainer, tokenizer, chat_template, instruction_part, response_part)
    if collator is None:
        info = read_trainer(trainer, tokenizer, chat_template, "diagnose")
        masker = _masker(trainer, info, instruction_part, response_part)
    else:
        masker = collator.labeller.masker
    findings: list[Finding] = []
    samples: dict[str, Sample] = {}
    for name, split in named_splits(trainer).items():
        try:
            samples[name] = (
                take_sample(trainer, split, masker, name)
                if collator is None
                else take_collated_sample(trainer, split, collator, name)
            )
        except (LabelsChangedError, KeyError, ValueError) as error:
            findings.append(_no_labels(error, name, trainer))
            continue
        findings.extend(_of_split(samples[name]))
    examined = Examined(trainer, samples, findings)
    findings = [*findings, *(finding for check in TRAINER_CHECKS for finding in check(examined))]
    policy = "" if masker.policy == Policy() else repr(masker.policy)
    return Diagnosis(by_cause(findings), {name: sample.measure() for name, sample in samples.items()}, policy)


def _of_split(sample: Sample) -> Sequence[Finding]:
    """What the checks find; only that the collator changes what the dataset holds if so, since the rest may follow."""
    changed = list(check_collator(sample))
    return changed or [finding for check in SPLIT_CHECKS for finding in check(sample)]


def _collator(
    trainer: Any, tokenizer: object, chat_template: str | None, instruction: object, response: object
) -> ResponseOnlyCollator | None:
    """The collator that makes the right labels of rows with images; ``None`` for other rows."""
    if not collates_labels(trainer, "diagnose"):
        return None
    state = getattr(trainer, "_sft_mask", None)
    own: object = getattr(state, "collator", None)
    if isinstance(own, ResponseOnlyCollator):
        return own.never_raising()
    settings = MaskSettings(instruction, response, on_ambiguous="drop", max_length=trainer.args.max_length)
    template = chat_template or getattr(trainer, "chat_template", None)
    processor = speaker(trainer, tokenizer)
    return ResponseOnlyCollator.of_settings(trainer.data_collator, processor, settings, template, CollatedCounts())


def _masker(trainer: object, info: TrainerInfo, instruction: object, response: object) -> Masker:
    state = getattr(trainer, "_sft_mask", None)
    if state is not None and state.masker is not None:
        return never_raising(state.masker)
    train = info.splits["train"]
    settings = MaskSettings(instruction, response, on_ambiguous="drop", max_length=info.max_length)
    return masker_for(info.tokenizer, sample_rows(train), settings, train, "the train dataset")


def _no_labels(error: Exception, split: str, trainer: Any) -> Finding:
    """A split whose batches have no labels that can be read."""
    dataset = named_splits(trainer)[split]
    cures = cures_of(trainer, split, some_rows(dataset))
    if "labels" not in column_names(dataset) and not collates_labels(trainer, "diagnose"):
        seen, cure = "neither the dataset nor the data collator makes labels, so there is no loss.", cures.mask
    else:
        reason = str(error).removesuffix(collator_way_out(trainer)).strip()
        seen, cure = f"the batches have no labels, or none that can be read: {reason}", cures.collator
        if collates_labels(trainer, "diagnose"):
            cure = "Call train_on_responses_only(trainer) again: it puts its own collator around the new one."
    return Finding(symptoms.BROKEN, seen, cure, split)
