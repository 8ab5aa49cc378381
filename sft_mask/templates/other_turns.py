"""Turns that a policy adds or shortens, by the owners of a rendered conversation's characters.

The words of a message of any role are its content's characters; a tool call is whatever came out of ``tool_calls``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.templates.align import TextTurn

if TYPE_CHECKING:
    from sft_mask.core.arrays import Bools
    from sft_mask.templates.render import Rendered


def _owned_by(rendered: Rendered, field: str) -> Bools:
    """``(characters,)`` whether each character came out of a field of any message."""
    of_origin = np.array([origin.field == field for origin in rendered.origins] + [False, False])
    owned: Bools = of_origin[rendered.owner]
    return owned


def turns_of_others(
    rendered: Rendered, wanted: Collection[int], stops: Sequence[tuple[int, int]]
) -> Iterator[TextTurn]:
    """The words of messages that are not the model's, with the stop that follows them directly.

    Args:
        rendered: the conversation.
        wanted: indices of messages.
        stops: where the template wrote a stop, in characters.
    """
    message = np.where(_owned_by(rendered, "content"), rendered.message_of(), -1)
    for index in sorted(wanted):
        own = np.flatnonzero(message == index)
        if not len(own):
            continue
        start, said = int(own[0]), int(own[-1]) + 1
        follows = [place for place in stops if place[0] >= said and not rendered.text[said : place[0]].strip()]
        eot_start, end = follows[0] if follows else (said, said)
        yield TextTurn(start, start, end, eot_start, index, index)


def without_tool_calls(rendered: Rendered, turns: Iterable[TextTurn]) -> Iterator[TextTurn]:
    """Turns that end, unstopped, with the last word before their first tool call; those that are only a call are gone.

    The stop goes with the call: what the model would have sampled after its words is the call.
    """
    call = _owned_by(rendered, "tool_calls")
    said = np.flatnonzero((rendered.message_of() >= 0) & ~call)
    calls = np.flatnonzero(call)
    for turn in turns:
        first = int(np.searchsorted(calls, turn.start))
        if first == len(calls) or calls[first] >= turn.end:
            yield turn
            continue
        low, high = np.searchsorted(said, [turn.start, calls[first]])
        if high > low:
            end = int(said[high - 1]) + 1
            yield replace(turn, end=end, eot_start=end)
