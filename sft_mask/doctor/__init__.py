"""Looks at a built trainer as its loss will, and names what is wrong with its labels.

>>> from sft_mask.doctor import diagnose
"""

from __future__ import annotations

from sft_mask.doctor.examination import diagnose
from sft_mask.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
