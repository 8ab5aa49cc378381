"""Train a language model on its own words only.

>>> import sft_mask
>>> sorted(sft_mask.__all__)[:3]
['IGNORE_INDEX', 'Markers', 'MaskReport']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_mask.compare import compare_masks, compare_roads
    from sft_mask.constants import IGNORE_INDEX
    from sft_mask.detection import detect_markers
    from sft_mask.errors import SftMaskError
    from sft_mask.markers import Markers
    from sft_mask.offline import mask_dataset
    from sft_mask.policy import Policy
    from sft_mask.preview.source import preview_rows
    from sft_mask.regions import Region
    from sft_mask.report import MaskReport, SplitReport
    from sft_mask.snapshot import verify_snapshot, write_snapshot
    from sft_mask.story import explain
    from sft_mask.trainer import train_on_responses_only

_HOME = {
    "IGNORE_INDEX": "sft_mask.constants",
    "Markers": "sft_mask.markers",
    "MaskReport": "sft_mask.report",
    "Policy": "sft_mask.policy",
    "Region": "sft_mask.regions",
    "SftMaskError": "sft_mask.errors",
    "SplitReport": "sft_mask.report",
    "compare_masks": "sft_mask.compare",
    "compare_roads": "sft_mask.compare",
    "detect_markers": "sft_mask.detection",
    "explain": "sft_mask.story",
    "mask_dataset": "sft_mask.offline",
    "preview_rows": "sft_mask.preview.source",
    "train_on_responses_only": "sft_mask.trainer",
    "verify_snapshot": "sft_mask.snapshot",
    "write_snapshot": "sft_mask.snapshot",
}

__all__ = [
    "IGNORE_INDEX",
    "Markers",
    "MaskReport",
    "Policy",
    "Region",
    "SftMaskError",
    "SplitReport",
    "compare_masks",
    "compare_roads",
    "detect_markers",
    "explain",
    "mask_dataset",
    "preview_rows",
    "train_on_responses_only",
    "verify_snapshot",
    "write_snapshot",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'sft_mask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
