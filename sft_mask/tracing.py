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

Runs = tuple[tuple[int, int], ...]
"""Lengths and owners of consecutive pieces of a string."""

NOBODY = -1
"""Owner of the template's own words."""

TOOLS = -2
"""Owner of the tool definitions and other template arguments."""


def _append(runs: list[tuple[int, int]], length: int, owner: int) -> None:
    if length <= 0:
        return
    if runs and runs[-1][1] == owner:
        runs[-1] = (runs[-1][0] + length, owner)
    else:
        runs.append((length, owner))


def runs_of(text: object) -> Runs:
    """The origin of any string; plain strings are the template's."""
    if isinstance(text, Traced):
        return text.runs
    length = len(cast("str", text))
    return ((length, NOBODY),) if length else ()


def traced_join(parts: Sequence[str] | Iterator[str]) -> str:
    """``"".join`` that keeps origins."""
    pieces = list(parts)
    text = "".join(pieces)
    if not any(isinstance(piece, Traced) for piece in pieces):
        return text
    runs: list[tuple[int, int]] = []
    for piece in pieces:
        for length, owner in runs_of(piece):
            _append(runs, length, owner)
    return Traced(text, tuple(runs))


def _cut(runs: Runs, start: int, stop: int) -> Runs:
    kept: list[tuple[int, int]] = []
    position = 0
    for length, owner in runs:
        low, high = max(position, start), min(position + length, stop)
        _append(kept, high - low, owner)
        position += length
    return tuple(kept)


class Traced(str):
    """A string that knows where its characters came from.

    >>> greeting = "<" + Traced(" hi ", ((4, 7),)).strip() + ">"
    >>> greeting, runs_of(greeting)
    ('<hi>', ((1, -1), (2, 7), (1, -1)))
    """

    runs: Runs
    __slots__ = ("runs",)

    def __new__(cls, text: str, runs: Runs) -> Traced:
        made = super().__new__(cls, text)
        made.runs = runs
        return made

    def _sub(self, start: int, stop: int) -> Traced:
        return Traced(str.__getitem__(self, slice(start, stop)), _cut(self.runs, start, stop))

    def _spread(self, text: str) -> str:
        """The origin of a changed text: kept letter by letter, or the first owner's where the length changed."""
        if len(text) == len(self):
            return Traced(text, self.runs)
        owner = next((owner for _, owner in self.runs if owner != NOBODY), NOBODY)
        return Traced(text, ((len(text), owner),))

    def __str__(self) -> str:
        return self

    def __add__(self, other: str) -> str:
        return traced_join((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return traced_join((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return traced_join([self] * int(count))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if not isinstance(key, slice):
            index = range(len(self))[int(key)]
            return self._sub(index, index + 1)
        start, stop, step = key.indices(len(self))
        if step == 1:
            return self._sub(start, max(start, stop))
        return traced_join([self._sub(index, index + 1) for index in range(start, stop, step)])

    def __iter__(self) -> Iterator[str]:
        return (self._sub(index, index + 1) for index in range(len(self)))

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._sub(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._sub(0, len(str.rstrip(self, chars)))

    def strip(self, chars: str | None = None, /) -> str:
        return self.lstrip(chars).rstrip(chars)

    def _pieces(self, parts: Sequence[str], *, backwards: bool = False) -> list[str]:
        """The parts that a plain ``str`` method cut this string into, in order, with their origins."""
        found: list[str] = []
        position = len(self) if backwards else 0
        for part in reversed(parts) if backwards else parts:
            if backwards:
                position = str.rfind(self, part, 0, position)
                found.insert(0, self._sub(position, position + len(part)))
            else:
                position = str.find(self, part, position)
                found.append(self._sub(position, position + len(part)))
                position += len(part)
        return found

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:
            return self._pieces(str.split(self, None, maxsplit))
        parts, position = [], 0
        for part in str.split(self, sep, maxsplit):
            parts.append(self._sub(position, position + len(part)))
            position += len(part) + len(sep)
        return cast("list[str]", parts)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        if sep is None:
            return self._pieces(str.rsplit(self, None, maxsplit), backwards=True)
        parts, position = [], 0
        for part in str.rsplit(self, sep, maxsplit):
            parts.append(self._sub(position, position + len(part)))
            position += len(part) + len(sep)
        return cast("list[str]", parts)

    def splitlines(self, keepends: bool = False) -> list[str]:
        parts, position = [], 0
        for plain, whole in zip(str.splitlines(self), str.splitlines(self, True), strict=True):
            parts.append(self._sub(position, position + len(whole if keepends else plain)))
            position += len(whole)
        return cast("list[str]", parts)

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        at = str.find(self, sep)
        if at < 0:
            return self, "", ""
        return self._sub(0, at), self._sub(at, at + len(sep)), self._sub(at + len(sep), len(self))

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        at = str.rfind(self, sep)
        if at < 0:
            return "", "", self
        return self._sub(0, at), self._sub(at, at + len(sep)), self._sub(at + len(sep), len(self))

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        if not old:
            return self._spread(str.replace(self, old, new, count))
        owner = next((owner for _, owner in self.runs if owner != NOBODY), NOBODY)
        fresh = new if isinstance(new, Traced) else Traced(new, ((len(new), owner),) if new else ())
        parts = self.split(old, count)
        return traced_join([piece for part in parts for piece in (fresh, part)][1:])

    def removeprefix(self, prefix: str, /) -> str:
        return self._sub(len(prefix), len(self)) if str.startswith(self, prefix) else self

    def removesuffix(self, suffix: str, /) -> str:
        return self._sub(0, len(self) - len(suffix)) if suffix and str.endswith(self, suffix) else self

    def join(self, parts: Any, /) -> str:
        return _join(parts, self)

    def lower(self) -> str:
        return self._spread(str.lower(self))

    def upper(self) -> str:
        return self._spread(str.upper(self))

    def title(self) -> str:
        return self._spread(str.title(self))

    def capitalize(self) -> str:
        return self._spread(str.capitalize(self))


class SafeTraced(Traced):
    """What the ``safe`` filter gives: as with ``markupsafe.Markup``, text joined to it is HTML-escaped.

    Mistral's tool templates do this, so their quotes really are rendered as ``&#34;``.
    """

    __slots__ = ()

    def __add__(self, other: str) -> str:
        return (
            _safe(traced_join((Traced(self, self.runs), _escaped(other)))) if isinstance(other, str) else NotImplemented
        )

    def __radd__(self, other: str) -> str:
        return (
            _safe(traced_join((_escaped(other), Traced(self, self.runs)))) if isinstance(other, str) else NotImplemented
        )


def _safe(text: Any) -> SafeTraced:
    plain = text if isinstance(text, str) else str(text)
    return SafeTraced(str.__str__(plain), runs_of(plain))


def _escaped(text: str) -> str:
    from markupsafe import escape

    if isinstance(text, SafeTraced):
        return text
    parts: list[str] = []
    position = 0
    for length, owner in runs_of(text):
        piece = str(escape(str.__getitem__(text, slice(position, position + length))))
        parts.append(Traced(piece, ((len(piece), owner),)))
        position += length
    return traced_join(parts)


def _join(values: Sequence[object] | Iterator[object], separator: str) -> str:
    parts: list[str] = []
    for value in values:
        parts.extend((separator, value if isinstance(value, str) else str(value)))
    return traced_join(parts[1:])


def _owners_in(value: object) -> Iterator[int]:
    if isinstance(value, Traced):
        yield from (owner for _, owner in value.runs if owner != NOBODY)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _owners_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _owners_in(item)


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
