"""Parameters of a test, most of them marked."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def slow_but(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """``values`` as parameters of a test, all but those in ``fast`` marked ``slow``."""
    every = list(values)
    assert set(fast) <= set(every), f"{set(fast) - set(every)} are not among {every}"
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in every]
