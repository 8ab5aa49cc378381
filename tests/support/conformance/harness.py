"""Runs the library over (tokenizer, template, conversation) and scores it by the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Dataset
from jinja2.exceptions import TemplateError
from support.conformance.alignment import Vocabulary, read_vocabulary
from support.conformance.cases import Conversation, assistant, conversations, shapes, user
from support.conformance.oracle import Case, Judgement, UndecidedError, Verdict, judge, render
from support.conformance.templates import PLAIN_TEXT, SHIPPED, Format, format_of, shipped_names, shipped_template

IGNORED = -100  # the framework's, written out here: the suite takes nothing from the library
ROW_NUMBER = "row_number"
NOT_JUDGED = {
    "unsloth-Apriel-1.5": "closes an answer twice, with <|end|> and the end of text: its model alone knows the stop",
}
NOT_IN_THE_IDS = {
    ("deepseekv3", "call after call"): "the template does not close the tool's answer in front of a second call",
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "call after call"): "the same template as deepseekv3",
    ("diffusion_gemma", "two calls at once"): "words of a message that calls tools stand behind the tools' answers",
}
"""Rows of which only their messages can tell whose words they are, besides those that quote a marker."""
RENDER_ERRORS = (TemplateError, ValueError, TypeError)


class Masker(Protocol):
    """The one function under test."""

    def __call__(
        self, dataset: Dataset, tokenizer: Any, instruction_part: Any, response_part: Any, *, on_ambiguous: str
    ) -> Dataset: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tested: the function, and the error that it refuses with."""

    mask: Masker
    refusal: type[Exception]


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
    needs_messages: bool  # a marker is quoted, or an answer has no header: the ids alone do not tell


@dataclass(frozen=True, slots=True)
class Pair:
    """A tokenizer that carries the template under test, and its rows."""

    tokenizer_name: str
    template_name: str
    tokenizer: Any
    form: Format
    rows: list[Row]
    undecided: list[str]


def pairs(
    name: str,
    tokenizer: Any,
    collected: Mapping[str, str] | None = None,
    is_wanted: Callable[[str], bool] = lambda template: True,
) -> Iterator[Pair]:
    """Every template that ``tokenizer`` has the tokens for: its own, TRL's, collected ones, and the plain-text formats.

    A template that was met already is not met twice, under whatever name.
    """
    vocabulary = read_vocabulary(tokenizer)
    own = tokenizer.chat_template
    seen: set[str] = set()
    for template_name, template, form in _candidates(tokenizer, vocabulary, collected or {}):
        if template.strip() in seen or template_name in NOT_JUDGED or not is_wanted(template_name):
            continue
        seen.add(template.strip())
        tokenizer.chat_template = template
        yield _pair(name, template_name, tokenizer, vocabulary, form)
    tokenizer.chat_template = own


def _candidates(
    tokenizer: Any, vocabulary: Vocabulary, collected: Mapping[str, str]
) -> Iterator[tuple[str, str, Format]]:
    yield from _fitting(tokenizer, vocabulary, {"own": tokenizer.chat_template} if tokenizer.chat_template else {})
    yield from _shipped(vocabulary)
    yield from _fitting(tokenizer, vocabulary, collected)
    yield from _plain_text(tokenizer)


def _fitting(tokenizer: Any, vocabulary: Vocabulary, templates: Mapping[str, str]) -> Iterator[tuple[str, str, Format]]:
    """Templates without a row of their own in the table: those that one row of it fits."""
    case = Case([user("a"), assistant("b"), user("c"), assistant("d")])
    for name, template in templates.items():
        tokenizer.chat_template = template
        try:
            text = render(tokenizer, case)
        except RENDER_ERRORS:
            continue
        form = format_of(text, added_tokens(vocabulary))
        if form is not None:
            yield name, template, form


def _shipped(vocabulary: Vocabulary) -> Iterator[tuple[str, str, Format]]:
    for name in shipped_names():
        if name in SHIPPED and added_tokens(vocabulary).issuperset(SHIPPED[name].needs):
            yield name, shipped_template(name), SHIPPED[name]


def _plain_text(tokenizer: Any) -> Iterator[tuple[str, str, Format]]:
    for name, (template, form) in PLAIN_TEXT.items() if tokenizer.eos_token else ():
        yield name, template, form.with_eos(tokenizer.eos_token)


def added_tokens(vocabulary: Vocabulary) -> frozenset[str]:
    return frozenset(token.content.decode() for token in vocabulary.added.values())


def _pair(name: str, template_name: str, tokenizer: Any, vocabulary: Vocabulary, form: Format) -> Pair:
    rows: list[Row] = []
    undecided: list[str] = []
    for conversation in conversations(form):
        for shape in shapes(conversation, form):
            try:
                judgement = judge(tokenizer, vocabulary, form, _case(shape))
            except UndecidedError as reason:
                undecided += [f"{conversation.name}: {reason}"] if _renders_results(tokenizer, shape) else []
                continue
            except RENDER_ERRORS:
                continue
            if not conversation.calls_tools or judgement.shows_tools(shape.messages):
                is_listed = (template_name, conversation.name) in NOT_IN_THE_IDS
                rows.append(Row(shape, judgement, is_listed or judgement.is_quoting or bool(judgement.headerless)))
                break
    return Pair(name, template_name, tokenizer, form, rows, undecided)


def _renders_results(tokenizer: Any, conversation: Conversation) -> bool:
    """False where the template leaves tools out, so that it does not matter what it makes of their conversation."""
    results = [message["content"] for message in conversation.messages if message["role"] == "tool"]
    return not results or all(result in render(tokenizer, _case(conversation)) for result in results)


def _case(conversation: Conversation) -> Case:
    return Case(conversation.messages, conversation.tools, conversation.template_kwargs)


# --- running and scoring ----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Score:
    """What one mode did to the rows of one pair. Scores add up."""

    rows: int = 0
    lost: int = 0  # tokens that must be trained and are not
    leaked: int = 0  # tokens that must not be trained and are
    stops: int = 0
    stops_trained: int = 0
    injections: int = 0
    injections_held: int = 0
    unknowable: int = 0  # ids-only rows that quote a marker, or hold an answer without a header
    unknowable_wrong: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return not (self.lost or self.leaked)

    def add(self, other: Score) -> None:
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        self.failures += other.failures


COUNTS = (
    "rows", "lost", "leaked", "stops", "stops_trained", "injections", "injections_held", "unknowable",
    "unknowable_wrong",
)  # fmt: skip


def run(pair: Pair, subject: Subject, mode: Mode) -> Score:
    """All rows of ``pair`` through the function under test, in one call where none is refused."""
    score = Score()
    for row, labels in _masked(pair, pair.rows, subject, mode, score):
        _score_row(row, labels, mode, score)
    return score


def dataset_of(rows: Sequence[Row], has_messages: bool) -> Dataset:
    """The rows as a trainer would hold them after tokenizing."""
    records: list[dict[str, Any]] = [
        {ROW_NUMBER: number, "input_ids": row.judgement.ids} for number, row in enumerate(rows)
    ]
    for record, row in zip(records, rows if has_messages else (), strict=False):
        record["messages"] = row.conversation.messages
        if any(other.conversation.tools for other in rows):
            record["tools"] = row.conversation.tools
        if any(other.conversation.template_kwargs for other in rows):
            record["chat_template_kwargs"] = row.conversation.template_kwargs
    return Dataset.from_list(records, on_mixed_types="use_json")


def _masked(pair: Pair, rows: list[Row], subject: Subject, mode: Mode, score: Score) -> Iterator[tuple[Row, list[int]]]:
    """Labels of every row; where the call is refused, row by row, so that one row cannot hide the others."""
    instruction, response = (pair.form.user, pair.form.assistant[0]) if mode.has_markers else (None, None)
    try:
        masked = subject.mask(
            dataset_of(rows, mode.has_messages), pair.tokenizer, instruction, response, on_ambiguous="error"
        )
    except subject.refusal as reason:
        if len(rows) == 1:
            _score_refusal(rows[0], reason, mode, score)
            return
        for row in rows:
            yield from _masked(pair, [row], subject, mode, score)
        return
    kept = dict(zip(masked[ROW_NUMBER], zip(masked["input_ids"], masked["labels"], strict=True), strict=True))
    for number, row in enumerate(rows):
        ids, labels = kept.get(number, (row.judgement.ids, [IGNORED] * len(row.judgement.ids)))
        assert list(ids) == row.judgement.ids, "masking never changes an id"
        yield row, labels  # a row that was dropped trains nothing


def _is_unknowable(row: Row, mode: Mode) -> bool:
    return not mode.has_messages and row.needs_messages


def _score_refusal(row: Row, reason: Exception, mode: Mode, score: Score) -> None:
    if _is_unknowable(row, mode):
        score.unknowable += 1
        return
    score.rows += 1
    score.injections += row.conversation.is_injection
    score.refused[f"{type(reason).__name__}: {' '.join(str(reason).split())[:160]}"] += 1


def _score_row(row: Row, labels: Sequence[int], mode: Mode, score: Score) -> None:
    lost, leaked = mistakes(row.judgement, labels)
    if _is_unknowable(row, mode):
        score.unknowable += 1
        score.unknowable_wrong += bool(lost or leaked)
        return
    score.rows += 1
    score.lost += len(lost)
    score.leaked += len(leaked)
    score.stops += len(row.judgement.stops)
    score.stops_trained += sum(all(labels[i] != IGNORED for i in stop) for stop in row.judgement.stops)
    score.injections += row.conversation.is_injection
    score.injections_held += row.conversation.is_injection and not (lost or leaked)
    if lost or leaked:
        score.failures.append(describe(row, labels, mode))


def mistakes(judgement: Judgement, labels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Indices of the tokens that were lost, and of those that leaked."""
    assert all(label in (IGNORED, token) for label, token in zip(labels, judgement.ids, strict=True)), (
        "a label is the token's id or the ignored one"
    )
    trained = [label != IGNORED for label in labels]
    verdicts = judgement.verdicts
    lost = [i for i, verdict in enumerate(verdicts) if verdict is Verdict.MUST and not trained[i]]
    leaked = [i for i, verdict in enumerate(verdicts) if verdict is Verdict.MUST_NOT and trained[i]]
    return lost, leaked


def describe(row: Row, labels: Sequence[int], mode: Mode) -> str:
    """The mistakes of one row, each run with the text in front of it: ``+[lost]`` and ``-[leaked]``."""
    lost, leaked = mistakes(row.judgement, labels)
    signs = dict.fromkeys(lost, "+") | dict.fromkeys(leaked, "-")
    data = row.judgement.text.encode()
    pieces: list[str] = []
    previous = ""
    for i, (start, stop) in enumerate(row.judgement.spans):
        sign = signs.get(i, "")
        if sign != previous:
            pieces.append("]" if previous else "")
            pieces.append(f" …{data[max(0, start - 24) : start].decode(errors='replace')}{sign}[" if sign else "")
        if sign:
            pieces.append(data[start:stop].decode(errors="replace") or "▁")
        previous = sign
    return f"{row.conversation.name} ({mode.name}):{''.join(pieces)!r}"
