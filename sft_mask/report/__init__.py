"""What masking did, in numbers, in lines and in warnings."""

from sft_mask.report.accounting import loss_warnings, spelled_losses
from sft_mask.report.counts import SplitReport
from sft_mask.report.mask_report import MarkerSummary, MaskReport, split_lines
from sft_mask.report.warnings import warnings_between, warnings_for

__all__ = [
    "MarkerSummary",
    "MaskReport",
    "SplitReport",
    "loss_warnings",
    "spelled_losses",
    "split_lines",
    "warnings_between",
    "warnings_for",
]
