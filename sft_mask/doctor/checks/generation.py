"""Does generation stop at the token that the model learns to stop with?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined


def check_generation_stops(examined: Examined) -> Iterator[Finding]:
    """Finds a generation config without any of the end-of-turn tokens that are trained."""
    trainer, samples = examined.trainer, examined.samples
    ends = getattr(getattr(trainer.model, "generation_config", None), "eos_token_id", None)
    stops_at = {ends} if isinstance(ends, int) else set(ends or ())
    speaker = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    stops_at |= {getattr(speaker, "eos_token_id", None)} - {None}  # training adds it to the config
    learnt: Counter[int] = Counter()
    for sampled, part in samples["train"].parts("eot") if "train" in samples else ():
        if sampled.trained[part.start : part.end].all():
            learnt[int(sampled.row.ids[part.end - 1])] += 1
    if stops_at and learnt and not stops_at & learnt.keys():
        ((token, _),) = learnt.most_common(1)
        yield Finding(
            symptoms.ENDLESS,
            f"the model learns to stop with token {token}, but its generation config stops at {sorted(stops_at)}.",
            f"Before saving, set trainer.model.generation_config.eos_token_id = {sorted({*stops_at, token})}",
        )
