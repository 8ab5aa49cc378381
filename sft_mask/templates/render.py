"""Renders a chat template and remembers, for every character, whose words it is.

A template is run once, in the sandbox that ``transformers`` builds for it (:mod:`sft_mask.templates.sandbox`), with
strings that carry their origin (:mod:`sft_mask.templates.traced_str`). What comes out is the very text that
``apply_chat_template`` gives, plus an owner per character: the message and field it came from, or nobody (the
template's own words). So a marker that a user typed can never be taken for one that the template wrote.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.errors import DataError, UnsupportedError
from sft_mask.templates.limits import LimitError, limited
from sft_mask.templates.sandbox import rendered_text, traced_template
from sft_mask.templates.traced_str import NOBODY, TOOLS, Traced, runs_of

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a piece of rendered text came from.

    Attributes:
        message: index of the message.
        field: its key (``content``, ``reasoning_content``, ``tool_calls``, ...).
    """

    message: int
    field: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: what the tokenizer is given.
        owner: ``(characters,)`` index into ``origins``; :data:`NOBODY` for the template's own words, :data:`TOOLS` for
            tool definitions.
        origins: pieces of the conversation.
        roles: role of each message.
    """

    text: str
    owner: NDArray[np.int32]
    origins: tuple[Origin, ...]
    roles: tuple[str, ...]

    def message_of(self) -> NDArray[np.int32]:
        """``(characters,)`` index of the message that owns each character; negative where no message does."""
        table = np.array([origin.message for origin in self.origins] + [TOOLS, NOBODY], np.int32)
        return table[self.owner]


_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What a template's own mistakes raise, beside the errors of Jinja."""

_ALIASES = ("reasoning_content", "thinking", "reasoning")
_ROLE = re.compile(r"[\w.-]{1,64}")
"""A role that is one word is the template's to write; anything else was typed by somebody and could hold a marker."""


def plain_data(value: Any, owner: int) -> Any:
    """Plain JSON types, as ``transformers`` hands them to templates, with every string (keys too) traced.

    Raises:
        DataError: lists inside of lists, without end.
    """
    try:
        return _plain_data(value, owner)
    except RecursionError as error:
        raise DataError(
            "A message, a tool definition or an argument of the template holds lists inside of lists without end. "
            "Repair or remove it."
        ) from error


def _plain_data(value: Any, owner: int) -> Any:
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str):
        return Traced(str.__str__(value), ((len(value), owner),) if value else ())
    if isinstance(value, Mapping):
        return {_plain_data(key, owner): _plain_data(item, owner) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_data(item, owner) for item in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain_data(value.tolist(), owner)
    return f"<{type(value).__name__}>"  # images and the like: a template only asks whether they are there


def _traced_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Origin]]:
    origins: list[Origin] = []
    traced = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(
                f"Message {index} is {message!r:.80}, of type {type(message).__name__}. Give each message as a mapping "
                "with a role and a content."
            )
        copy: dict[str, Any] = {}
        for key, value in message.items():
            if value is None:
                continue
            if key == "role" and isinstance(value, str) and _ROLE.fullmatch(value):
                copy[key] = str.__str__(value)
                continue
            copy[key] = plain_data(value, len(origins))
            origins.append(Origin(index, _ALIASES[0] if key in _ALIASES else str(key)))
        traced.append(_with_reasoning(copy))
    return traced, origins


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose reasoning can be read under every name, where this ``transformers`` does that."""
    from transformers.utils import chat_template_utils

    reasoning = next((message[key] for key in _ALIASES if message.get(key) is not None), None)
    if reasoning is None or not hasattr(chat_template_utils, "_alias_reasoning_fields"):
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render(
    messages: Sequence[Mapping[str, Any]],
    chat_template: str,
    *,
    tools: Any = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> Rendered:
    """Renders a conversation as ``apply_chat_template(..., tokenize=False)`` does, with an owner per character.

    Args:
        messages: the conversation.
        chat_template: the Jinja source.
        tools: tool schemas, as given to ``apply_chat_template``.
        add_generation_prompt: as in ``apply_chat_template``.
        variables: special tokens and ``chat_template_kwargs``.

    Raises:
        DataError: the template refuses the conversation (the template's own message is quoted).
        UnsupportedError: the template exceeds a limit of :mod:`sft_mask.templates.limits`.
    """
    traced, origins = _traced_messages(messages)
    context = {
        "messages": traced,
        "tools": plain_data(tools, TOOLS),
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **(variables or {}),
    }
    text = _run(chat_template, context)
    runs = runs_of(text)
    owner = np.repeat(
        np.array([owner for _, owner in runs], np.int32), np.array([length for length, _ in runs], np.int64)
    )
    roles = tuple(str(message.get("role", "")) for message in messages)
    return Rendered(str.__str__(text), owner, tuple(origins), roles)


def _run(source: str, context: Mapping[str, Any]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        template = traced_template(source)
        with limited():
            return rendered_text(template, context)
    except (TemplateError, *_TEMPLATE_FAULTS) as error:
        # Whatever a template may do wrong; an error of our own (assertions, memory, interrupts) is none of these.
        raise DataError(f"The chat template refuses this conversation: {type(error).__name__}: {error}") from error
    except LimitError as error:
        line = _line_of(error, template)
        excerpt = source.splitlines()[line - 1].strip()[:120]
        raise UnsupportedError(
            f"The chat template exceeded its rendering limit at line {line}, {excerpt!r}: {error}. Read the template "
            "before you trust it, and give another one as chat_template=."
        ) from error


def _line_of(error: LimitError, template: Template) -> int:
    """The line of a template at which it was stopped."""
    frames = traceback.walk_tb(error.__traceback__)
    lines = [line for frame, line in frames if frame.f_globals.get("__jinja_template__") is template]
    return template.get_corresponding_lineno(lines[-1]) if lines else 1
