"""The slow and obvious way to find the turns of the model: bytes in a list, markers by comparing slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sft_mask.markers import Kind, Pattern
from sft_mask.tokens import Vocabulary

BARRIER = -1  # a token without text, such as an id outside the vocabulary: nothing goes across it


def symbols_of(token: int, vocabulary: Vocabulary) -> list[int]:
    """A control token is one symbol, text is one symbol a byte."""
    if vocabulary.is_special(token) or (vocabulary.kind == "opaque" and 0 <= token < vocabulary.size):
        return [256 + token]
    return list(vocabulary.piece(token)) or [BARRIER]


def is_sure(pattern: Pattern, read: int) -> bool:
    """Whether so much of a header at the end of a row shows that it is one."""
    return read < len(pattern.atoms) and (pattern.atoms[0] >= 256 or (read >= 4 and 2 * read >= len(pattern.atoms)))


def find_markers(row: list[int], patterns: Sequence[Pattern]) -> list[tuple[int, int, Pattern]]:
    """From left to right, the longest at each place; then a header that the end of the row cut."""
    found, at = [], 0
    while at < len(row):
        here = [pattern for pattern in patterns if tuple(row[at : at + len(pattern.atoms)]) == pattern.atoms]
        longest = max(here, key=lambda pattern: len(pattern.atoms), default=None)
        if longest is not None:
            found.append((at, at + len(longest.atoms), longest))
        at += len(longest.atoms) if longest is not None else 1
    for at in range(found[-1][1] if found else 0, len(row)):
        rest = tuple(row[at:])
        cut = [one for one in patterns if is_sure(one, len(rest)) and one.atoms[: len(rest)] == rest]
        cut = [one for one in cut if one.kind is not Kind.STOP]
        if cut:
            return [*found, (at, len(row), max(cut, key=lambda one: one.first_token_stops))]
    return found


def look_of(token: int, vocabulary: Vocabulary) -> str:
    """``"control"``, ``"blank"`` or ``"text"``."""
    if vocabulary.is_special(token):
        return "control"
    return "text" if vocabulary.piece(token).strip() else "blank"


def reference_turns(
    ids: Sequence[int],
    patterns: Sequence[Pattern],
    vocabulary: Vocabulary,
    *,
    complete: bool = False,
    open_end: bool = False,
    pad: int | None = None,
) -> list[dict[str, Any]]:
    """Turns of one document, with the fields of :class:`sft_mask.spans.Turns`."""
    pads = next((index for index, token in enumerate(reversed(ids)) if token != pad), len(ids))
    keeps_one = any(pattern.kind is Kind.STOP and pattern.atoms[0] == 256 + (pad or 0) for pattern in patterns)
    content = list(ids[: len(ids) - pads + (1 if pads and keeps_one else 0)])
    row = [symbol for token in content for symbol in symbols_of(token, vocabulary)]
    owner = [index for index, token in enumerate(content) for _ in symbols_of(token, vocabulary)] + [len(content)]
    markers = find_markers(row, patterns)
    looks = [look_of(token, vocabulary) for token in ids]

    def after(place: int) -> int:
        """One past the last token that holds a byte before a place."""
        return owner[place - 1] + 1 if place else 0

    def only_filler(low: int, high: int) -> bool:
        return high - low <= 8 and "text" not in looks[low:high]

    def control_follows(place: int) -> bool:
        return next((look for look in looks[place : place + 8] if look != "blank"), "") == "control"

    headers = [marker for marker in markers if marker[2].kind is not Kind.STOP]
    turns: list[dict[str, Any]] = []
    previous_stop = 0
    for index, (header_start, start, header) in enumerate(headers):
        closer = headers[index + 1] if index + 1 < len(headers) else None
        bound = closer[0] if closer is not None else len(row)
        if header.kind is not Kind.RESPONSE or start == bound:
            continue
        stop, stop_at, has_stop = after(bound), after(bound), False
        stops = [one for one in markers if one[2].kind is Kind.STOP and start <= one[0] < bound]
        if stops:
            end = after(stops[-1][1])
            ends_turn = closer is not None or not complete or only_filler(end, stop)
            chosen = len(stops) - 1
            while chosen and only_filler(after(stops[chosen - 1][1]), owner[stops[chosen][0]]):
                chosen -= 1
            if not complete:
                controlled = (k for k in range(chosen) if control_follows(after(stops[k][1])))
                chosen = next(controlled, chosen)
            if ends_turn:
                stop, stop_at, has_stop = after(stops[chosen][1]), after(stops[chosen][0]), True
        if closer is not None and not has_stop and closer[2].first_token_stops:
            stop_at, has_stop = owner[closer[0]], True
            stop = stop_at + 1
        first = max(owner[start], previous_stop)
        previous_stop = stop
        if stop > first:
            cut = not has_stop and closer is None and not open_end
            turns.append(
                {"start": first, "stop": stop, "has_stop": has_stop, "cut": cut, "header": owner[header_start]}
                | {"stop_at": stop_at, "message": -1}
            )
    return turns
