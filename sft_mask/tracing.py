"""Renders a chat template and remembers, for every character, whose words it is.

A template is run once, in the sandbox that ``transformers`` builds for it, with strings that carry their origin
(:class:`Traced`): slicing, stripping, splitting, concatenation and the filters that templates use keep it. What comes out
is the very text that ``apply_chat_template`` gives, plus an owner per character: the message and field it came from, or
nobody (the template's own words). So a marker that a user typed can never be taken for one that the template wrote.

Idea: taint tracking, as security tools do it for strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, SupportsIndex, cast

import numpy as np

from sft_mask.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Template
    from numpy.typing import NDArray


def _owned_by_first(plain: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose text belongs to whoever owns the first piece of its input (``tojson``, ``indent``, ...)."""

    def filtered(value: object, *args: Any, **kwargs: Any) -> Any:
        text = plain(value, *args, **kwargs)
        owner = next(_owners_in(value), None)
        if owner is None or not isinstance(text, str) or isinstance(text, Traced):
            return text
        return Traced(str.__str__(text), ((len(text), owner),) if text else ())

    return filtered


def _join_filter(value: Any, d: str = "", attribute: Any = None) -> str:
    if attribute is not None:
        value = [item[attribute] for item in value]
    return _join(value, d)


@lru_cache(maxsize=64)
def _traced_template(source: str) -> Template:
    """Compiles a template in the sandbox of ``transformers``, with tracing filters and concatenation."""
    from jinja2.compiler import CodeGenerator
    from transformers.utils.chat_template_utils import _compile_jinja_template

    class TracingCode(CodeGenerator):
        def visit_Concat(self, node: Any, frame: Any) -> None:
            self.write("environment.concat((")
            for child in node.nodes:
                self.write("str(")
                self.visit(child, frame)
                self.write("), ")
            self.write("))")

    environment = _compile_jinja_template(source).environment.overlay()
    environment.code_generator_class = TracingCode
    environment.concat = traced_join
    owned = ("tojson", "indent", "wordwrap", "format", "center", "truncate", "pprint", "striptags", "urlencode")
    environment.filters = {
        **environment.filters,
        **{name: _owned_by_first(environment.filters[name]) for name in owned if name in environment.filters},
        "join": _join_filter,
        "safe": _safe,
    }
    return cast("Template", environment.from_string(source))


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


_ALIASES = ("reasoning_content", "thinking", "reasoning")


def _plain(value: Any, owner: Callable[[], int]) -> Any:
    """Plain JSON types, as ``transformers`` hands them to templates, with every string traced."""
    if isinstance(value, str):
        return Traced(str.__str__(value), ((len(value), owner()),) if value else ())
    if isinstance(value, Mapping):
        return {key: _plain(item, owner) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, owner) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), owner)
    if isinstance(value, np.generic):
        return value.item()
    return value


def _traced_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[Origin]]:
    origins: list[Origin] = []
    traced = []
    for index, message in enumerate(messages):
        copy: dict[str, Any] = {}
        for key, value in message.items():
            if value is None:
                continue
            if key == "role":
                copy[key] = value
                continue
            origins.append(Origin(index, "reasoning_content" if key in _ALIASES else key))
            copy[key] = _plain(value, lambda: len(origins) - 1)
        reasoning = next((copy[key] for key in _ALIASES if copy.get(key) is not None), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        traced.append(copy)
    return traced, origins


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
    """
    from jinja2.exceptions import TemplateError

    traced, origins = _traced_messages(messages)
    template = _traced_template(chat_template)
    context = {
        "messages": traced,
        "tools": _plain(tools, lambda: TOOLS) if tools is not None else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
        **(variables or {}),
    }
    try:
        text = traced_join(template.root_render_func(template.new_context(context)))
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise DataError(f"The chat template refuses this conversation: {error}") from error
    owner = np.array([owner for _, owner in runs_of(text)], np.int32)
    lengths = np.array([length for length, _ in runs_of(text)], np.int64)
    roles = tuple(str(message.get("role", "")) for message in messages)
    return Rendered(
        str.__str__(text) if type(text) is str else "".join(text), np.repeat(owner, lengths), tuple(origins), roles
    )


GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""Marks a template that says itself what the model writes."""
