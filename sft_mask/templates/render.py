"""Renders a chat template, with the source of every character.

A template is run once, in the sandbox that ``transformers`` builds for it (:mod:`sft_mask.templates.tracing.sandbox`),
on strings that carry their source (:mod:`sft_mask.templates.tracing.traced_str`). The text is exactly what
``apply_chat_template`` gives. The source of a character is the message field that it came from, or the template itself,
so a marker that a user typed can never be taken for one that the template wrote.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.constants import REASONING
from sft_mask.errors import DataError, UnsupportedError
from sft_mask.templates.tracing.limits import LimitError, limited
from sft_mask.templates.tracing.sandbox import rendered_text, traced_template
from sft_mask.templates.tracing.traced_str import TEMPLATE, TOOLS, Traced, runs_of

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Origin:
    """The field of a message that rendered text came from.

    Attributes:
        message: index of the message.
        field: its key (``content``, ``reasoning_content``, ``tool_calls``, ...).
        item: which of several tool calls.
    """

    message: int
    field: str
    item: int = 0


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: what the tokenizer is given.
        source: ``(characters,)`` index into ``origins``; :data:`TEMPLATE` for the template's own text, :data:`TOOLS`
            for tool definitions and other arguments.
        origins: the fields of all messages.
        roles: role of each message.
    """

    text: str
    source: NDArray[np.int32]
    origins: tuple[Origin, ...]
    roles: tuple[str, ...]

    def message_of(self) -> NDArray[np.int32]:
        """``(characters,)`` index of the message that each character came from; negative where it came from none."""
        table = np.array([origin.message for origin in self.origins] + [TOOLS, TEMPLATE], np.int32)
        return table[self.source]

    def written(self) -> set[int]:
        """Indices of the messages of which the text holds any character."""
        return {index for index in np.unique(self.message_of()).tolist() if index >= 0}

    def writes_all(self) -> bool:
        """Whether the text holds something of every message."""
        return len(self.written()) == len(self.roles)

    def between(self, before: int | None, after: int | None) -> str:
        """The text between the last character of one message and the first of another; ``None`` for the text's ends."""
        message = self.message_of()
        start = 0 if before is None else int(np.flatnonzero(message == before)[-1]) + 1
        end = len(self.text) if after is None else int(np.flatnonzero(message == after)[0])
        return self.text[start:end]


_TEMPLATE_FAULTS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What mistakes in a template raise, in addition to the errors of Jinja."""

_ROLE = re.compile(r"[\w.-]{1,64}")
"""A role of one word counts as the template's text; anything else may hold a marker and counts as the message's."""


def plain_data(value: object, source: int) -> Any:
    """A value in plain JSON types, as ``transformers`` passes them to templates; every string (keys too) is traced.

    Raises:
        DataError: it is nested too deeply.
    """
    try:
        return _plain_data(value, source)
    except RecursionError as error:
        raise DataError(
            "A message, a tool definition or an argument of the template holds lists inside of lists without end. "
            "Repair or remove it."
        ) from error


def _plain_data(value: object, source: int) -> object:
    if value is None or type(value) in (int, float, bool):
        return value
    if isinstance(value, str):
        return Traced(str.__str__(value), ((len(value), source),) if value else ())
    if isinstance(value, Mapping):
        return {_plain_data(key, source): _plain_data(item, source) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain_data(item, source) for item in value) if type(value) in (list, tuple) else list(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain_data(value.tolist(), source)
    return f"<{type(value).__name__}>"  # images and the like, whose presence is all that templates look at


def _traced_messages(messages: Sequence[Mapping[str, object]]) -> tuple[list[dict[str, object]], list[Origin]]:
    origins: list[Origin] = []
    traced = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise DataError(
                f"Message {index} is {message!r:.80}, of type {type(message).__name__}. Give each message as a mapping "
                "with a role and a content."
            )
        copy: dict[str, object] = {}
        for key, value in message.items():
            if value is None:
                continue
            if key == "role" and isinstance(value, str) and _ROLE.fullmatch(value):
                copy[key] = str.__str__(value)
                continue
            if key == "tool_calls" and isinstance(value, (list, tuple)):
                copy[key] = [plain_data(call, len(origins) + item) for item, call in enumerate(value)]
                origins.extend(Origin(index, key, item) for item in range(len(value)))
                continue
            copy[key] = plain_data(value, len(origins))
            origins.append(Origin(index, REASONING[0] if key in REASONING else str(key)))
        traced.append(_with_reasoning(copy))
    return traced, origins


def _with_reasoning(message: dict[str, object]) -> dict[str, object]:
    """The message, with its reasoning under every name that this version of ``transformers`` offers to templates."""
    reasoning = next((message[key] for key in REASONING if message.get(key) is not None), None)
    if reasoning is None:
        return message
    from transformers.utils import chat_template_utils

    if not hasattr(chat_template_utils, "_alias_reasoning_fields"):
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render(
    messages: Sequence[Mapping[str, object]],
    chat_template: str,
    *,
    tools: object = None,
    add_generation_prompt: bool = False,
    variables: Mapping[str, object] | None = None,
) -> Rendered:
    """Renders a conversation as ``apply_chat_template(..., tokenize=False)`` does, with the source of each character.

    Args:
        messages: the conversation.
        chat_template: the Jinja source.
        tools: tool schemas, as given to ``apply_chat_template``.
        add_generation_prompt: as in ``apply_chat_template``.
        variables: special tokens and ``chat_template_kwargs``.

    Raises:
        DataError: the template refuses the conversation; its own error is quoted.
        UnsupportedError: the template exceeds a limit of :mod:`sft_mask.templates.tracing.limits`.
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
    source = np.repeat(
        np.array([source for _, source in runs], np.int32), np.array([length for length, _ in runs], np.int64)
    )
    roles = tuple(str(message.get("role", "")) for message in messages)
    return Rendered(str.__str__(text), source, tuple(origins), roles)


def _run(source: str, context: Mapping[str, object]) -> str:
    from jinja2.exceptions import TemplateError

    try:
        template = traced_template(source)
        with limited():
            return rendered_text(template, context)
    except (TemplateError, *_TEMPLATE_FAULTS) as error:
        # Mistakes in the template only: our own assertions, lack of memory and interrupts pass through.
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
