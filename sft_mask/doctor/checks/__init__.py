"""The doctor's checks, a module for each kind of fault. A new check is a function in one of them, and a line here.

A check of a split looks at one sample, whose collator keeps what the dataset holds (``check_collator`` comes before all
of them); a check of the trainer at all samples, after the findings of the splits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sft_mask.doctor.checks.answers import check_answers, check_cut_answers, check_eots, check_untrained_rows
from sft_mask.doctor.checks.collator import check_documents, check_padding
from sft_mask.doctor.checks.generation import check_generation_stops
from sft_mask.doctor.checks.leaks import check_leaks
from sft_mask.doctor.checks.loss import check_loss
from sft_mask.doctor.checks.splits import check_shares
from sft_mask.doctor.checks.words import check_words
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined, Sample

SPLIT_CHECKS: Sequence[Callable[[Sample], Iterator[Finding]]] = (
    check_padding,
    check_untrained_rows,
    check_leaks,
    check_answers,
    check_eots,
    check_cut_answers,
    check_documents,
)
TRAINER_CHECKS: Sequence[Callable[[Examined], Iterator[Finding]]] = (
    check_shares,
    check_words,
    check_generation_stops,
    check_loss,
)
