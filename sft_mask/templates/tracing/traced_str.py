"""Strings that know the source of every character: a field of a message, a template argument, or the template itself.

Idea: taint tracking, as security tools do it for strings. Slicing, stripping, splitting and joining keep the sources.
Any other change gives the whole result to the first source, so text of a message never becomes the template's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import index as index_of
from typing import Any, SupportsIndex, cast

Runs = tuple[tuple[int, int], ...]
"""Length and source of each run of characters with one source."""

TEMPLATE = -1
"""Source of the template's own text."""

TOOLS = -2
"""Source of the tool definitions and other template arguments."""


def _append(runs: list[tuple[int, int]], length: int, source: int) -> None:
    if length <= 0:
        return
    if runs and runs[-1][1] == source:
        runs[-1] = (runs[-1][0] + length, source)
    else:
        runs.append((length, source))


def runs_of(text: object) -> Runs:
    """The runs of any string; plain strings are the template's."""
    if isinstance(text, Traced):
        return text.runs
    length = len(cast("str", text))
    return ((length, TEMPLATE),) if length else ()


def traced_join(parts: Sequence[str] | Iterator[str]) -> str:
    """``"".join`` that keeps sources."""
    pieces = list(parts)
    text = "".join(pieces)
    if not any(isinstance(piece, Traced) for piece in pieces):
        return text
    runs: list[tuple[int, int]] = []
    for piece in pieces:
        for length, source in runs_of(piece):
            _append(runs, length, source)
    return Traced(text, tuple(runs))


def _cut(runs: Runs, start: int, end: int) -> Runs:
    kept: list[tuple[int, int]] = []
    position = 0
    for length, source in runs:
        low, high = max(position, start), min(position + length, end)
        _append(kept, high - low, source)
        position += length
    return tuple(kept)


class Traced(str):
    """A string that knows the source of each character.

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
        """A changed text: sources are kept by position, or all of it is the first source's if the length changed."""
        if len(text) == len(self):
            return Traced(text, self.runs)
        return cast("str", with_source(text, self))

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

    def _located(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """The parts that a plain ``str`` method cut this string into at ``sep``, with their sources."""
        found: list[str] = []
        position = 0
        for part in parts:
            if sep is None:  # whitespace of any length was cut out
                position = str.find(self, part, position)
            found.append(self._sub(position, position + len(part)))
            position += len(part) + len(sep or "")
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        lines = self._located(str.splitlines(self, True), "")
        return (
            lines if keepends else [line[: len(bare)] for line, bare in zip(lines, str.splitlines(self), strict=True)]
        )

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._located(str.partition(self, sep), "")
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._located(str.rpartition(self, sep), "")
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return self._spread(str.replace(self, old, new, count))
        source = next((source for _, source in self.runs if source != TEMPLATE), TEMPLATE)
        fresh = new if isinstance(new, Traced) else Traced(new, ((len(new), source),) if new else ())
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
    """The result of the ``safe`` filter: as with ``markupsafe.Markup``, text joined to it is HTML-escaped.

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
    for length, source in runs_of(text):
        piece = str(escape(str.__getitem__(text, slice(position, position + length))))
        parts.append(Traced(piece, ((len(piece), source),)))
        position += length
    return traced_join(parts)


def with_source(result: object, *inputs: object) -> Any:
    """The result of a change: text without a source of its own gets the first one among the inputs."""
    if not isinstance(result, str) or isinstance(result, Traced) or not result:
        return result
    source = next(sources_in(inputs), None)
    return result if source is None else Traced(result, ((len(result), source),))


def _join(values: Iterable[object], separator: str) -> str:
    parts: list[str] = []
    for value in values:
        parts.extend((separator, value if isinstance(value, str) else with_source(str(value), value)))
    return traced_join(parts[1:])


def sources_in(value: object) -> Iterator[int]:
    """Sources of all text inside a value, in order, without the template."""
    if isinstance(value, Traced):
        yield from (source for _, source in value.runs if source != TEMPLATE)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from sources_in(key)
            yield from sources_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from sources_in(item)
