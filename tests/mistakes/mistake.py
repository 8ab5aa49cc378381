"""A mistake that a person makes, and what the error has to say about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mistake:
    """A mistake, and parts of the message that it must be answered with.

    Attributes:
        make: makes the mistake.
        seen: what was seen: a name, a role, a row, a text of the caller's.
        way_out: what to type or to change.
        follow: does what the message says; it must go through.
    """

    make: Callable[[], object]
    seen: str
    way_out: str
    follow: Callable[[], object] | None = None
