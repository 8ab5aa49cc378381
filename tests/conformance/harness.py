"""Runs the library over (tokenizer, template, conversation) and scores it by the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from datasets import Dataset
from jinja2.exceptions import TemplateError

from conformance.alignment import Vocabulary, read_vocabulary
from conformance.cases import Conversation, conversations, shapes, user, assistant
from conformance.oracle import Case, Judgement, Undecided, Verdict, judge, render
from conformance.templates import PLAIN_TEXT, SHIPPED, Format, format_of, shipped_names, shipped_template

IGNORED = -100  # the framework's, written out here: the suite takes nothing from the library
RENDER_ERRORS = (TemplateError, ValueError, TypeError)


class Masker(Protocol):
    """The one function under test."""

    def __call__(
        self, dataset: Dataset, tokenizer: Any, instruction_part: Any, response_part: Any, *, on_ambiguous: str
    ) -> Dataset: ...


@dataclass(frozen=True, slots=True)
class Mode:
    """What the library is given besides the tokenizer."""

    has_messages: bool
    has_markers: bool

    @property
    def name(self) -> str:
        return ("messages" if self.has_messages else "ids only") + (", given" if self.has_markers else ", detected")


MODES = tuple(Mode(has_messages, has_markers) for has_messages in (True, False) for has_markers in (True, False))


@dataclass(frozen=True, slots=True)
class Row:
    """One conversation that the template renders, and the oracle's word on it."""

    conversation: Conversation
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenizer that carries the template under test, and its rows."""

    tokenizer_name: str
    template_name: str
    tokenizer: Any
    form: Format
    rows: list[Row]
    undecided: list[str]


def pairs(name: str, tokenizer: Any, templates: Sequence[str] = ()) -> Iterator[Pair]:
    """Every template that ``tokenizer`` has the tokens for; ``templates`` keeps those whose name is listed."""
    vocabulary = read_vocabulary(tokenizer)
    own = tokenizer.chat_template
    for template_name, template, form in [*_own(tokenizer, vocabulary), *_shipped(vocabulary), *_plain_text(tokenizer)]:
        if templates and template_name not in templates:
            continue
        tokenizer.chat_template = template
        yield _pair(name, template_name, tokenizer, vocabulary, form)
        tokenizer.chat_template = own


def _own(tokenizer: Any, vocabulary: Vocabulary) -> Iterator[tuple[str, str, Format]]:
    if not tokenizer.chat_template:
        return
    text = render(tokenizer, Case([user("a"), assistant("b"), user("c"), assistant("d")]))
    form = format_of(text, _added_tokens(vocabulary))
    if form is not None:
        yield "own", tokenizer.chat_template, form


def _shipped(vocabulary: Vocabulary) -> Iterator[tuple[str, str, Format]]:
    for name in shipped_names():
        if name in SHIPPED and _added_tokens(vocabulary).issuperset(SHIPPED[name].needs):
            yield name, shipped_template(name), SHIPPED[name]


def _plain_text(tokenizer: Any) -> Iterator[tuple[str, str, Format]]:
    for name, (template, form) in PLAIN_TEXT.items() if tokenizer.eos_token else ():
        yield name, template, form.with_eos(tokenizer.eos_token)


def _added_tokens(vocabulary: Vocabulary) -> frozenset[str]:
    return frozenset(token.content.decode() for token in vocabulary.added.values())


def _pair(name: str, template_name: str, tokenizer: Any, vocabulary: Vocabulary, form: Format) -> Pair:
    rows: list[Row] = []
    undecided: list[str] = []
    for conversation in conversations(form):
        shape = _rendered_shape(tokenizer, conversation, form)
        if shape is None:
            continue
        try:
            rows.append(Row(shape, judge(tokenizer, vocabulary, form, _case(shape))))
        except Undecided as reason:
            undecided.append(f"{conversation.name}: {reason}")
    return Pair(name, template_name, tokenizer, form, rows, undecided)


def _case(conversation: Conversation) -> Case:
    return Case(conversation.messages, conversation.tools, conversation.template_kwargs)


def _rendered_shape(tokenizer: Any, conversation: Conversation, form: Format) -> Conversation | None:
    """The first shape that the template renders with nothing of its tools left out."""
    for shape in shapes(conversation, form):
        try:
            text = render(tokenizer, _case(shape))
        except RENDER_ERRORS:
            continue
        if all(words in text for words in _tool_words(shape)):
            return shape
    return None


def _tool_words(conversation: Conversation) -> Iterator[str]:
    """Words that only stand in calls and results (the tool's name stands in its schema too)."""
    for message in conversation.messages:
        for call in message.get("tool_calls", ()):
            arguments = call["function"]["arguments"]
            yield from arguments.values() if isinstance(arguments, dict) else [arguments]
        if message["role"] == "tool":
            yield message["content"].split("\n")[0].strip('{}"').split('"')[0]
        elif conversation.calls_tools and message["content"]:
            yield message["content"]
