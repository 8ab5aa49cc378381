"""The slow and obvious way to find the turns of the model: bytes in a list, markers by comparing slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from sft_mask.constants import ASSISTANT
from sft_mask.core.patterns import Kind, Pattern
from sft_mask.core.vocabulary import Vocabulary

BARRIER = -1  # a token without text, such as an id outside the vocabulary: nothing goes across it


def symbols_of(token: int, vocabulary: Vocabulary) -> list[int]:
    """A control token is one symbol, text is one symbol a byte."""
    if vocabulary.is_special(token) or (vocabulary.kind == "opaque" and 0 <= token < vocabulary.size):
        return [256 + token]
    return list(vocabulary.token_bytes(token)) or [BARRIER]


def is_sure(pattern: Pattern, read: int) -> bool:
    """Whether so much of a header at the end of a row shows that it is one."""
    return read < len(pattern.atoms) and (pattern.atoms[0] >= 256 or (read >= 4 and 2 * read >= len(pattern.atoms)))


def is_blank(symbols: Sequence[int]) -> bool:
    return all(symbol == BARRIER or (symbol < 256 and not bytes([symbol]).strip()) for symbol in symbols)


def longest_marker(row: list[int], at: int, patterns: Sequence[Pattern]) -> Pattern | None:
    here = [pattern for pattern in patterns if tuple(row[at : at + len(pattern.atoms)]) == pattern.atoms]
    return max(here, key=lambda pattern: len(pattern.atoms), default=None)


def find_markers(row: list[int], patterns: Sequence[Pattern]) -> list[tuple[int, int, Pattern]]:
    """From left to right, the longest at each place; then a header that the end of the row cut.

    Of end-of-turn texts that overlap with themselves the last.
    """
    longest_at = [longest_marker(row, at, patterns) for at in range(len(row))]
    found, at = [], 0
    while at < len(row):
        longest = longest_at[at]
        stop = at + (len(longest.atoms) if longest is not None else 1)
        later = next((place for place in range(at + 1, min(stop, len(row))) if longest_at[place] is not None), None)
        if later is not None and longest is longest_at[later] and longest.kind is Kind.EOT:
            at = later
            continue
        if longest is not None:
            goes_on = any(
                len(one.atoms) > len(row) - at and list(one.atoms[: len(row) - at]) == row[at:] for one in patterns
            )
            stop = len(row) if goes_on and longest.kind is Kind.RESPONSE else stop
            found.append((at, stop, longest))
        at = stop
    behind_stop = found[-1][1] if found and found[-1][2].kind is Kind.EOT else None
    for at in range(found[-1][1] if found else 0, len(row)):
        rest = tuple(row[at:])
        cut = [one for one in patterns if len(one.atoms) > len(rest) and one.atoms[: len(rest)] == rest]
        is_behind = behind_stop is not None and is_blank(row[behind_stop:at])
        cut = [one for one in cut if one.kind is not Kind.EOT and (is_behind or is_sure(one, len(rest)))]
        if cut:
            return [*found, (at, len(row), max(cut, key=lambda one: one.first_token_ends_turn))]
    return found


def look_of(token: int, vocabulary: Vocabulary) -> str:
    """``"control"``, ``"blank"`` or ``"text"``."""
    if vocabulary.is_special(token):
        return "control"
    return "text" if vocabulary.token_bytes(token).strip() else "blank"


@dataclass(frozen=True)
class Row:
    """One document: its tokens, padding left out, and what stands in them."""

    content: list[int]
    looks: list[str]
    owner: list[int]
    markers: list[tuple[int, int, Pattern]]

    def after(self, place: int) -> int:
        """One past the last token that holds a byte before a place."""
        return self.owner[place - 1] + 1 if place else 0

    def only_filler(self, low: int, high: int) -> bool:
        return high - low <= 8 and "text" not in self.looks[low:high]

    def control_follows(self, place: int) -> bool:
        return next((look for look in self.looks[place : place + 8] if look != "blank"), "") == "control"

    def stop_of(self, start: int, bound: int, closed: bool, complete: bool) -> tuple[int, int] | None:
        """Where the stop of an answer begins and ends, in tokens."""
        stops = [(low, high) for low, high, one in self.markers if one.kind is Kind.EOT and start <= low < bound]
        if not stops:
            return None
        if complete and not closed and not self.only_filler(self.after(stops[-1][1]), self.after(bound)):
            return None
        chosen = len(stops) - 1
        while chosen and self.only_filler(self.after(stops[chosen - 1][1]), self.owner[stops[chosen][0]]):
            chosen -= 1
        if not complete:
            chosen = next((k for k in range(chosen) if self.control_follows(self.after(stops[k][1]))), chosen)
        return self.after(stops[chosen][0]), self.after(stops[chosen][1])


def read_row(ids: Sequence[int], patterns: Sequence[Pattern], vocabulary: Vocabulary, pad: int | None) -> Row:
    pads = next((index for index, token in enumerate(reversed(ids)) if token != pad), len(ids))
    keeps_one = any(pattern.kind is Kind.EOT and pattern.atoms[0] == 256 + (pad or 0) for pattern in patterns)
    content = list(ids[: len(ids) - pads + (1 if pads and keeps_one else 0)])
    symbols = [symbol for token in content for symbol in symbols_of(token, vocabulary)]
    owner = [index for index, token in enumerate(content) for _ in symbols_of(token, vocabulary)]
    looks = [look_of(token, vocabulary) for token in ids]
    return Row(content, looks, [*owner, len(content)], find_markers(symbols, patterns))


def reference_turns(
    ids: Sequence[int],
    patterns: Sequence[Pattern],
    vocabulary: Vocabulary,
    *,
    complete: bool = False,
    open_end: bool = False,
    pad: int | None = None,
) -> list[dict[str, Any]]:
    """Turns of one document, with the fields of :class:`sft_mask.core.spans.Turns`."""
    row = read_row(ids, patterns, vocabulary, pad)
    headers = [marker for marker in row.markers if marker[2].kind is not Kind.EOT]
    turns: list[dict[str, Any]] = []
    previous_stop = 0
    for (header_start, start, header), closer in zip_longest(headers, headers[1:]):
        bound = closer[0] if closer is not None else len(row.owner) - 1
        is_stop = closer is not None and closer[2].first_token_ends_turn
        if header.kind is not Kind.RESPONSE or (start == bound and not is_stop):
            continue
        stopping = row.stop_of(start, bound, closer is not None, complete)
        if stopping is None and is_stop:
            stopping = row.owner[bound], row.owner[bound] + 1
        has_eot = stopping is not None
        eot_start, stop = stopping if stopping is not None else (row.after(bound), row.after(bound))
        first = max(row.owner[start], previous_stop)
        previous_stop = stop
        if stop > first:
            cut = not has_eot and closer is None and not open_end
            turns.append(
                {"start": first, "end": stop, "has_eot": has_eot, "cut": cut, "header": row.owner[header_start]}
                | {"eot_start": eot_start, "message": -1, "role": ASSISTANT, "weight": 1.0}
            )
    return turns
