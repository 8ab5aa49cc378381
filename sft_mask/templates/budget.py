"""What a chat template may cost: each round of a loop, each call, each operation and all text are paid for in steps.

The sandbox of Jinja keeps a template away from Python, not from running forever. Idea: fuel, as the runtimes of
WebAssembly have it. What may grow is paid before it is made, so there is no clock, no thread and no signal, and a
template that is refused here is refused everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from sft_mask.templates.traced_str import Traced

STEPS = 1_000_000
"""Of a rendering, whatever it renders. Templates of real models take a few thousand for a long conversation."""

STEPS_A_CHARACTER = 10
"""In addition, for each character of the conversation."""

_CHARACTERS_A_MESSAGE = 500
"""At least; there are templates that look at every message again for each message."""

_CHARACTERS_A_STEP = 64
"""Text is copied so much faster than a template runs."""


class OverBudgetError(Exception):
    """A template has used up what it may cost."""


class _Purse:
    """Steps that are left to one rendering."""

    __slots__ = ("left",)

    def __init__(self, steps: int) -> None:
        self.left = steps


_PURSE: ContextVar[_Purse | None] = ContextVar("purse", default=None)


@contextmanager
def budget(characters: int) -> Iterator[None]:
    """What is rendered inside may cost so many steps as a conversation of this length allows."""
    token = _PURSE.set(_Purse(STEPS + STEPS_A_CHARACTER * characters))
    try:
        yield
    finally:
        _PURSE.reset(token)


def size_of(value: object) -> int:
    """Characters inside of a value; a list or a mapping counts like a message of some length."""
    return sum(len(item) if isinstance(item, str) else _CHARACTERS_A_MESSAGE for item in inside_of(value))


def inside_of(value: object) -> Iterator[Any]:
    """A value and all that stands inside of it; what stands in several places comes as often."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        yield item
        if not isinstance(item, str):
            waiting.extend(_items(item))


def spend(steps: int) -> None:
    """Pays.

    Raises:
        OverBudgetError: no steps are left.
    """
    purse = _PURSE.get()
    if purse is None:
        return
    purse.left -= steps
    if purse.left < 0:
        raise OverBudgetError


def counted(values: Iterable[Any], steps: int = 1) -> Iterator[Any]:
    """The same values, each of which is paid for."""
    for value in values:
        spend(steps)
        yield value


def spend_text(characters: int) -> None:
    """Pays for text of this length."""
    spend(1 + characters // _CHARACTERS_A_STEP)


def spend_surface(value: object) -> None:
    """Pays for one look at a value: the length of text, the number of items, the digits of a number."""
    if isinstance(value, str):
        spend_text(len(value))
        if isinstance(value, Traced):
            spend(len(value.runs))
    elif isinstance(value, (list, tuple, dict, range)):
        spend_text(len(value))
    elif type(value) is int:
        spend(value.bit_length())


def spend_depth(value: object) -> int:
    """Pays for all that stands inside of a value, for what stands in several places in each; tells the steps."""
    paid = 0
    for item in inside_of(value):
        steps = 1
        if isinstance(item, str):
            steps += len(item) // _CHARACTERS_A_STEP
        elif isinstance(item, (list, tuple, dict, range)):
            steps += len(item)
        spend(steps)
        paid += steps
    return paid


def _items(value: object) -> list[Any]:
    from jinja2.utils import Namespace

    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, type({}.keys()), type({}.values()), type({}.items()))):
        return list(value)
    return []


# operations whose result is larger than what goes in


def spend_product(left: Any, right: Any) -> None:
    """Pays for ``left * right`` before it is made."""
    count, repeated = (left, right) if isinstance(left, int) else (right, left)
    if isinstance(count, int) and isinstance(repeated, (str, list, tuple)):
        is_copied = type(repeated) is str  # at once; what is traced is joined piece by piece
        spend_text(max(count, 0) * len(repeated) * (1 if is_copied else _CHARACTERS_A_STEP))
    elif isinstance(left, int) and isinstance(right, int):
        spend(left.bit_length() + right.bit_length())


def spend_power(left: Any, right: Any) -> None:
    """Pays for ``left ** right`` before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        spend(left.bit_length() * max(right, 0))


def spend_replacing(text: str, old: str, new: str) -> None:
    """Pays for ``text.replace(old, new)`` before it is made."""
    found = text.count(old)
    spend(found)
    spend_text(len(text) + found * len(new))


def spend_joining(separator: str, parts: Iterable[Any]) -> list[Any]:
    """The parts, paid for with the text between them before they are joined."""
    items = list(counted(parts))
    spend_text(len(separator) * len(items))
    for item in items:
        spend_depth(item)
    return items


def spend_numbers(values: Iterable[Any], steps: int = 1) -> None:
    """Pays for widths and counts: each whole number among the values costs its size."""
    for value in values:
        if type(value) is int:
            spend(abs(value) * steps)


_WIDTH = re.compile(r"\d{5,}")
_WIDTH_ELSEWHERE = re.compile(r"%[^a-zA-Z]*\*|\{[^{}]*:[^{}]*\{")


def spend_format(pattern: str, values: Iterable[Any]) -> None:
    """Pays for the widths that a format asks for, in itself (``{:>99}``, ``%99d``) or by its values (``%*d``)."""
    spend_numbers(int(width) for width in _WIDTH.findall(pattern))
    if _WIDTH_ELSEWHERE.search(pattern):
        spend_numbers(values)
