"""Checks a built trainer the way its loss sees it, and names what is wrong with its labels.

``samples`` takes some rows and their batches, each module of ``checks`` looks at one kind of fault, ``examine``
runs them all.

>>> from sft_mask.doctor import diagnose
"""

from __future__ import annotations

from sft_mask.doctor.examine import diagnose
from sft_mask.doctor.findings import Diagnosis, Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
