"""Headers of everybody but the user and the model, read from conversations in which they speak."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.markers import Markers
from sft_mask.templates.probes import all_heard, system, tool_turns, try_render, two_turns

if TYPE_CHECKING:
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered


_SURE_LETTERS = 4


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


def _other_header(template: ChatTemplate, markers: Markers, gap: str, ending: str = "") -> tuple[str, bool] | None:
    """The header in what stands between the model's words and another role's; and whether its token is the stop.

    ``ending`` is what the template writes after the same words where nobody else speaks.
    """
    core = str(markers.response[0])
    if core in gap:
        gap = gap[gap.rindex(core) + len(core) :]
    lead = template.lead(core)
    if lead is not None and lead in gap:
        header = gap[gap.rindex(lead) :]
        return (_shortened(template, header) if template.first_special(header[len(lead) :]) else header), False
    for stop in map(str, markers.eots):
        if stop in gap and stop not in map(str, markers.eot_headers):
            rest = gap[gap.rindex(stop) + len(stop) :]
            return (_shortened(template, rest), False) if rest.strip() else None
    found = [special for special in template.specials if special in gap]
    if not found:
        return (gap.strip(), False) if gap.strip() else None
    opener = template.first_special(gap[len(template.whole_tokens_prefix(gap, ending)) :]) if ending else None
    if opener is not None:
        return opener[1], True
    return max(found, key=lambda special: (gap.rindex(special) + len(special), len(special))), True


def _own_words_between(rendered: Rendered, before: int | None, after: int) -> str:
    """The text before a message's words where all of it is the template's; empty where other words come between."""
    message = rendered.message_of()
    end = int(np.flatnonzero(message == after)[0])
    start = 0 if before is None else int(np.flatnonzero(message == before)[-1]) + 1
    return rendered.text[start:end] if start < end and np.all(message[start:end] < 0) else ""


def roles_like_assistant(template: ChatTemplate) -> tuple[str, ...]:
    """Roles that a template does not tell from the model: written with its name or with theirs, the text is the same.

    Such a template knows two speakers, and writes whoever is not the user as the model.
    """
    asked = {"system": [system(), *two_turns()], "tool": tool_turns(as_text=True)}
    alike = []
    for role, messages in asked.items():
        renamed = [{**message, "role": "assistant"} if message["role"] == role else message for message in messages]
        theirs, models = try_render(template, messages), try_render(template, renamed)
        if theirs is not None and models is not None and theirs.text == models.text and _heard_all(theirs, role):
            alike.append(role)
    return tuple(alike)


def _heard_all(rendered: Rendered, role: str) -> bool:
    """Whether the words of a role can be seen at all."""
    heard = set(np.unique(rendered.message_of()).tolist())
    return all(index in heard for index, other in enumerate(rendered.roles) if other == role)


def system_headers(template: ChatTemplate, markers: Markers) -> list[str]:
    headers: list[str] = []
    if "system" in markers.like_assistant:
        return headers
    middle = try_render(template, [*two_turns()[:2], system(), *two_turns()[2:]])
    if middle is not None and all_heard(middle):
        found = _other_header(template, markers, _own_words_between(middle, 1, 2))
        headers.extend([found[0]] if found is not None else [])
    first = try_render(template, [system(), *two_turns()])
    if first is not None and all_heard(first):
        headers.append(_opening_header(template, _own_words_between(first, None, 0), markers))
    return headers


def _opening_header(template: ChatTemplate, opening: str, markers: Markers) -> str:
    lead = template.lead(str(markers.response[0]))
    bos = str(template.variables.get("bos_token") or "")
    if lead is not None and lead in opening:
        return _shortened(template, opening[opening.rindex(lead) :])
    return _shortened(template, opening.removeprefix(bos))


@dataclass(frozen=True, slots=True)
class ToolMarkers:
    others: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    eot_headers: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()


def _template_run(rendered: Rendered, before: int, after: int) -> str:
    """The template's own words between the last template run that follows one message and the next one's words."""
    message = rendered.message_of()
    end = int(np.flatnonzero(message == after)[0])
    own = np.flatnonzero(message[:end] == before)
    start = int(own[-1]) + 1 if len(own) else 0
    return rendered.text[start:end]


def tool_probe(template: ChatTemplate) -> tuple[Rendered, str] | None:
    """A rendered conversation with a tool call, and what the template writes after the call's words at the very end.

    Arguments are a mapping, or JSON text where the template wants that.
    """
    for as_text in (False, True):
        messages = tool_turns(as_text=as_text)
        rendered = try_render(template, messages)
        if rendered is not None and {2, 3} <= set(np.unique(rendered.message_of()).tolist()):
            alone = try_render(template, messages[:2])
            return rendered, "" if alone is None else _call_gap(template, alone)
    return None


def tool_markers(template: ChatTemplate, markers: Markers) -> ToolMarkers:
    """Headers and stops around a tool call and its result, from a conversation that has one."""
    probed = tool_probe(template)
    if probed is None or "tool" in markers.like_assistant:
        return ToolMarkers()
    rendered, ending = probed
    called = bool(np.any(rendered.message_of() == 1))
    gap = _call_gap(template, rendered) if called else _template_run(rendered, 0, 2)
    others, stops, eot_headers = [], [], []
    found = _other_header(template, markers, gap, ending if called else "")
    if found is not None:
        header, is_stop = found
        others.append(header)
        if is_stop and called:
            eot_headers.append(header)
            stops.append(header)
        elif called:
            stops.extend(_call_stop(template, markers, gap[: gap.rindex(header)] if header in gap else gap))
    resume = _resume_header(template, markers, _template_run(rendered, 2, 3))
    return ToolMarkers(tuple(others), tuple(stops), tuple(eot_headers), (resume,) if resume is not None else ())


def _resume_header(template: ChatTemplate, markers: Markers, gap: str) -> str | None:
    """What stands between a result and the answer where that has no header; from a control token on, if there is one.

    ``None`` for what is too short to be told from other text, or stands elsewhere too.
    """
    if str(markers.response[0]) in gap:
        return None
    elsewhere = [*map(str, markers.response), *map(str, markers.headers), *map(str, markers.eots)]
    starts = {found.start() for special in template.specials for found in re.finditer(re.escape(special), gap)}
    for start in sorted(starts, reverse=True):
        if not any(gap[start:].strip() in text for text in elsewhere):
            return gap[start:].rstrip(" ")
    bare = gap.strip().lstrip("\"'})")  # the end of a result, after the quotes and braces of its JSON
    return bare if sum(letter.isalnum() for letter in bare) >= _SURE_LETTERS else None


def _call_gap(template: ChatTemplate, rendered: Rendered) -> str:
    """What the template writes after a call: its first words after the arguments that hold a control token."""
    message = rendered.message_of()
    results = np.flatnonzero(message == 2)
    first_result = int(results[0]) if len(results) else len(message)
    own = np.flatnonzero(message[:first_result] == 1)
    arguments = rendered.text.find("Danube")
    edges = [*own[own >= arguments].tolist(), first_result]
    runs = [rendered.text[low + 1 : high] for low, high in pairwise(edges) if high - low > 1]
    return next((run for run in runs if template.first_special(run)), "".join(runs))


def _call_stop(template: ChatTemplate, markers: Markers, close: str) -> list[str]:
    if any(stop in close for stop in map(str, markers.eots)):
        return []
    found = [special for special in template.specials if special in close]
    return [max(found, key=close.rindex)] if found else []
