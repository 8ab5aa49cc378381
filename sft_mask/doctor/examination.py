"""``diagnose``: from a built trainer to what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import sft_mask.doctor.findings as symptom
from sft_mask.constants import IGNORE_INDEX
from sft_mask.core.policy import Policy
from sft_mask.data.formats import sample_rows
from sft_mask.data.setup import MaskSettings, masker_for
from sft_mask.doctor.findings import Diagnosis, Finding
from sft_mask.doctor.labels import examine_labels, measure, share
from sft_mask.doctor.samples import Sample, take_sample
from sft_mask.errors import LabelsChangedError
from sft_mask.explanations.reasons import Storyteller
from sft_mask.explanations.rows import lenient
from sft_mask.report.warnings import SHARE_FACTOR
from sft_mask.trainer.read import TrainerInfo, read_trainer

if TYPE_CHECKING:
    from sft_mask.data.masker import Masker


_NO_ROWS = Finding(
    symptom.NOTHING,
    "the train dataset has no rows left: TRL drops those of which every label is ignored.",
    "Look at the labels before the trainer is built: they are all ignored, or max_length cut the answers off.",
)


def diagnose(
    trainer: Any,
    instruction_part: object = None,
    response_part: object = None,
    *,
    tokenizer: Any = None,
    chat_template: str | None = None,
) -> Diagnosis:
    """Looks at a built ``SFTTrainer`` as its loss will, masked by this library or not, and changes nothing.

    Some rows of every split go through the trainer's own dataloader and collator. Labels are compared with who says
    each token; the loss of one batch with cross-entropy over these labels in fp32, and with itself after a trained
    label, and a masked token that nothing follows, were exchanged.

    Args:
        trainer: built, trained or not.
        instruction_part: see :func:`~sft_mask.trainer.entry.train_on_responses_only`; not needed for a trainer that it
            was called on, or where the chat template shows its markers. So are ``response_part``, ``tokenizer`` and
            ``chat_template``.

    Returns:
        What is wrong, each with its cure; print it.

    Raises:
        UnsupportedError: another trainer, images, or a slow tokenizer.
        MarkerError: no markers were given, and the chat template does not show them.
        DataError: there is no train dataset, or a split has no ``input_ids``.
    """
    rows: Any = getattr(trainer, "train_dataset", None)
    if hasattr(rows, "__len__") and not len(rows):
        return Diagnosis((_NO_ROWS,))
    info = read_trainer(trainer, tokenizer, chat_template)
    masker = _masker(trainer, info, instruction_part, response_part)
    splits = {"train": trainer.train_dataset, **_evals(trainer)}
    found: list[Finding] = []
    samples: dict[str, Sample] = {}
    tell = Storyteller(masker).parts
    for name, split in splits.items():
        try:
            samples[name] = take_sample(trainer, split, masker, name, tell)
        except (LabelsChangedError, KeyError, ValueError) as error:
            found.append(_lost(error, name))
            continue
        found.extend(examine_labels(samples[name], masker.policy, info.tokenizer.vocabulary.text))
        found.extend(_documents(samples[name]))
    found.extend(_unlike(samples))
    found.extend(_stops_at_inference(trainer, samples))
    reached = not any(finding.symptom in (symptom.NOTHING, symptom.BROKEN) for finding in found)
    if reached and not samples["train"].trained_padding:
        from sft_mask.doctor.behaviour import examine_behaviour

        found.extend(examine_behaviour(trainer, samples["train"].batches[0]))
    asked = "" if masker.policy == Policy() else repr(masker.policy)
    return Diagnosis(tuple(found), {name: measure(sample) for name, sample in samples.items()}, asked)


def _masker(trainer: Any, info: TrainerInfo, instruction: object, response: object) -> Masker:
    state = getattr(trainer, "_sft_mask", None)
    if state is not None and state.masker is not None:
        return lenient(state.masker)
    train = info.splits["train"]
    asked = MaskSettings(instruction, response, on_ambiguous="drop", max_length=info.max_length)
    return masker_for(info.tokenizer, sample_rows(train), asked, train, "the train dataset")


def _evals(trainer: Any) -> Mapping[str, Any]:
    evals = trainer.eval_dataset
    if evals is None:
        return {}
    return {f"eval:{name}": split for name, split in evals.items()} if isinstance(evals, dict) else {"eval": evals}


def _lost(error: Exception, name: str) -> Finding:
    return Finding(
        symptom.BROKEN,
        f"the batches have no labels, or none that can be read: {error}",
        "Use a data collator that keeps the labels of the dataset, such as TRL's default.",
        name,
    )


def _documents(sample: Sample) -> Iterator[Finding]:
    """Faults of batches in which documents lie one behind the other without padding."""
    for batch in sample.batches:
        positions = batch.get("position_ids")
        if positions is None or "seq_lengths" in batch:
            continue
        starts = (positions == 0) & (positions.cumsum(-1) >= 0)
        if bool((batch["labels"][starts] != IGNORE_INDEX).any()):
            yield Finding(
                symptom.POOR,
                "the first token of a packed document is trained: it would be predicted from the document before.",
                "Mask the first label of each document, as TRL's collator does.",
                sample.name,
            )
            return
        if batch.get("attention_mask") is not None and int(starts.sum()) > len(positions):
            yield Finding(
                symptom.POOR,
                "padding-free batches have an attention_mask, so documents see each other.",
                "Leave attention_mask out of padding-free batches.",
                sample.name,
            )
            return


def _unlike(samples: Mapping[str, Sample]) -> Iterator[Finding]:
    train = samples.get("train")
    if train is None or not share(train):
        return
    for name, sample in samples.items():
        high, low = max(share(sample), share(train)), min(share(sample), share(train))
        if name != "train" and high > SHARE_FACTOR * low:
            yield Finding(
                symptom.UNLIKE,
                f"{share(sample):.1%} of the tokens of {name} are graded against {share(train):.1%} of train.",
                "Call train_on_responses_only after eval_dataset is set, or mask both with mask_dataset.",
                name,
            )


def _stops_at_inference(trainer: Any, samples: Mapping[str, Sample]) -> Iterator[Finding]:
    """Whether generation will stop at what the model learns to stop with."""
    config = getattr(trainer.model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    known = {ends} if isinstance(ends, int) else set(ends or ())
    known |= {getattr(trainer.processing_class, "eos_token_id", None)} - {None}  # training adds it to the config
    learnt: dict[int, int] = {}
    for seen in samples["train"].rows if "train" in samples else ():
        for part in seen.parts:
            if part.kind == "stop" and seen.trained[part.start : part.end].all():
                token = int(seen.row.ids[part.end - 1])
                learnt[token] = learnt.get(token, 0) + 1
    if known and learnt and not known & learnt.keys():
        stop = max(learnt, key=lambda token: learnt[token])
        yield Finding(
            symptom.ENDLESS,
            f"the model learns to stop with token {stop}, but its generation config stops at {sorted(known)}.",
            f"Set trainer.model.generation_config.eos_token_id = [{stop}, ...] before saving.",
        )
