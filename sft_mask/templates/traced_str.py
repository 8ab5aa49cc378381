"""Strings that know, for every character, whose words it is.

Idea: taint tracking, as security tools do it for strings. Slicing, stripping, splitting and joining keep the origin.
What changes the text in another way makes all of it the first owner's: words of a message never become the template's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import index as index_of
from typing import Any, SupportsIndex, cast

Runs = tuple[tuple[int, int], ...]
"""Lengths and owners of consecutive pieces of a string."""

NOBODY = -1
"""Owner of the template's own words."""

TOOLS = -2
"""Owner of the tool definitions and other template arguments."""


def _append(runs: list[tuple[int, int]], length: int, owner: int) -> None:
    if length <= 0:
        return
    if runs and runs[-1][1] == owner:
        runs[-1] = (runs[-1][0] + length, owner)
    else:
        runs.append((length, owner))


def runs_of(text: object) -> Runs:
    """The origin of any string; plain strings are the template's."""
    if isinstance(text, Traced):
        return text.runs
    length = len(cast("str", text))
    return ((length, NOBODY),) if length else ()


def traced_join(parts: Sequence[str] | Iterator[str]) -> str:
    """``"".join`` that keeps origins."""
    pieces = list(parts)
    text = "".join(pieces)
    if not any(isinstance(piece, Traced) for piece in pieces):
        return text
    runs: list[tuple[int, int]] = []
    for piece in pieces:
        for length, owner in runs_of(piece):
            _append(runs, length, owner)
    return Traced(text, tuple(runs))


def _cut(runs: Runs, start: int, end: int) -> Runs:
    kept: list[tuple[int, int]] = []
    position = 0
    for length, owner in runs:
        low, high = max(position, start), min(position + length, end)
        _append(kept, high - low, owner)
        position += length
    return tuple(kept)


class Traced(str):
    """A string that knows where its characters came from.

    >>> greeting = "<" + Traced(" hi ", ((4, 7),)).strip() + ">"
    >>> greeting, runs_of(greeting)
    ('<hi>', ((1, -1), (2, 7), (1, -1)))
    """

    runs: Runs
    __slots__ = ("runs",)

    def __new__(cls, text: str, runs: Runs) -> Traced:
        made = super().__new__(cls, text)
        made.runs = runs
        return made

    def _sub(self, start: int, end: int) -> Traced:
        return Traced(str.__getitem__(self, slice(start, end)), _cut(self.runs, start, end))

    def _spread(self, text: str) -> str:
        """The origin of a changed text: kept letter by letter, or the first owner's where the length changed."""
        if len(text) == len(self):
            return Traced(text, self.runs)
        return cast("str", owned(text, self))

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return traced_join((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return traced_join((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return traced_join([self] * int(count))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            index = range(len(self))[index_of(key)]  # a template's "text"["type"] must stay a TypeError
            return self._sub(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._sub(start, max(start, stop))
        return traced_join([self._sub(index, index + 1) for index in range(start, stop, step)])

    def __iter__(self) -> Iterator[str]:
        return (self._sub(index, index + 1) for index in range(len(self)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._sub(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._sub(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def _pieces(self, parts: Sequence[str], *, backwards: bool = False) -> list[str]:
        """The parts that a plain ``str`` method cut this string into, in order, with their origins."""
        found: list[str] = []
        position = len(self) if backwards else 0
        for part in reversed(parts) if backwards else parts:
            if backwards:
                position = str.rfind(self, part, 0, position)
                found.insert(0, self._sub(position, position + len(part)))
            else:
                position = str.find(self, part, position)
                found.append(self._sub(position, position + len(part)))
                position += len(part)
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:
            return self._pieces(str.split(self, None, maxsplit))
        parts, position = [], 0
        for part in str.split(self, sep, maxsplit):
            parts.append(self._sub(position, position + len(part)))
            position += len(part) + len(sep)
        return cast("list[str]", parts)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:
            return self._pieces(str.rsplit(self, None, maxsplit), backwards=True)
        parts, position = [], 0
        for part in str.rsplit(self, sep, maxsplit):
            parts.append(self._sub(position, position + len(part)))
            position += len(part) + len(sep)
        return cast("list[str]", parts)

    def splitlines(self, keepends: bool = False) -> list[str]:
        parts, position = [], 0
        for plain, whole in zip(str.splitlines(self), str.splitlines(self, True), strict=True):
            parts.append(self._sub(position, position + len(whole if keepends else plain)))
            position += len(whole)
        return cast("list[str]", parts)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        at = str.find(self, sep)
        if at < 0:
            return self, "", ""
        return self._sub(0, at), self._sub(at, at + len(sep)), self._sub(at + len(sep), len(self))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        at = str.rfind(self, sep)
        if at < 0:
            return "", "", self
        return self._sub(0, at), self._sub(at, at + len(sep)), self._sub(at + len(sep), len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return self._spread(str.replace(self, old, new, count))
        owner = next((owner for _, owner in self.runs if owner != NOBODY), NOBODY)
        fresh = new if isinstance(new, Traced) else Traced(new, ((len(new), owner),) if new else ())
        parts = self.split(old, count)
        return traced_join([piece for part in parts for piece in (fresh, part)][1:])

    def removeprefix(self, prefix: str, /) -> str:
        return self._sub(len(prefix), len(self)) if str.startswith(self, prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self._sub(0, len(self) - len(suffix)) if suffix and str.endswith(self, suffix) else self

    def join(self, parts: Any, /) -> str:
        return _join(parts, self)

    def lower(self) -> str:
        return self._spread(str.lower(self))

    def upper(self) -> str:
        return self._spread(str.upper(self))

    def title(self) -> str:
        return self._spread(str.title(self))

    def capitalize(self) -> str:
        return self._spread(str.capitalize(self))

    def casefold(self) -> str:
        return self._spread(str.casefold(self))

    def swapcase(self) -> str:
        return self._spread(str.swapcase(self))


class SafeTraced(Traced):
    """What the ``safe`` filter gives: as with ``markupsafe.Markup``, text joined to it is HTML-escaped.

    Mistral's tool templates do this, so their quotes really are rendered as ``&#34;``.
    """

    __slots__ = ()

    def __add__(self, other: str) -> str:
        return self._safe_join(self, _escaped(other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return self._safe_join(_escaped(other), self) if isinstance(other, str) else NotImplemented

    @staticmethod
    def _safe_join(*parts: str) -> SafeTraced:
        text = traced_join(parts)
        return SafeTraced(str.__str__(text), runs_of(text))


def _escaped(text: str) -> str:
    from markupsafe import escape

    if isinstance(text, SafeTraced):
        return text
    parts: list[str] = []
    position = 0
    for length, owner in runs_of(text):
        piece = str(escape(str.__getitem__(text, slice(position, position + length))))
        parts.append(Traced(piece, ((len(piece), owner),)))
        position += length
    return traced_join(parts)


def owned(result: Any, *sources: object) -> Any:
    """Text that came out of a change without an origin belongs to the first owner among what went in."""
    if not isinstance(result, str) or isinstance(result, Traced) or not result:
        return result
    owner = next(owners_in(sources), None)
    return result if owner is None else Traced(result, ((len(result), owner),))


def _join(values: Iterable[object], separator: str) -> str:
    parts: list[str] = []
    for value in values:
        parts.extend((separator, value if isinstance(value, str) else owned(str(value), value)))
    return traced_join(parts[1:])


def owners_in(value: object) -> Iterator[int]:
    """Owners of all the words inside a value, in order."""
    if isinstance(value, Traced):
        yield from (owner for _, owner in value.runs if owner != NOBODY)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from owners_in(key)
            yield from owners_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from owners_in(item)
