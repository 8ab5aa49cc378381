"""What masking did, in numbers, in lines and in warnings."""

from sft_mask.report.counts import SplitReport
from sft_mask.report.mask_report import MarkerSummary, MaskReport, split_lines
from sft_mask.report.warnings import warnings_between, warnings_for

__all__ = ["MarkerSummary", "MaskReport", "SplitReport", "split_lines", "warnings_between", "warnings_for"]
