"""The oracle: which tokens of a rendered conversation a model has to write itself.

It never imports ``sft_mask`` and never looks for a message in the text. Every string of every message is put between
two private-use characters, the conversation is rendered once more, and the render without those characters must be
the real text, character for character: then the brackets say whose word each character is. All that is left is text
of the template, where a header cannot be confused with a quoted one. That text is read with a table written by hand
(``templates.py``: header strings, stop strings) and checked against the generation prompt of every turn.

A case that cannot be placed like this raises :class:`UndecidedError`. The oracle does not guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from jinja2.exceptions import TemplateError
from support.conformance.alignment import NotAlignedError, Vocabulary, align
from support.conformance.templates import Format

Messages = list[dict[str, Any]]
Interval = tuple[int, int]
Path = tuple[str | int, ...]

FIRST_BRACKET = 0xE000
LAST_BRACKET = 0xF8FF
TAG = re.compile(r"</?think>|\[/?THINK\]")


class UndecidedError(ValueError):
    """The oracle cannot say whose words these are."""


class Verdict(IntEnum):
    """What the rule says about one token. The order is the precedence when a token holds bytes of several kinds."""

    MUST_NOT = 0  # other roles' words, headers, prefilled text, what follows a stop
    EITHER = 1  # text that the template writes inside the model's turn
    MUST = 2  # the assistant's own words, and the stop


@dataclass(frozen=True, slots=True)
class Site:
    """One string of one message."""

    message: int
    path: Path
    role: str
    value: str

    @property
    def is_name(self) -> bool:
        """A function's name: templates repeat it in the header of the tool's answer."""
        return self.path[-1] == "name"

    @property
    def is_optional(self) -> bool:
        """A name or an argument's key: where a template cannot take a changed one, it stays template text."""
        return self.is_name or self.path[-1] == "#key"


Placement = dict[Site, list[Interval]]


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of the text that has one owner; ``None`` is the template."""

    start: int
    text: str
    owner: Site | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """Verdicts for every token of a rendered conversation."""

    text: str
    ids: list[int]
    spans: list[tuple[int, int]]
    verdicts: list[Verdict]
    stops: list[list[int]]  # token indices of each stop
    headerless: list[int]  # messages whose answer begins without a header of its own
    is_quoting: bool  # some message holds a marker's text: without ``messages`` nobody can know the answer
    runs: list[Run] = field(repr=False)
    kinds: list[Verdict] = field(repr=False)  # one for each character

    def shows_tools(self, messages: Messages) -> bool:
        """Whether every call and every result stands in the text, and no content beside them was left out."""
        shown = {(run.owner.message, run.owner.path) for run in self.runs if run.owner is not None}
        wanted = [site for site in sites(messages) if site.value and site.path[0] in ("content", "tool_calls")]
        return all((site.message, site.path) in shown for site in wanted if not site.is_optional)


@dataclass(frozen=True, slots=True)
class Case:
    """What is rendered: messages and everything that the template is given with them."""

    messages: Messages
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)


def render(tokenizer: Any, case: Case, *, generation_prompt: bool = False) -> str:
    text = tokenizer.apply_chat_template(
        case.messages,
        tools=case.tools,
        tokenize=False,
        add_generation_prompt=generation_prompt,
        **case.template_kwargs,
    )
    assert isinstance(text, str), "a template renders text"
    return text


def judge(tokenizer: Any, vocabulary: Vocabulary, form: Format, case: Case) -> Judgement:
    """Verdicts for the tokens of ``case`` under ``tokenizer.chat_template``, whose strings are ``form``'s."""
    text = render(tokenizer, case)
    runs = bracketed_runs(tokenizer, case, text)
    reader = _Reader(form, runs, len(text))
    reader.read()
    _mark_prefills(tokenizer, case, text, reader)
    judgement = judgement_of(tokenizer, vocabulary, form, text, runs, reader.kinds, reader.stops)
    judgement.headerless.extend(sorted(reader.headerless))
    return judgement


def judgement_of(
    tokenizer: Any,
    vocabulary: Vocabulary,
    form: Format,
    text: str,
    runs: list[Run],
    kinds: list[Verdict],
    stops: Sequence[Interval],
) -> Judgement:
    """The verdicts on characters, as verdicts on tokens."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    try:
        spans = align(text, ids, vocabulary)
    except NotAlignedError as reason:
        raise UndecidedError(str(reason)) from reason
    verdicts = _token_verdicts(spans, _byte_kinds(text, kinds))
    byte_of = _byte_offsets(text)
    holding = [_holding(spans, byte_of[start], byte_of[stop]) for start, stop in stops]
    return Judgement(text, ids, spans, verdicts, holding, [], _is_quoting(form, runs), runs, kinds)


# --- whose word is each character -------------------------------------------------------------------------------


def bracketed_runs(tokenizer: Any, case: Case, text: str) -> list[Run]:
    """The text of a case in stretches of one owner."""
    return _runs(*_bracketed_render(tokenizer, case, text))


def sites(messages: Messages) -> list[Site]:
    """Every string that a person or a model wrote, in the order of the messages."""
    found: list[Site] = []
    for index, message in enumerate(messages):
        for path, value in _strings(message):
            found.append(Site(index, path, message["role"], value))
    return found


def _strings(message: dict[str, Any]) -> Iterator[tuple[Path, str]]:
    for key in ("reasoning_content", "thinking", "content"):
        value = message.get(key)
        if isinstance(value, str):
            yield (key,), value
        elif isinstance(value, list):
            yield from (((key, i, "text"), part["text"]) for i, part in enumerate(value))
    for i, call in enumerate(message.get("tool_calls") or ()):
        yield ("tool_calls", i, "function", "name"), call["function"]["name"]
        yield from _argument_strings(("tool_calls", i, "function", "arguments"), call["function"]["arguments"])


def _argument_strings(path: Path, value: Any) -> Iterator[tuple[Path, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key, "#key"), key
            yield from _argument_strings((*path, key), inner)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _argument_strings((*path, i), inner)


def _bracketed_render(tokenizer: Any, case: Case, text: str) -> tuple[str, list[Site]]:
    """The render with brackets, and the owner of each pair of them."""
    placement = _first_placement(tokenizer, case, text)
    for site in list(placement):
        _widen(tokenizer, case, text, placement, site)
    rendered = _try(tokenizer, case, text, placement)
    assert rendered is not None, "every accepted placement renders the real text"
    return rendered, [site for site, intervals in placement.items() for _ in intervals]


def _first_placement(tokenizer: Any, case: Case, text: str) -> Placement:
    """Brackets around the core of every string: at once where that works, else string by string."""
    wanted: Placement = {site: _core(site.value) for site in sites(case.messages) if site.value}
    if _try(tokenizer, case, text, wanted) is not None:
        return wanted
    placement: Placement = {}
    for site, core in wanted.items():
        for candidate in (core, _between_tags(site.value)):
            if candidate and _try(tokenizer, case, text, placement | {site: candidate}) is not None:
                placement[site] = candidate
                break
        else:
            if site.value.strip() and not site.is_optional:
                raise UndecidedError(f"message {site.message} {site.path}: no brackets around {site.value[:60]!r} hold")
    return placement


def _core(value: str) -> list[Interval]:
    stripped = value.strip()
    if not stripped:
        return [(0, len(value))]
    start = value.index(stripped)
    return [(start, start + len(stripped))]


def _between_tags(value: str) -> list[Interval]:
    """The stretches of ``value`` between think tags, which templates cut at."""
    intervals, start = [], 0
    for tag in [*TAG.finditer(value), None]:
        piece = value[start : tag.start() if tag else len(value)]
        if piece.strip():
            (a, b), *_ = _core(piece)
            intervals.append((start + a, start + b))
        start = tag.end() if tag else len(value)
    return intervals


def _widen(tokenizer: Any, case: Case, text: str, placement: Placement, site: Site) -> None:
    """Move the outer brackets over the whitespace at the string's edges, as far as the template keeps it."""
    intervals = placement[site]
    for start in range(intervals[0][0]):
        wider = [(start, intervals[0][1]), *intervals[1:]]
        if _try(tokenizer, case, text, placement | {site: wider}) is not None:
            placement[site] = intervals = wider
            break
    for stop in range(len(site.value), intervals[-1][1], -1):
        wider = [*intervals[:-1], (intervals[-1][0], stop)]
        if _try(tokenizer, case, text, placement | {site: wider}) is not None:
            placement[site] = wider
            return


def _try(tokenizer: Any, case: Case, text: str, placement: Placement) -> str | None:
    """The bracketed render, or None where it is not the real text or does not keep its brackets in pairs."""
    bracketed = Case(_bracket(case.messages, placement), case.tools, case.template_kwargs)
    try:
        rendered = render(tokenizer, bracketed)
    except (TemplateError, ValueError, TypeError):
        return None
    brackets = [ord(character) - FIRST_BRACKET for character in rendered if _is_bracket(character)]
    opened, closed = brackets[0::2], brackets[1::2]
    is_paired = len(opened) == len(closed) and all(
        o % 2 == 0 and c == o + 1 for o, c in zip(opened, closed, strict=True)
    )
    return rendered if is_paired and _without_brackets(rendered) == text else None


def _is_bracket(character: str) -> bool:
    return FIRST_BRACKET <= ord(character) <= LAST_BRACKET


def _without_brackets(text: str) -> str:
    return "".join(character for character in text if not _is_bracket(character))


def _bracket(messages: Messages, placement: Placement) -> Messages:
    """A copy of ``messages`` with every placed interval between its own pair of brackets."""
    replaced: dict[tuple[int, Path], str] = {}
    number = FIRST_BRACKET
    for site, intervals in placement.items():
        pieces, position = [], 0
        for start, stop in intervals:
            assert number < LAST_BRACKET, "a conversation has fewer strings than there are brackets"
            pieces += [site.value[position:start], chr(number), site.value[start:stop], chr(number + 1)]
            position, number = stop, number + 2
        replaced[site.message, site.path] = "".join([*pieces, site.value[position:]])
    return [_replace(message, (), replaced, index) for index, message in enumerate(messages)]


def _replace(value: Any, path: Path, replaced: dict[tuple[int, Path], str], message: int) -> Any:
    if isinstance(value, dict):
        return {
            replaced.get((message, (*path, key, "#key")), key): _replace(inner, (*path, key), replaced, message)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [_replace(inner, (*path, i), replaced, message) for i, inner in enumerate(value)]
    return replaced.get((message, path), value)


def _runs(rendered: str, owners: list[Site]) -> list[Run]:
    """Cut a bracketed render into runs; their texts add up to the real text."""
    runs: list[Run] = []
    position = 0
    owner: Site | None = None
    for piece in re.split(f"([{chr(FIRST_BRACKET)}-{chr(LAST_BRACKET)}])", rendered):
        if len(piece) == 1 and _is_bracket(piece):
            number = ord(piece) - FIRST_BRACKET
            owner = owners[number // 2] if number % 2 == 0 else None
        elif piece:
            runs.append(Run(position, piece, owner))
            position += len(piece)
    return runs


# --- what the template's own text means -------------------------------------------------------------------------


class _Reader:
    """Reads the runs from left to right; knows at every character whether the model is writing."""

    def __init__(self, form: Format, runs: Sequence[Run], length: int) -> None:
        self.form = form
        self.runs = runs
        self.kinds = [Verdict.MUST_NOT] * length
        self.stops: list[tuple[int, int]] = []
        self.header_ends: list[int] = []
        self.is_model = False
        self.headerless: set[int] = set()  # messages whose answer begins without a header
        self._last_words: Site | None = None
        self._boundary = 0  # end of the last words or stop
        strings = sorted({*form.strings}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, strings)))

    def read(self) -> None:
        for index, run in enumerate(self.runs):
            if run.owner is None:
                self._read_template(run, self._next_words(index))
            else:
                self._read_words(run, run.owner, self._next_words(index))

    def _next_words(self, index: int) -> Site | None:
        return next((run.owner for run in self.runs[index + 1 :] if run.owner is not None), None)

    def _read_words(self, run: Run, owner: Site, upcoming: Site | None) -> None:
        if owner.role != "assistant":
            self.is_model = False
        elif self.is_model or not owner.is_name or (upcoming is not None and upcoming.message == owner.message):
            self._read_answer(run, owner)
        self._boundary = run.start + len(run.text)

    def _read_answer(self, run: Run, owner: Site) -> None:
        if not self.is_model:  # no header: what the template wrote since the last words may be the model's or not
            self.headerless.add(owner.message)
            self._fill(self._boundary, run.start, Verdict.EITHER)
        self.is_model = True
        self._last_words = owner
        self._fill(run.start, run.start + len(run.text), Verdict.MUST)

    def _read_template(self, run: Run, upcoming: Site | None) -> None:
        position = 0
        for match in self._pattern.finditer(run.text):
            self._between(run, position, match.start())
            self._read_string(match[0], run.start + match.start(), upcoming)
            position = match.end()
        self._between(run, position, len(run.text))

    def _between(self, run: Run, start: int, stop: int) -> None:
        if self.is_model:
            self._fill(run.start + start, run.start + stop, Verdict.EITHER)

    def _read_string(self, string: str, start: int, upcoming: Site | None) -> None:
        stop = start + len(string)
        was_model, self.is_model = self.is_model, string in self.form.assistant
        if self.is_model:
            if self._goes_on(upcoming):
                self._fill(start, stop, Verdict.EITHER)
            self.header_ends.append(stop)
        elif was_model and string in self.form.ends:
            self._fill(start, stop, Verdict.MUST)
            self.stops.append((start, stop))
            self._boundary = stop
        elif was_model and string in self.form.soft_ends:
            self._fill(start, stop, Verdict.EITHER)

    def _goes_on(self, upcoming: Site | None) -> bool:
        """A header in the middle of one message (gpt-oss: analysis, then final): the model writes it."""
        last = self._last_words
        return last is not None and upcoming is not None and last.message == upcoming.message

    def mark_prefill(self, message: int, prompt: str) -> None:
        """Take back what the prompt of ``message`` holds past its header, and check the table against it."""
        end = max((end for end in self.header_ends if end <= len(prompt)), default=0)
        stop = max((stop for _, stop in self.stops if stop <= len(prompt)), default=0)
        words = max((run.start + len(run.text) for run in self._words(range(message), len(prompt))), default=0)
        if max(stop, words) > end and prompt[max(stop, words) :].strip():
            raise UndecidedError(
                f"message {message}: its generation prompt ends {prompt[-60:]!r}: no header of the table"
            )
        for position in range(max(end, stop, words), len(prompt)):
            self.kinds[position] = min(self.kinds[position], Verdict.MUST_NOT)
        self.spare_words(message, prompt)

    def spare_words(self, message: int, prompt: str) -> None:
        """A prefilled tag that is also how the answer's own words begin may be trained or not."""
        for run in self._words(range(message, message + 1), len(prompt)):
            self._fill(run.start, min(run.start + len(run.text), len(prompt)), Verdict.EITHER)

    def _words(self, messages: range, stop: int) -> list[Run]:
        return [run for run in self.runs if run.owner and run.owner.message in messages and run.start < stop]

    def _fill(self, start: int, stop: int, kind: Verdict) -> None:
        self.kinds[start:stop] = [kind] * (stop - start)


def _mark_prefills(tokenizer: Any, case: Case, text: str, reader: _Reader) -> None:
    """What a turn's generation prompt holds past the header is prefilled, so the model never writes it.

    Only where that prompt really is how the text begins: many templates render history unlike a prompt. A template
    that opens a turn behind the last answer is caught by the prompt of the answer that did not follow.
    """
    for index in range(1, len(case.messages) + 1):
        if index < len(case.messages) and case.messages[index]["role"] != "assistant":
            continue
        prompt = prompt_of(tokenizer, case, index)
        if prompt is not None and text.startswith(prompt):
            reader.mark_prefill(index, prompt)
        for is_thinking in (True, False):  # a prompt of another mode, which the answer's own words may begin with
            prompt = prompt_of(tokenizer, case, index, enable_thinking=is_thinking)
            if prompt is not None and text.startswith(prompt):
                reader.spare_words(index, prompt)


def prompt_of(tokenizer: Any, case: Case, index: int, **more: Any) -> str | None:
    """The generation prompt of a message; ``None`` where the template refuses it."""
    before = Case(case.messages[:index], case.tools, case.template_kwargs | more)
    try:
        return render(tokenizer, before, generation_prompt=True)
    except (TemplateError, ValueError, TypeError):
        return None


def _is_quoting(form: Format, runs: Sequence[Run]) -> bool:
    markers = [string.strip() for string in form.strings]
    return any(marker in run.text for run in runs if run.owner is not None for marker in markers)


# --- from characters to tokens ----------------------------------------------------------------------------------


def _byte_offsets(text: str) -> list[int]:
    offsets = [0]
    for character in text:
        offsets.append(offsets[-1] + len(character.encode()))
    return offsets


def _byte_kinds(text: str, kinds: Sequence[Verdict]) -> list[Verdict]:
    return [kind for character, kind in zip(text, kinds, strict=True) for _ in character.encode()]


def _token_verdicts(spans: Sequence[tuple[int, int]], kinds: Sequence[Verdict]) -> list[Verdict]:
    """A token is trained if it holds any byte of the answer. One that holds no byte (a glued space) goes either way
    in front of the answer and inside it, and is not trained elsewhere."""
    verdicts: list[Verdict] = []
    for start, stop in spans:
        if start < stop:
            verdicts.append(max(kinds[start:stop]))
        else:
            following = kinds[start] if start < len(kinds) else Verdict.MUST_NOT
            verdicts.append(min(following, Verdict.EITHER))
    return verdicts


def _holding(spans: Sequence[tuple[int, int]], start: int, stop: int) -> list[int]:
    return [i for i, (a, b) in enumerate(spans) if max(a, start) < min(b, stop)]
