"""Train a chat model on the assistant's answers only.

>>> import sft_mask
>>> sorted(sft_mask.__all__)[:3]
['IGNORE_INDEX', 'LogMask', 'Markers']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sft_mask.constants import IGNORE_INDEX
    from sft_mask.core.markers import Markers
    from sft_mask.core.policy import Policy
    from sft_mask.core.regions import Region
    from sft_mask.data.mask_dataset import mask_dataset
    from sft_mask.errors import SftMaskError
    from sft_mask.preview.diff import compare_masks
    from sft_mask.preview.rows import explain
    from sft_mask.preview.snapshot import verify_snapshot, write_snapshot
    from sft_mask.preview.source import preview_rows
    from sft_mask.report import MaskReport, SplitReport
    from sft_mask.templates.detection.detect import detect_markers
    from sft_mask.tracking.log_mask import LogMask
    from sft_mask.tracking.sample_answers import SampleAnswers
    from sft_mask.trainer.entry import train_on_responses_only
    from sft_mask.vision.collator import ResponseOnlyCollator

_HOME = {
    "IGNORE_INDEX": "sft_mask.constants",
    "LogMask": "sft_mask.tracking.log_mask",
    "Markers": "sft_mask.core.markers",
    "MaskReport": "sft_mask.report",
    "Policy": "sft_mask.core.policy",
    "Region": "sft_mask.core.regions",
    "ResponseOnlyCollator": "sft_mask.vision.collator",
    "SampleAnswers": "sft_mask.tracking.sample_answers",
    "SftMaskError": "sft_mask.errors",
    "SplitReport": "sft_mask.report",
    "compare_masks": "sft_mask.preview.diff",
    "detect_markers": "sft_mask.templates.detection.detect",
    "explain": "sft_mask.preview.rows",
    "mask_dataset": "sft_mask.data.mask_dataset",
    "preview_rows": "sft_mask.preview.source",
    "train_on_responses_only": "sft_mask.trainer.entry",
    "verify_snapshot": "sft_mask.preview.snapshot",
    "write_snapshot": "sft_mask.preview.snapshot",
}

__all__ = [
    "IGNORE_INDEX",
    "LogMask",
    "Markers",
    "MaskReport",
    "Policy",
    "Region",
    "ResponseOnlyCollator",
    "SampleAnswers",
    "SftMaskError",
    "SplitReport",
    "compare_masks",
    "detect_markers",
    "explain",
    "mask_dataset",
    "preview_rows",
    "train_on_responses_only",
    "verify_snapshot",
    "write_snapshot",
]


def __getattr__(name: str) -> object:
    """Imports a public name on first use, so that importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'sft_mask' has no attribute {name!r}")
    value: object = getattr(import_module(_HOME[name]), name)
    return value
