"""Conversations of known words, and what a chat template writes around these words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.errors import DataError

if TYPE_CHECKING:
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered

Message = Mapping[str, Any]

_WORDS = ("Where does the river begin", "It begins in the hills", "And where does it end", "It ends in the sea")
_TOOL = {
    "type": "function",
    "function": {
        "name": "river_length",
        "description": "Length of a river",
        "parameters": {
            "type": "object",
            "properties": {"river": {"type": "string", "description": "Its name"}},
            "required": ["river"],
        },
    },
}
"""For templates that write nothing without a tool."""
_THINKING: tuple[dict[str, bool], ...] = (
    {},
    {"enable_thinking": False},
    {"enable_thinking": True},
    {"thinking": False},
    {"thinking": True},
)


def say(role: str, words: str, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": words, **more}


def two_turns(*, parts: bool = False) -> list[dict[str, Any]]:
    """A plain conversation; contents as text or as lists of parts."""
    roles = ("user", "assistant", "user", "assistant")
    said = [say(role, words) for role, words in zip(roles, _WORDS, strict=True)]
    if parts:
        said = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in said]
    return said


def system() -> dict[str, Any]:
    """A system message."""
    return say("system", "Answer in plain words")


def tool_turns(*, as_text: bool = False) -> list[dict[str, Any]]:
    """A conversation with a tool call and its result; the call's arguments as a mapping or as JSON text."""
    call = {
        "id": "a1b2c3d4e",
        "type": "function",
        "function": {"name": "river_length", "arguments": '{"river": "Danube"}' if as_text else {"river": "Danube"}},
    }
    first, last = two_turns()[:2], two_turns()[2:]
    return [
        first[0],
        say("assistant", "", tool_calls=[call]),
        say("tool", "two thousand eight hundred", name="river_length", tool_call_id="a1b2c3d4e"),
        first[1],
        *last,
    ]


def text_between(rendered: Rendered, before: int | None, after: int | None) -> str:
    """The text between the last character of one message and the first one of another; ``None`` for the ends."""
    message = rendered.message_of()
    start, end = 0, len(rendered.text)
    if before is not None:
        start = int(np.flatnonzero(message == before)[-1]) + 1
    if after is not None:
        end = int(np.flatnonzero(message == after)[0])
    return rendered.text[start:end]


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
        rendered = try_render(template, messages, add_generation_prompt=True, variables=variables)
        if rendered is not None:
            found.append(_tail(rendered))
    return list(dict.fromkeys(found))


def try_render(template: ChatTemplate, messages: Sequence[Message], **how: Any) -> Rendered | None:
    """A rendered conversation, or ``None`` where the template refuses it, without tools and with one."""
    for tools in (None, [_TOOL]):
        try:
            return template.render(messages, tools=tools, **how)
        except DataError:
            continue
    return None


def all_heard(rendered: Rendered) -> bool:
    """Whether words of every message can be seen."""
    return set(range(len(rendered.roles))) <= set(np.unique(rendered.message_of()).tolist())


def _reasoned(template: ChatTemplate) -> list[str]:
    """What stands before the reasoning of an answer that has some."""
    said = two_turns()[:2]
    rendered = try_render(template, [said[0], {**said[1], "reasoning_content": "It must be up there"}])
    if rendered is None or not all_heard(rendered):
        return []
    return [text_between(rendered, 0, 1)]


def read_gaps(template: ChatTemplate, *, parts: bool) -> Gaps | None:
    """The gaps of a template, ``None`` where it does not render a plain conversation."""
    messages = two_turns(parts=parts)
    whole = try_render(template, messages)
    asked = try_render(template, messages[:1], add_generation_prompt=True)
    silent = try_render(template, messages[:1])
    if whole is None or asked is None or not all_heard(whole) or not all_heard(asked):
        return None
    to_model = (text_between(whole, 0, 1), text_between(whole, 2, 3), *_reasoned(template))
    after = (_tail(silent) if silent is not None and all_heard(silent) else _tail(asked), _tail(asked))
    return Gaps(
        text_between(whole, None, 0),
        to_model,
        text_between(whole, 1, 2),
        text_between(whole, 3, None),
        after,
        tuple(_prompts(template, messages[:1])),
    )


def why_refused(template: ChatTemplate) -> str:
    """Why a template does not render a plain conversation, in a sentence."""
    try:
        rendered = template.render(two_turns())
    except DataError as error:
        return str(error)
    heard = set(np.unique(rendered.message_of()).tolist())
    missing = [index for index in range(len(rendered.roles)) if index not in heard]
    if missing:
        return f"it drops the words of message {missing[0]} of a plain conversation of two turns."
    return "it does not render a user's message with a generation prompt."


@dataclass(frozen=True, slots=True)
class Probe:
    """A conversation that detected markers must get right.

    Attributes:
        name: for messages to a person.
        messages: the conversation.
        optional: whether markers may fail here: such rows are then decided by their messages.
        plain: whether it shows what the template writes before an answer, for which prompts are rendered.
    """

    name: str
    messages: list[dict[str, Any]]
    optional: bool = False
    plain: bool = False


def _in_other_words(change: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**message, "content": change[message["role"]].format(message["content"])} for message in two_turns()]


def probes() -> list[Probe]:
    """Every probe; a template may refuse some of them."""
    two = two_turns()
    return [
        Probe("two turns", two, plain=True),
        Probe("a system message", [system(), *two]),
        Probe("one turn", two[:2]),
        Probe("answers that begin with a newline", _in_other_words({"user": "{}", "assistant": "\n\n{}"})),
        Probe("Japanese and emoji", _in_other_words({"user": "東京はどこ {} 🙂", "assistant": "🙂 {} é東京"})),
        Probe("a tool call", tool_turns(), optional=True),
        Probe("a tool call, arguments as JSON text", tool_turns(as_text=True), optional=True),
    ]
