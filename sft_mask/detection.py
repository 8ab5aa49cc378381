"""Markers, read from any chat template by watching what it writes.

Short conversations of known words are rendered with :mod:`sft_mask.tracing`; what stands between two people's words is
the template's. From these gaps come the response header (what the generation prompt adds), the headers of the others, the
stop (what follows an answer) and what a generation prompt prefills. No template is known by name. Every result is then
proven: in rendered and tokenized conversations the turns found by marker must hold every word of the model's and no word
of anybody else's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.errors import DataError, DetectionError
from sft_mask.markers import Markers

if TYPE_CHECKING:
    from sft_mask.template import ChatTemplate
    from sft_mask.tracing import Rendered

Message = Mapping[str, Any]

EMPTY_BLOCK = re.compile(r"\s*(?:<([\w|:]+)>\s*</\1>|\[(\w+)\]\s*\[/\2\]|<\|channel>\w*\s*<channel\|>)\s*")
"""An empty reasoning block: nothing but a pair of tags. The model never samples one it was not asked for."""

_WORDS = ("Where does the river begin", "It begins in the hills", "And where does it end", "It ends in the sea")
_THINKING = ({}, {"enable_thinking": False}, {"enable_thinking": True}, {"thinking": False}, {"thinking": True})


def _say(role: str, words: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": words, **more}


def _two_turns(*, parts: bool = False) -> list[dict[str, Any]]:
    roles = ("user", "assistant", "user", "assistant")
    said = [_say(role, words) for role, words in zip(roles, _WORDS, strict=True)]
    if parts:
        said = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in said]
    return said


def _system() -> dict[str, Any]:
    return _say("system", "Answer in plain words")


def _tool_turns(*, as_text: bool = False) -> list[dict[str, Any]]:
    call = {
        "id": "a1b2c3d4e",
        "type": "function",
        "function": {"name": "river_length", "arguments": '{"river": "Danube"}' if as_text else {"river": "Danube"}},
    }
    first, last = _two_turns()[:2], _two_turns()[2:]
    return [
        first[0],
        _say("assistant", "", tool_calls=[call]),
        _say("tool", "two thousand eight hundred", name="river_length", tool_call_id="a1b2c3d4e"),
        first[1],
        *last,
    ]


def text_between(rendered: Rendered, before: int | None, after: int | None) -> str:
    """The text between the last character of one message and the first one of another; ``None`` for the ends."""
    message = rendered.message_of()
    start, stop = 0, len(rendered.text)
    if before is not None:
        start = int(np.flatnonzero(message == before)[-1]) + 1
    if after is not None:
        stop = int(np.flatnonzero(message == after)[0])
    return rendered.text[start:stop]


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a template writes around the words of a plain conversation.

    Attributes:
        opening: before the first user turn.
        to_model: after a user's words, before the answer's.
        to_user: after an answer, before the next user's words.
        ending: after the last answer.
        after_user: after a user's words at the end of a conversation, without and with the generation prompt.
        prompts: every form of the generation prompt (thinking on, off, unsaid), cut to what follows the user's words.
    """

    opening: str
    to_model: tuple[str, ...]
    to_user: str
    ending: str
    after_user: tuple[str, str]
    prompts: tuple[str, ...]


def _tail(rendered: Rendered) -> str:
    return text_between(rendered, len(rendered.roles) - 1, None)


def _prompts(template: ChatTemplate, messages: Sequence[Message]) -> list[str]:
    """What follows the last message when the model is asked to speak, in each way the template knows."""
    found = []
    for variables in _THINKING:
        if not all(name in template.source for name in variables):
            continue
        rendered = _try(template, messages, add_generation_prompt=True, variables=variables)
        if rendered is not None:
            found.append(_tail(rendered))
    return list(dict.fromkeys(found))


def _try(template: ChatTemplate, messages: Sequence[Message], **how: Any) -> Rendered | None:
    """A rendered conversation in which every message's words can be seen, or ``None`` where the template refuses it."""
    try:
        rendered = template.render(messages, **how)
    except DataError:
        return None
    return rendered


def _all_heard(rendered: Rendered) -> bool:
    return set(range(len(rendered.roles))) <= set(np.unique(rendered.message_of()).tolist())


def _reasoned(template: ChatTemplate) -> list[str]:
    """What stands before the reasoning of an answer that has some."""
    said = _two_turns()[:2]
    rendered = _try(template, [said[0], {**said[1], "reasoning_content": "It must be up there"}])
    if rendered is None or not _all_heard(rendered):
        return []
    return [text_between(rendered, 0, 1)]


def _read_gaps(template: ChatTemplate, *, parts: bool) -> Gaps | None:
    messages = _two_turns(parts=parts)
    whole = _try(template, messages)
    asked = _try(template, messages[:1], add_generation_prompt=True)
    silent = _try(template, messages[:1])
    if whole is None or asked is None or not _all_heard(whole) or not _all_heard(asked):
        return None
    to_model = (text_between(whole, 0, 1), text_between(whole, 2, 3), *_reasoned(template))
    after = (_tail(silent) if silent is not None and _all_heard(silent) else _tail(asked), _tail(asked))
    return Gaps(
        text_between(whole, None, 0),
        to_model,
        text_between(whole, 1, 2),
        text_between(whole, 3, None),
        after,
        tuple(_prompts(template, messages[:1])),
    )


def _whole_tokens_prefix(template: ChatTemplate, *texts: str) -> str:
    """The longest common beginning that does not end inside a control token of any text."""
    common = commonprefix(texts)
    for text in texts:
        for special in template.specials:
            at = text.find(special)
            while at >= 0:
                if at < len(common) < at + len(special):
                    common = common[:at]
                at = text.find(special, at + 1)
    return common


def _common_suffix(first: str, second: str) -> str:
    return commonprefix([first[::-1], second[::-1]])[::-1]


def _lead(template: ChatTemplate, header: str) -> str | None:
    """The control token that a header begins with."""
    found = template.first_special(header)
    return found[1] if found is not None and not header[: found[0]].strip() else None


def _one_token(template: ChatTemplate, close: str) -> str:
    """The text up to the first control token, with the blanks after it."""
    found = template.first_special(close)
    if found is None:
        return close
    stop = found[0] + len(found[1])
    return close[: stop + len(close[stop:]) - len(close[stop:].lstrip())]


def _response_core(template: ChatTemplate, gaps: Gaps) -> str:
    """The part of the response header that every generation prompt and every rendered answer share."""
    silent, asked = gaps.after_user
    close = _whole_tokens_prefix(template, silent, asked) if silent != asked else ""
    if not close and gaps.ending:
        close = _one_token(template, _whole_tokens_prefix(template, gaps.ending, gaps.to_user, asked))
    header = asked[len(close) :]
    if not header.strip():
        header = asked
    cut = len(asked) - len(header)
    core = _whole_tokens_prefix(template, header, *(gap[cut:] for gap in gaps.to_model))
    lead = _lead(template, core.lstrip())
    return core.lstrip() if lead is not None else core


def _instruction_header(template: ChatTemplate, gaps: Gaps, core: str) -> str:
    lead = _lead(template, core)
    if lead is not None and lead in gaps.to_user:
        return gaps.to_user[gaps.to_user.rindex(lead) :]
    ending = gaps.ending[: gaps.ending.index(core)] if core in gaps.ending else gaps.ending
    header = gaps.to_user[len(_whole_tokens_prefix(template, ending, gaps.to_user)) :]
    if not header.strip() or header == gaps.to_user and header.strip() == header and lead is not None:
        shared = _common_suffix(gaps.opening, gaps.to_user)
        header = shared if shared.strip() else header
    return header.lstrip()


def _stops(template: ChatTemplate, close: str, ending: str) -> tuple[str, ...]:
    """What the model has to sample after an answer, inside a conversation and at its end.

    Inside, it is all that the template writes before the next header, but for blanks. At the end a template may add
    more (Phi-3 writes ``<|endoftext|>`` after ``<|end|>``), which nobody samples, or use another token (gpt-oss writes
    ``<|return|>`` for ``<|end|>``).
    """
    bos = str(template.variables.get("bos_token") or "")
    inside = (close.removesuffix(bos) if bos else close).strip()
    if inside and ending.strip().startswith(inside):
        return (inside,)
    found = template.first_special(ending)
    last = ending.strip() if found is None else found[1]
    return _unique((inside, last))


def _prefills(core: str, gaps: Gaps) -> list[str]:
    """Response headers longer than the core: prefilled tags, and empty blocks that the template puts before an answer."""
    found = []
    for prompt in gaps.prompts:
        if core in prompt:
            found.append(prompt[prompt.rindex(core) :])
    for gap in gaps.to_model:
        more = gap[gap.rindex(core) + len(core) :] if core in gap else ""
        block = EMPTY_BLOCK.fullmatch(more)
        if block is not None and not any((core + more).startswith(prompt) for prompt in found if prompt != core):
            found.append(core + more)
    return [text for text in dict.fromkeys(found) if text != core and text.startswith(core)]


def _plain_markers(template: ChatTemplate, gaps: Gaps) -> Markers:
    core = _response_core(template, gaps)
    if not core.strip():
        raise DetectionError("The chat template writes nothing between a user's words and the model's.")
    instruction = _instruction_header(template, gaps, core)
    at = gaps.to_user.rindex(instruction) if instruction in gaps.to_user else len(gaps.to_user)
    close = gaps.to_user[:at]
    ending = gaps.ending[: gaps.ending.index(core)] if core in gaps.ending else gaps.ending
    stops = _stops(template, close, ending)
    stop_headers: tuple[str, ...] = ()
    opener = _lead(template, instruction)
    if not close.strip() and opener is not None:
        stop_headers, stops = (instruction,), _unique((*stops, opener))
    return Markers(
        response=_unique((core, *_prefills(core, gaps))),
        instruction=(instruction,),
        stops=stops,
        stop_headers=stop_headers,
        open_end=not ending.strip(),
        separator=close if not close.strip() and not stop_headers else "",
        detected=True,
        complete=True,
    )


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


def _other_header(template: ChatTemplate, markers: Markers, gap: str) -> tuple[str, bool] | None:
    """The header in what stands between the model's words and another role's; and whether its token is the stop."""
    core = str(markers.response[0])
    if core in gap:
        gap = gap[gap.rindex(core) + len(core) :]
    lead = _lead(template, core)
    if lead is not None and lead in gap:
        header = gap[gap.rindex(lead) :]
        return (_shortened(template, header) if template.first_special(header[len(lead) :]) else header), False
    for stop in map(str, markers.stops):
        if stop in gap and stop not in map(str, markers.stop_headers):
            rest = gap[gap.rindex(stop) + len(stop) :]
            return (_shortened(template, rest), False) if rest.strip() else None
    found = [special for special in template.specials if special in gap]
    if not found:
        return (gap.strip(), False) if gap.strip() else None
    opener = max(found, key=lambda special: (gap.rindex(special) + len(special), len(special)))
    return opener, True


def _own_words_between(rendered: Rendered, before: int | None, after: int) -> str:
    """The text before a message's words where all of it is the template's; empty where other words come between."""
    message = rendered.message_of()
    stop = int(np.flatnonzero(message == after)[0])
    start = 0 if before is None else int(np.flatnonzero(message == before)[-1]) + 1
    return rendered.text[start:stop] if start < stop and np.all(message[start:stop] < 0) else ""


def _system_headers(template: ChatTemplate, markers: Markers) -> list[str]:
    headers: list[str] = []
    middle = _try(template, [*_two_turns()[:2], _system(), *_two_turns()[2:]])
    if middle is not None and _all_heard(middle):
        found = _other_header(template, markers, _own_words_between(middle, 1, 2))
        headers.extend([found[0]] if found is not None else [])
    first = _try(template, [_system(), *_two_turns()])
    if first is not None and _all_heard(first):
        headers.append(_opening_header(template, _own_words_between(first, None, 0), markers))
    return headers


def _opening_header(template: ChatTemplate, opening: str, markers: Markers) -> str:
    lead = _lead(template, str(markers.response[0]))
    bos = str(template.variables.get("bos_token") or "")
    if lead is not None and lead in opening:
        return _shortened(template, opening[opening.rindex(lead) :])
    return _shortened(template, opening.removeprefix(bos))


@dataclass(frozen=True, slots=True)
class _Tools:
    others: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    stop_headers: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()


def _template_run(rendered: Rendered, before: int, after: int) -> str:
    """The template's own words between the last template run that follows one message and the next one's words."""
    message = rendered.message_of()
    stop = int(np.flatnonzero(message == after)[0])
    own = np.flatnonzero(message[:stop] == before)
    start = int(own[-1]) + 1 if len(own) else 0
    return rendered.text[start:stop]


def _tool_probe(template: ChatTemplate) -> Rendered | None:
    """A rendered conversation with a tool call; arguments as a mapping, or as JSON where the template wants that."""
    for as_text in (False, True):
        rendered = _try(template, _tool_turns(as_text=as_text))
        if rendered is not None and {2, 3} <= set(np.unique(rendered.message_of()).tolist()):
            return rendered
    return None


def _tool_markers(template: ChatTemplate, markers: Markers) -> _Tools:
    """Headers and stops around a tool call and its result, from a conversation that has one."""
    rendered = _tool_probe(template)
    if rendered is None:
        return _Tools()
    called = bool(np.any(rendered.message_of() == 1))
    gap = _call_gap(template, rendered) if called else _template_run(rendered, 0, 2)
    others, stops, stop_headers = [], [], []
    found = _other_header(template, markers, gap)
    if found is not None:
        header, is_stop = found
        others.append(header)
        if is_stop and called:
            stop_headers.append(header)
            stops.append(header)
        elif called:
            stops.extend(_call_stop(template, markers, gap[: gap.rindex(header)] if header in gap else gap))
    resume = _template_run(rendered, 2, 3)
    specials = [special for special in template.specials if special in resume]
    back = []
    if str(markers.response[0]) not in resume and specials:
        last = max(specials, key=resume.rindex)
        back.append(resume[resume.rindex(last) :].rstrip(" "))
    return _Tools(tuple(others), tuple(stops), tuple(stop_headers), tuple(back))


def _call_gap(template: ChatTemplate, rendered: Rendered) -> str:
    """What the template writes after a call: its first words after the arguments that hold a control token."""
    message = rendered.message_of()
    first_result = int(np.flatnonzero(message == 2)[0])
    own = np.flatnonzero(message[:first_result] == 1)
    arguments = rendered.text.find("Danube")
    edges = [*own[own >= arguments].tolist(), first_result]
    runs = [rendered.text[low + 1 : high] for low, high in zip(edges, edges[1:], strict=False) if high - low > 1]
    return next((run for run in runs if template.first_special(run)), "".join(runs))


def _call_stop(template: ChatTemplate, markers: Markers, close: str) -> list[str]:
    if any(stop in close for stop in map(str, markers.stops)):
        return []
    found = [special for special in template.specials if special in close]
    return [max(found, key=close.rindex)] if found else []


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text))


def candidate_markers(template: ChatTemplate) -> Markers:
    """Markers as the template's gaps suggest them, not yet proven.

    Raises:
        DetectionError: the template renders no plain conversation, or writes nothing before an answer.
    """
    gaps = _read_gaps(template, parts=False) or _read_gaps(template, parts=True)
    if gaps is None:
        raise DetectionError(
            "The chat template does not render a plain conversation of two turns, or drops words of it. Give both "
            "instruction_part and response_part."
        )
    markers = _plain_markers(template, gaps)
    tools = _tool_markers(template, markers)
    bos = str(template.variables.get("bos_token") or "")
    system = _system_headers(template, markers)
    response = _unique((*map(str, markers.response), *tools.resume))
    known = {*response, *map(str, markers.instruction), *map(str, markers.stops), *tools.stops}
    spoken = {text.strip() for text in (*response, *map(str, markers.instruction))}
    lead = _lead(template, str(markers.response[0]))
    openers = [bos] if bos and bos != lead else []
    others = tuple(
        text for text in _unique((*system, *tools.others, *openers)) if text not in known - set(tools.others)
    )
    return replace(
        markers,
        response=response,
        others=tuple(text for text in others if text.strip() not in spoken),
        stops=_unique((*map(str, markers.stops), *tools.stops)),
        stop_headers=_unique((*map(str, markers.stop_headers), *tools.stop_headers)),
    )


def probes() -> list[tuple[str, list[dict[str, Any]]]]:
    """Conversations that detected markers must get right, by name."""
    two = _two_turns()
    return [
        ("two turns", two),
        ("with system", [_system(), *two]),
        ("one turn", two[:2]),
        ("tools", _tool_turns()),
    ]
