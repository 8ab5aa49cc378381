"""Are the answers and their end-of-turn tokens trained?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import FEW, Sample, SampledRow

_MANY_CUT = 0.2


def check_untrained_rows(sample: Sample) -> Iterator[Finding]:
    """Finds rows that train nothing, or that all do."""
    empty = [sampled for sampled in sample.rows if not sampled.trained.any()]
    if not empty:
        return
    hidden = sum(bool(sampled.should.any()) for sampled in empty)
    if hidden:
        cure = sample.cures.collator if any(sampled.stored.any() for sampled in empty) else sample.cures.afresh
        cause = f"{hidden} of these have an answer, whose labels are masked."
    else:
        cure = f"{sample.cures.longer} if it cut the answers off, or drop these rows (train_on_responses_only does)."
        cause = f"no answer is found in them; the first, row {empty[0].row.number}, has {len(empty[0].trained)} tokens."
    if len(empty) == len(sample.rows):
        seen = f"none of {sample.tokens} tokens of {len(sample.rows)} rows is trained; {cause}"
    else:
        seen = f"{len(empty)} of {len(sample.rows)} rows train nothing; the loss of a batch of such rows is 0; {cause}"
    yield Finding(symptoms.NOTHING, seen, cure, sample.name, f"row {empty[0].row.number}")


def check_answers(sample: Sample) -> Iterator[Finding]:
    """Finds answers most of whose tokens are masked."""
    count = sample.counts("answer")
    if sample.trained_tokens and count.trained < FEW * count.wanted:
        yield Finding(
            symptoms.WRONG_WORDS,
            f"only {count.trained} of {count.wanted} tokens of the assistant's answers are trained.",
            sample.cure if count.stored < FEW * count.wanted else sample.cures.collator,
            sample.name,
        )


def check_eots(sample: Sample) -> Iterator[Finding]:
    """Finds end-of-turn tokens of which none or few are trained."""
    count = sample.counts("eot")
    if not sample.trained_tokens or count.trained >= FEW * count.wanted:
        return
    some, verb = (f"only {count.trained}", "are") if count.trained else ("none", "is")
    why = f"{some} of the {count.wanted} end-of-turn tokens {verb} trained, although the loss looks healthy"
    in_dataset = count.stored >= FEW * count.wanted
    if in_dataset:
        why += "; the dataset trains them, so the data collator masks them as padding: both are the same token"
    cure = sample.cures.collator if in_dataset else sample.cure
    yield Finding(symptoms.ENDLESS, f"{why}.", cure, sample.name)


def check_cut_answers(sample: Sample) -> Iterator[Finding]:
    """Finds many rows that end inside an answer which is trained."""
    cut = [sampled.row.number for sampled in sample.rows if _trains_cut_answer(sampled)]
    if sample.trained_tokens and len(cut) > _MANY_CUT * len(sample.rows):
        yield Finding(
            symptoms.POOR,
            f"{len(cut)} of {len(sample.rows)} rows end in the middle of an answer: the model learns half sentences.",
            f"{sample.cures.longer}, or leave such answers out: train_on_responses_only(trainer, "
            "policy=Policy(cut_answers='mask')).",
            sample.name,
            f"row {cut[0]}",
        )


def _trains_cut_answer(sampled: SampledRow) -> bool:
    turns = sampled.row.turns.select(sampled.row.turns.cut)
    return any(sampled.trained[start:end].any() for start, end in zip(turns.start, turns.end, strict=True))
