"""Does the data collator keep ids and labels as they are in the dataset, and packed documents apart?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.constants import IGNORE_INDEX
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Sample


def check_collator(sample: Sample) -> Iterator[Finding]:
    """Finds changed tokens, shifted labels, or labels that the dataset masks."""
    wrong = sum(sampled.wrong_ids for sampled in sample.rows)
    more = sum(int((sampled.trained & ~sampled.stored).sum()) for sampled in sample.rows)
    if sample.other_ids:
        why = f"the data collator changes the tokens: {sample.other_ids}."
    elif wrong:
        why = f"{wrong} labels are not the token at their position: labels must not be shifted, the model does that."
    elif more:
        why = f"{more} tokens that the dataset masks are trained in the batches: the data collator rebuilds labels."
    else:
        return
    yield Finding(symptoms.BROKEN, why, sample.cures.collator, sample.name)


def check_padding(sample: Sample) -> Iterator[Finding]:
    """Finds padding that is trained."""
    if sample.trained_padding and not sample.other_ids:
        yield Finding(
            symptoms.ENDLESS,
            f"{sample.trained_padding} padding tokens are trained.",
            sample.cure if sample.stored_padding else sample.cures.collator,
            sample.name,
        )


def check_documents(sample: Sample) -> Iterator[Finding]:
    """Finds a trained first token of a document, and documents that attend to each other."""
    for batch in sample.batches:
        positions = batch.get("position_ids")
        if positions is None or "seq_lengths" in batch:
            continue
        starts = positions == 0
        if bool((batch["labels"][starts] != IGNORE_INDEX).any()):
            why = "the first token of a packed document is trained: it would be predicted from the document before."
        elif batch.get("attention_mask") is not None and int(starts.sum()) > len(positions):
            why = "padding-free batches have an attention_mask, so documents see each other."
        else:
            continue
        yield Finding(symptoms.POOR, why, sample.cures.collator, sample.name)
        return
