"""Conversations of known words, and what a chat template writes around these words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sft_mask.errors import DataError
from sft_mask.templates.prompts import Prompt, prompts_of

if TYPE_CHECKING:
    from sft_mask.templates.chat_template import ChatTemplate
    from sft_mask.templates.render import Rendered

Messages = list[dict[str, Any]]

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


def _say(role: str, words: str, **more: object) -> dict[str, Any]:
    return {"role": role, "content": words, **more}


def two_turns(*, parts: bool = False) -> Messages:
    """A plain conversation; contents as text or as lists of parts."""
    roles = ("user", "assistant", "user", "assistant")
    messages = [_say(role, words) for role, words in zip(roles, _WORDS, strict=True)]
    if parts:
        messages = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    return messages


def system() -> dict[str, object]:
    """A system message."""
    return _say("system", "Answer in plain words")


def tool_turns(*, as_text: bool = False) -> Messages:
    """A conversation with a tool call and its result; the call's arguments as a mapping or as JSON text."""
    call = {
        "id": "a1b2c3d4e",
        "type": "function",
        "function": {"name": "river_length", "arguments": '{"river": "Danube"}' if as_text else {"river": "Danube"}},
    }
    question, answer, *rest = two_turns()
    return [
        question,
        _say("assistant", "", tool_calls=[call]),
        _say("tool", "two thousand eight hundred", name="river_length", tool_call_id="a1b2c3d4e"),
        answer,
        *rest,
    ]


def try_render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, object]],
    *,
    add_generation_prompt: bool = False,
    variables: Mapping[str, object] | None = None,
) -> Rendered | None:
    """The rendered conversation, or ``None`` where the template refuses it both without tools and with one."""
    for tools in (None, [_TOOL]):
        try:
            return template.render(
                messages, tools=tools, add_generation_prompt=add_generation_prompt, variables=variables
            )
        except DataError:
            continue
    return None


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a template writes around the words of a plain conversation.

    Attributes:
        opening: before the first user turn.
        to_assistant: after a user's words, before the answer's.
        to_user: after an answer, before the next user's words.
        ending: after the last answer.
        after_user: after a user's words at the end of a conversation, without and with the generation prompt.
        prompts: every form of the generation prompt (thinking on, off, unset), cut to what follows the user's words.
    """

    opening: str
    to_assistant: tuple[str, ...]
    to_user: str
    ending: str
    after_user: tuple[str, str]
    prompts: tuple[str, ...]


def _tail(rendered: Rendered) -> str:
    return rendered.between(len(rendered.roles) - 1, None)


def prompts_after(template: ChatTemplate, messages: Messages | None = None) -> tuple[Prompt, ...]:
    """Every form of the generation prompt after some messages, by default after a question.

    With a tool where the template refuses them without.
    """
    messages = messages or two_turns()[:1]
    return prompts_of(template, messages) or prompts_of(template, messages, [_TOOL])


def _before_reasoning(template: ChatTemplate) -> list[str]:
    """What the template writes before an answer that has reasoning."""
    question, answer, *_ = two_turns()
    rendered = try_render(template, [question, {**answer, "reasoning_content": "It must be up there"}])
    return [rendered.between(0, 1)] if rendered is not None and rendered.writes_all() else []


def read_gaps(template: ChatTemplate, *, parts: bool) -> Gaps | None:
    """The gaps of a template, ``None`` where it does not render a plain conversation."""
    messages = two_turns(parts=parts)
    whole = try_render(template, messages)
    asked = try_render(template, messages[:1], add_generation_prompt=True)
    silent = try_render(template, messages[:1])
    if whole is None or asked is None or not whole.writes_all() or not asked.writes_all():
        return None
    return Gaps(
        opening=whole.between(None, 0),
        to_assistant=(whole.between(0, 1), whole.between(2, 3), *_before_reasoning(template)),
        to_user=whole.between(1, 2),
        ending=whole.between(3, None),
        after_user=(_tail(silent if silent is not None and silent.writes_all() else asked), _tail(asked)),
        prompts=tuple(prompt.tail for prompt in prompts_after(template, messages[:1])) or (_tail(asked),),
    )


def why_refused(template: ChatTemplate) -> str:
    """Why a template does not render a plain conversation, in a sentence."""
    try:
        rendered = template.render(two_turns())
    except DataError as error:
        return str(error)
    missing = [index for index in range(len(rendered.roles)) if index not in rendered.written()]
    if missing:
        return f"it drops the words of message {missing[0]} of a plain conversation of two turns."
    return "it does not render a user's message with a generation prompt."


@dataclass(frozen=True, slots=True)
class Probe:
    """A conversation that detected markers must get right.

    Attributes:
        name: for error messages.
        messages: the conversation.
        optional: whether markers may fail here: such rows are then decided by their messages.
        plain: whether it shows what the template writes before an answer; prompts are rendered for it.
    """

    name: str
    messages: Messages
    optional: bool = False
    plain: bool = False


def _in_other_words(change: Mapping[str, str]) -> Messages:
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
