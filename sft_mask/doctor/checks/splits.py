"""Are all splits masked alike?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined
from sft_mask.report.warnings import SHARE_FACTOR


def check_shares(examined: Examined) -> Iterator[Finding]:
    """Finds evaluation splits whose trained share is far from that of train."""
    samples = examined.samples
    train = samples["train"].share if "train" in samples else 0.0
    for name, sample in samples.items():
        if train and sample.rows and max(sample.share, train) > SHARE_FACTOR * min(sample.share, train):
            yield Finding(
                symptoms.INCOMPARABLE,
                f"{sample.share:.1%} of the tokens of {name} are trained, but {train:.1%} of train.",
                "Call train_on_responses_only after eval_dataset is set, or mask both with mask_dataset.",
                name,
            )
