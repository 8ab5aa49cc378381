"""Turns that a policy adds or shortens, by the sources of a rendered conversation's characters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.templates.align import TextTurn

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools
    from sft_mask.templates.render import Rendered


def _came_from(rendered: Rendered, field: str) -> Bools:
    """``(characters,)`` whether each character came from this field of any message."""
    of_origin = np.array([origin.field == field for origin in rendered.origins] + [False, False])
    found: Bools = of_origin[rendered.source]
    return found


def turns_of_others(rendered: Rendered, wanted: Collection[int], eots: Sequence[tuple[int, int]]) -> Iterator[TextTurn]:
    """The contents of messages of other roles, each with the end-of-turn token directly after it.

    Args:
        rendered: the conversation.
        wanted: indices of messages.
        eots: where the template wrote end-of-turn tokens, in characters.
    """
    message = np.where(_came_from(rendered, "content"), rendered.message_of(), -1)
    for index in sorted(wanted):
        own = np.flatnonzero(message == index)
        if not len(own):
            continue
        start, words_end = int(own[0]), int(own[-1]) + 1
        follows = [eot for eot in eots if eot[0] >= words_end and not rendered.text[words_end : eot[0]].strip()]
        eot_start, end = follows[0] if follows else (words_end, words_end)
        yield TextTurn(header=start, start=start, end=end, eot_start=eot_start, first_message=index, message=index)


def without_tool_calls(rendered: Rendered, turns: Iterable[TextTurn]) -> Iterator[TextTurn]:
    """Turns that end with the last word before their first tool call; those that are only a call are left out.

    They have no end-of-turn token: what the assistant would have sampled after these words is the call.
    """
    call = _came_from(rendered, "tool_calls")
    spoken = np.flatnonzero((rendered.message_of() >= 0) & ~call)
    calls = np.flatnonzero(call)
    for turn in turns:
        first = int(np.searchsorted(calls, turn.start))
        if first == len(calls) or calls[first] >= turn.end:
            yield turn
            continue
        low, high = np.searchsorted(spoken, [turn.start, calls[first]])
        if high > low:
            end = int(spoken[high - 1]) + 1
            yield replace(turn, end=end, eot_start=end)
