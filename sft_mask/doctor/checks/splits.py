"""Are all splits masked alike?"""

from __future__ import annotations

from collections.abc import Iterator

import sft_mask.doctor.symptoms as symptoms
from sft_mask.doctor.findings import Finding
from sft_mask.doctor.samples import Examined
from sft_mask.report.warnings import SHARE_FACTOR


def check_shares(examined: Examined) -> Iterator[Finding]:
    """Finds evaluation splits whose trained share is far from that of train, where one of the two masks is wrong."""
    samples = examined.samples
    train = samples["train"].share if "train" in samples else 0.0
    for name, sample in samples.items():
        cure = next((each.cure for split in (name, "train") for each in examined.findings if each.split == split), None)
        far = train and sample.rows and max(sample.share, train) > SHARE_FACTOR * min(sample.share, train)
        if cure is not None and far:
            why = f"{sample.share:.1%} of the tokens of {name} are trained, but {train:.1%} of train."
            yield Finding(symptoms.INCOMPARABLE, why, cure, name)
