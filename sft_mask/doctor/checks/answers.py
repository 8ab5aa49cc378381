"""Are the answers and their end-of-turn tokens trained?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Sample

_FEW = 0.5
"""Below this share of the answers' tokens the mask is taken for wrong, and not for a choice."""
_MANY_CUT = 0.2


def check_untrained_rows(sample: Sample) -> Iterator[Finding]:
    """Finds rows that train nothing, or that all do."""
    empty = [sampled.row.number for sampled in sample.rows if not sampled.trained.any()]
    if empty and len(empty) == len(sample.rows):
        yield Finding(
            symptoms.NOTHING,
            f"none of {sample.tokens} tokens of {len(sample.rows)} rows is trained.",
            "Compare the markers with a row, and check whether max_length cut the answers off.",
            sample.name,
        )
    elif empty:
        yield Finding(
            symptoms.NOTHING,
            f"{len(empty)} of {len(sample.rows)} rows train nothing; the loss of a batch of such rows is 0.",
            "Drop them (train_on_responses_only does), or raise max_length if it cut the answers off.",
            sample.name,
            f"row {empty[0]}",
        )


def check_answers(sample: Sample) -> Iterator[Finding]:
    """Finds answers most of whose tokens are masked."""
    trained, answers = sample.counts("answer")
    if sample.trained_tokens and trained < _FEW * answers:
        yield Finding(
            symptoms.WRONG_WORDS,
            f"only {trained} of {answers} tokens of the assistant's answers are trained.",
            "Check whether instruction_part and response_part are swapped, and whether labels were masked before.",
            sample.name,
        )


def check_eots(sample: Sample) -> Iterator[Finding]:
    """Finds end-of-turn tokens none of which is trained."""
    trained, eots = sample.counts("eot")
    if trained or not eots or not sample.trained_tokens or sample.policy.stop != "always":
        return
    in_dataset = any(sampled.stored[part.start : part.end].any() for sampled, part in sample.parts("eot"))
    why = f"none of the {eots} end-of-turn tokens is trained, although the loss looks healthy"
    if in_dataset:
        why += "; the dataset trains them, so the data collator masks them as padding: both are the same token"
    cure = "Call train_on_responses_only(trainer) between building the trainer and .train()."
    yield Finding(
        symptoms.ENDLESS,
        f"{why}.",
        "Use TRL's default collator, which pads by length." if in_dataset else cure,
        sample.name,
    )


def check_cut_answers(sample: Sample) -> Iterator[Finding]:
    """Finds many rows that end inside an answer."""
    cut = [sampled.row.number for sampled in sample.rows if sampled.row.turns.cut.any()]
    if sample.trained_tokens and len(cut) > _MANY_CUT * len(sample.rows):
        yield Finding(
            symptoms.POOR,
            f"{len(cut)} of {len(sample.rows)} rows end in the middle of an answer: the model learns half sentences.",
            "Raise max_length, or leave such answers out with Policy(cut_answers='mask').",
            sample.name,
            f"row {cut[0]}",
        )
