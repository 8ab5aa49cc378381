"""Limits on what a chat template may do: rounds of loops and calls, and the size of any value it makes.

Jinja's sandbox keeps a template away from Python; it does not stop it from running forever or filling the memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

ROUNDS = 10_000_000
"""Rounds of loops, calls, and numbers in ranges, per rendering. A long conversation takes some thousands."""

SIZE = 200_000_000
"""Characters in a text, items in a list."""

BITS = 100_000
"""Bits in a whole number."""

_Value = TypeVar("_Value")
_ROUNDS_LEFT: ContextVar[list[int]] = ContextVar("rounds_left")


class LimitError(Exception):
    """A template exceeded a limit."""


@contextmanager
def limited() -> Iterator[None]:
    """A fresh count of rounds for what is rendered inside."""
    token = _ROUNDS_LEFT.set([ROUNDS])
    try:
        yield
    finally:
        _ROUNDS_LEFT.reset(token)


def spend_rounds(count: int = 1) -> None:
    """Counts rounds; raises :class:`LimitError` after too many."""
    left = _ROUNDS_LEFT.get()
    left[0] -= count
    if left[0] < 0:
        raise LimitError(f"more than {ROUNDS:,} rounds of loops and calls")


def counted(values: Iterable[_Value]) -> Iterator[_Value]:
    """The same values, each counted as a round."""
    for value in values:
        spend_rounds()
        yield value


def check_size(size: int) -> None:
    """Raises :class:`LimitError` for a text or a list that is too long."""
    if size > SIZE:
        raise LimitError(f"a text or a list of more than {SIZE:,} characters or items")


def check_bits(bits: int) -> None:
    """Raises :class:`LimitError` for a number that is too large."""
    if bits > BITS:
        raise LimitError(f"a number of more than {BITS:,} bits")


def sized(value: _Value) -> _Value:
    """The same value; raises :class:`LimitError` where it is a text or a list that is too long."""
    if isinstance(value, (str, list, tuple)):
        check_size(len(value))
    return value
