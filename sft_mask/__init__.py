"""Train a language model on its own words only.

>>> import sft_mask
>>> sorted(sft_mask.__all__)[:3]
['IGNORE_INDEX', 'Markers', 'MaskReport']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sft_mask.constants import IGNORE_INDEX
    from sft_mask.errors import SftMaskError
    from sft_mask.markers import Markers
    from sft_mask.offline import mask_dataset
    from sft_mask.policy import Policy
    from sft_mask.regions import Region
    from sft_mask.report import MaskReport, SplitReport
    from sft_mask.trainer import train_on_responses_only

_HOME = {
    "IGNORE_INDEX": "sft_mask.constants",
    "Markers": "sft_mask.markers",
    "MaskReport": "sft_mask.report",
    "Policy": "sft_mask.policy",
    "Region": "sft_mask.regions",
    "SftMaskError": "sft_mask.errors",
    "SplitReport": "sft_mask.report",
    "mask_dataset": "sft_mask.offline",
    "train_on_responses_only": "sft_mask.trainer",
}

__all__ = [
    "IGNORE_INDEX",
    "Markers",
    "MaskReport",
    "Policy",
    "Region",
    "SftMaskError",
    "SplitReport",
    "mask_dataset",
    "train_on_responses_only",
]


def __getattr__(name: str) -> Any:
    """Loads a public name when it is first used, so that importing the package costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'sft_mask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
