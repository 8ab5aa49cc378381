"""Headers of system messages and tools, read from conversations that have some."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.markers import Markers
from sft_mask.templates.probes import Messages, system, tool_turns, try_render, two_turns

if TYPE_CHECKING:
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered

_SURE_LETTERS = 4


def roles_like_assistant(template: ChatTemplate) -> tuple[str, ...]:
    """Roles that a template writes exactly as it writes the assistant.

    Such a template has two speakers, and writes everyone but the user as the assistant.
    """
    conversations: dict[str, Messages] = {"system": [system(), *two_turns()], "tool": tool_turns(as_text=True)}
    alike = []
    for role, messages in conversations.items():
        renamed = [{**message, "role": "assistant"} if message["role"] == role else message for message in messages]
        theirs, assistants = try_render(template, messages), try_render(template, renamed)
        if theirs is None or assistants is None or theirs.text != assistants.text:
            continue
        if {index for index, other in enumerate(theirs.roles) if other == role} <= theirs.written():
            alike.append(role)
    return tuple(alike)


def system_headers(template: ChatTemplate, markers: Markers) -> list[str]:
    """Headers of system messages, inside a conversation and at its beginning."""
    headers: list[str] = []
    if "system" in markers.like_assistant:
        return headers
    messages = two_turns()
    middle = try_render(template, [*messages[:2], system(), *messages[2:]])
    if middle is not None and middle.writes_all():
        found = _other_header(template, markers, _own_text_between(middle, 1, 2))
        headers.extend([found[0]] if found is not None else [])
    first = try_render(template, [system(), *messages])
    if first is not None and first.writes_all():
        opening = _own_text_between(first, None, 0)
        lead = template.lead(str(markers.response[0]))
        has_lead = lead is not None and lead in opening
        header = opening[opening.rindex(str(lead)) :] if has_lead else opening.removeprefix(template.bos)
        headers.append(_shortened(template, header))
    return headers


def _own_text_between(rendered: Rendered, before: int | None, after: int) -> str:
    """The text between two messages where all of it is the template's; empty where other words come between."""
    text, message = rendered.between(before, after), rendered.message_of()
    end = int(np.flatnonzero(message == after)[0])
    return text if text and np.all(message[end - len(text) : end] < 0) else ""


def _other_header(template: ChatTemplate, markers: Markers, gap: str, ending: str = "") -> tuple[str, bool] | None:
    """The header in what the template writes between an answer and another role's words, ``None`` where it has none.

    Also whether its control token is itself the end-of-turn token. ``ending`` is what the template writes after the
    same answer where no message follows.
    """
    gap = gap.rpartition(str(markers.response[0]))[2]
    lead = template.lead(str(markers.response[0]))
    if lead is not None and lead in gap:
        header = gap[gap.rindex(lead) :]
        return (_shortened(template, header) if template.first_special(header[len(lead) :]) else header), False
    for eot in map(str, markers.eots):
        if eot in gap and eot not in map(str, markers.eot_headers):
            rest = gap.rpartition(eot)[2]
            return (_shortened(template, rest), False) if rest.strip() else None
    found = [special for special in template.specials if special in gap]
    if not found:
        return (gap.strip(), False) if gap.strip() else None
    opener = template.first_special(gap[len(template.whole_tokens_prefix(gap, ending)) :]) if ending else None
    if opener is not None:
        return opener[1], True
    return max(found, key=lambda special: (gap.rindex(special) + len(special), len(special))), True


def _shortened(template: ChatTemplate, header: str) -> str:
    """A header of another role: its control token, with the role's name where that follows it."""
    header = header.strip()
    found = template.first_special(header)
    if found is None or found[0] != 0:
        return header.split("\n")[0]
    opener = len(found[1])
    rest = header[opener:]
    second = template.first_special(rest)
    name = rest if second is None else rest[: second[0] + len(second[1])]
    line = name.split("\n")[0]
    return header[:opener] + (name[: len(line) + 1] if line and line != name else name)


# tools


@dataclass(frozen=True, slots=True)
class ToolMarkers:
    """What a template writes around tool calls and results.

    Attributes:
        others: headers of results.
        eots: what ends a call.
        eot_headers: headers of results whose first token ends the call.
        resume: what comes before an answer to a result, where that is not a response header.
    """

    others: tuple[str, ...] = ()
    eots: tuple[str, ...] = ()
    eot_headers: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()


def tool_probe(template: ChatTemplate) -> tuple[Rendered, str] | None:
    """A rendered conversation with a tool call, and what the template writes after the call where nothing follows it.

    Arguments are a mapping, or JSON text where the template wants that.
    """
    for as_text in (False, True):
        messages = tool_turns(as_text=as_text)
        rendered = try_render(template, messages)
        if rendered is not None and {2, 3} <= rendered.written():
            alone = try_render(template, messages[:2])
            return rendered, "" if alone is None else _call_gap(template, alone)
    return None


def tool_markers(template: ChatTemplate, markers: Markers) -> ToolMarkers:
    """Headers and end-of-turn tokens around a tool call and its result, from a conversation that has them."""
    probed = tool_probe(template)
    if probed is None or "tool" in markers.like_assistant:
        return ToolMarkers()
    rendered, ending = probed
    called = 1 in rendered.written()
    gap = _call_gap(template, rendered) if called else _gap_before(rendered, 0, 2)
    header, is_eot = _other_header(template, markers, gap, ending if called else "") or ("", False)
    others = (header,) if header else ()
    resume = _resume_header(template, markers, _gap_before(rendered, 2, 3))
    if not header or not called:
        return ToolMarkers(others, resume=resume)
    if is_eot:
        return ToolMarkers(others, others, others, resume)
    close = gap.rpartition(header)[0] if header in gap else gap
    return ToolMarkers(others, _call_eot(template, markers, close), resume=resume)


def _gap_before(rendered: Rendered, before: int, after: int) -> str:
    """The text from the last words of message ``before`` that precede message ``after`` up to the latter's words."""
    message = rendered.message_of()
    end = int(np.flatnonzero(message == after)[0])
    own = np.flatnonzero(message[:end] == before)
    return rendered.text[int(own[-1]) + 1 if len(own) else 0 : end]


def _call_gap(template: ChatTemplate, rendered: Rendered) -> str:
    """What the template writes after a call: its first text after the arguments that holds a control token."""
    message = rendered.message_of()
    results = np.flatnonzero(message == 2)
    first_result = int(results[0]) if len(results) else len(message)
    own = np.flatnonzero(message[:first_result] == 1)
    arguments = rendered.text.find("Danube")
    edges = [*own[own >= arguments].tolist(), first_result]
    runs = [rendered.text[low + 1 : high] for low, high in pairwise(edges) if high - low > 1]
    return next((run for run in runs if template.first_special(run)), "".join(runs))


def _call_eot(template: ChatTemplate, markers: Markers, close: str) -> tuple[str, ...]:
    """The last control token that closes a call; none where a known end-of-turn token does."""
    if any(eot in close for eot in map(str, markers.eots)):
        return ()
    found = [special for special in template.specials if special in close]
    return (max(found, key=close.rindex),) if found else ()


def _resume_header(template: ChatTemplate, markers: Markers, gap: str) -> tuple[str, ...]:
    """What comes between a result and the answer where that has no header: from a control token on, if there is one.

    Nothing where that is too short to be told from other text, or occurs elsewhere too.
    """
    if str(markers.response[0]) in gap:
        return ()
    elsewhere = [*map(str, markers.response), *map(str, markers.headers), *map(str, markers.eots)]
    starts = {found.start() for special in template.specials for found in re.finditer(re.escape(special), gap)}
    for start in sorted(starts, reverse=True):
        if not any(gap[start:].strip() in text for text in elsewhere):
            return (gap[start:].rstrip(" "),)
    bare = gap.strip().lstrip("\"'})")  # the end of a result, after the quotes and braces of its JSON
    return (bare,) if sum(letter.isalnum() for letter in bare) >= _SURE_LETTERS else ()
