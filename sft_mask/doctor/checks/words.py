"""Do the rows hold what the messages say, in the form that inference shows?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined, Sample
from sft_mask.report import SplitReport
from sft_mask.report.accounting import EXPAND

_TEMPLATE = (
    "Give the tokenizer a chat template that writes them before the trainer is built (chat_template_path= of SFTConfig)"
)


def check_words(examined: Examined) -> Iterator[Finding]:
    """Finds what the assistant says and no row holds, and answers in a form that inference never shows."""
    for name, sample in examined.samples.items():
        counts = _counts(examined, sample, name)
        yield from _unwritten(counts, name)
        yield from _forms(counts, name)
        yield from _cut_off(counts, name)


def _counts(examined: Examined, sample: Sample, name: str) -> SplitReport:
    """The counts of the trainer's report, which knows all rows; without one, those of the sample."""
    report = getattr(examined.trainer, "mask_report", None)
    whole: SplitReport | None = report.splits.get(name) if report is not None else None
    if whole is not None and whole.fields:
        return whole
    return sum((sampled.row.account.counts for sampled in sample.rows), SplitReport())


def _unwritten(counts: SplitReport, split: str) -> Iterator[Finding]:
    lost = dict(counts.lost)
    reasoning = lost.pop("reasoning", 0) - counts.turns_without_reasoning
    if lost:
        spelled = " and ".join(f"{count:,} of {counts.fields[name]:,} {name}" for name, count in lost.items())
        yield Finding(
            symptoms.SILENT,
            f"the chat template does not write {spelled}: where the model should say them, it learns to stop.",
            f"{_TEMPLATE}, or write them into the contents.",
            split,
        )
    if reasoning > 0:
        yield Finding(
            symptoms.THOUGHTLESS,
            f"the chat template does not write {reasoning:,} of {counts.fields['reasoning']:,} reasoning fields, not "
            "even in the last answer.",
            f"{_TEMPLATE}, or write the reasoning into the contents.",
            split,
        )


def _forms(counts: SplitReport, split: str) -> Iterator[Finding]:
    if counts.turns_in_other_form:
        lost = counts.turns_without_reasoning
        reasoning = f", {lost:,} of them without the reasoning that inference shows" if lost else ""
        yield Finding(
            symptoms.THOUGHTLESS if lost else symptoms.POOR,
            f"{counts.turns_in_other_form:,} of {counts.turns_compared:,} trained answers are in a form that inference "
            f"never shows{reasoning}: the chat template writes earlier answers otherwise than the last one.",
            f"Make the rows with {EXPAND} before the trainer is built, which shows each answer as inference does.",
            split,
        )
    if counts.turns_after_no_prompt:
        yield Finding(
            symptoms.THOUGHTLESS,
            f"{counts.turns_after_no_prompt:,} of {counts.turns_compared:,} trained answers come after none of the "
            "chat template's generation prompts: they are in another thinking mode than any prompt asks for.",
            "Give the rows the chat_template_kwargs that the data were made for, or use a chat template whose prompt "
            "is a beginning of its own finished answer.",
            split,
        )


def _cut_off(counts: SplitReport, split: str) -> Iterator[Finding]:
    if counts.answers_cut_off:
        answers = counts.turns + counts.answers_cut_off
        of = f"of {answers:,} answers " if counts.turns else "answers "
        yield Finding(
            symptoms.FORGETFUL,
            f"{counts.answers_cut_off:,} {of}({counts.tokens_cut_off:,} tokens) are beyond max_length: no row holds "
            "anything of them.",
            "Build the trainer with a larger max_length, or split long conversations.",
            split,
        )
