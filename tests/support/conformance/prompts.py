"""A second oracle, which needs no table: every answer begins where its own generation prompt ends.

It judges templates whose headers nobody wrote down. Whose word each character is comes from the brackets of
``oracle.py``; what the generation prompt of an answer holds must not be trained, nor a blank behind a stop; the first
control token behind an answer must be, if it is the one that ends a conversation. All else goes either way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from support.conformance.alignment import Vocabulary, read_vocabulary
from support.conformance.cases import WEATHER_TOOL, Conversation, assistant, conversations, shapes, user
from support.conformance.harness import RENDER_ERRORS, Pair, Row
from support.conformance.oracle import (
    TAG,
    Case,
    Judgement,
    Run,
    Site,
    UndecidedError,
    Verdict,
    bracketed_runs,
    judgement_of,
    prompt_of,
    render,
)
from support.conformance.templates import Format
from support.tiny_chat import tokenizer_for

SMALL = "small"
QUESTION, ANSWER = "Where does it begin?", "It begins in the hills"


@dataclass(frozen=True, slots=True)
class Look:
    """What one rendered turn shows: header and stop, and whether the template must be given a tool.

    ``is_one_stop`` is false where more than blanks follows the stop (Apriel, which ends an answer twice).
    """

    form: Format
    tools: list[dict[str, Any]] | None
    is_one_stop: bool


def look_of(tokenizer: Any, vocabulary: Vocabulary) -> Look | None:
    """``None`` where the template renders no plain turn, not even with a tool."""
    specials = [token.content.decode() for token in vocabulary.added.values()]
    for is_parts, tools in ((False, None), (True, None), (False, [WEATHER_TOOL])):
        messages = [user(QUESTION), assistant(ANSWER)]
        if is_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        case = Case(messages, tools)
        try:
            whole = render(tokenizer, case)
        except RENDER_ERRORS:
            continue
        prompt = prompt_of(tokenizer, case, 1)
        if prompt is None or QUESTION not in prompt or ANSWER not in whole:
            continue
        ending = whole[whole.rindex(ANSWER) + len(ANSWER) :]
        stop = min((text for text in specials if text in ending), key=ending.find, default="")
        header = prompt[prompt.rindex(QUESTION) + len(QUESTION) :]
        bare = re.sub("|".join([TAG.pattern, *map(re.escape, specials)]), " ", header)
        spoken = re.findall(r"\w+:?", bare)
        form = Format("\0", (header,), (stop,) if stop else (), tuple(spoken), content_is_parts=is_parts)
        return Look(form, tools, is_one_stop=not ending[ending.find(stop) + len(stop) :].strip())
    return None


def small_pairs(templates: Mapping[str, str]) -> Iterator[Pair]:
    """Templates, each with a small tokenizer that holds its control tokens; no rows where it renders no plain turn."""
    for name, source in templates.items():
        tokenizer = tokenizer_for(source)
        vocabulary = read_vocabulary(tokenizer)
        look = look_of(tokenizer, vocabulary)
        rows = rows_by_prompts(tokenizer, vocabulary, look) if look is not None else []
        yield Pair(SMALL, name, tokenizer, look.form if look is not None else Format("", ("",)), rows, [])


def rows_by_prompts(tokenizer: Any, vocabulary: Vocabulary, look: Look) -> list[Row]:
    """Every conversation that the template renders with all of its words."""
    rows = []
    for conversation in conversations(replace(look.form, user="user")):
        row = next(
            filter(None, (_row(tokenizer, vocabulary, look, one) for one in shapes(conversation, look.form))), None
        )
        rows += [row] if row is not None else []
    return rows


def _row(tokenizer: Any, vocabulary: Vocabulary, look: Look, conversation: Conversation) -> Row | None:
    conversation = replace(conversation, tools=conversation.tools or look.tools)
    case = Case(conversation.messages, conversation.tools, conversation.template_kwargs)
    try:
        judgement = _judge(tokenizer, vocabulary, case, look)
    except (*RENDER_ERRORS, UndecidedError):
        return None
    if conversation.calls_tools and not judgement.shows_tools(conversation.messages):
        return None
    is_known = not (conversation.is_injection or conversation.calls_tools or judgement.is_quoting)
    return Row(conversation, judgement, not is_known or _is_headerless(judgement.runs, look.form.others))


def _is_headerless(runs: Sequence[Run], spoken: Sequence[str]) -> bool:
    """Whether one message follows another and nothing that a header says stands between them."""
    words = [index for index, run in enumerate(runs) if run.owner is not None]
    turns = [(a, b) for a, b in pairwise(words) if runs[a].owner.message != runs[b].owner.message]
    answers = [(a, b) for a, b in turns if runs[b].owner.role == "assistant"]
    gaps = ["".join(run.text for run in runs[a + 1 : b]) for a, b in answers]
    return bool(spoken) and not all(any(word in gap for word in spoken) for gap in gaps)


def _judge(tokenizer: Any, vocabulary: Vocabulary, case: Case, look: Look) -> Judgement:
    text = render(tokenizer, case)
    runs = bracketed_runs(tokenizer, case, text)
    kinds = [Verdict.EITHER] * len(text)
    for run in runs:
        if run.owner is not None:
            kinds[run.start : run.start + len(run.text)] = [_kind_of(run.owner)] * len(run.text)
    answers = [index for index, message in enumerate(case.messages) if message["role"] == "assistant"]
    for index in answers:
        for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
            prompt = prompt_of(tokenizer, case, index, **thinking)
            if prompt is not None and text.startswith(prompt):
                _mark_prompt(runs, len(prompt), kinds, is_default=not thinking)
    said = [index for index in answers if not case.messages[index].get("tool_calls")]
    stops = [stop for index in said for stop in _mark_stop(text, runs, index, look, kinds)]
    return judgement_of(tokenizer, vocabulary, look.form, text, runs, kinds, stops)


def _kind_of(owner: Site) -> Verdict:
    if owner.role != "assistant":
        return Verdict.MUST_NOT
    return Verdict.EITHER if owner.is_optional else Verdict.MUST


def _mark_prompt(runs: Sequence[Run], end: int, kinds: list[Verdict], *, is_default: bool) -> None:
    """What a prompt adds to somebody else's words is not trained; a tag in it may be how the answer's words begin."""
    spoken = [run for run in runs if run.owner is not None and not run.owner.is_optional and run.start < end]
    before = [run for run in spoken if run.start + len(run.text) <= end]
    if before and before[-1].owner is not None and before[-1].owner.role == "assistant":
        return
    begin = before[-1].start + len(before[-1].text) if before else 0
    for at in range(begin, end):
        is_word = kinds[at] is Verdict.MUST
        kinds[at] = Verdict.EITHER if is_word else Verdict.MUST_NOT if is_default else kinds[at]


def _mark_stop(text: str, runs: Sequence[Run], message: int, look: Look, kinds: list[Verdict]) -> list[tuple[int, int]]:
    words = [run for run in runs if run.owner is not None and run.owner.message == message]
    if not words or not look.form.stops:
        return []
    end = words[-1].start + len(words[-1].text)
    bound = next((run.start for run in runs if run.start >= end and run.owner is not None), len(text))
    start = text.find(look.form.stops[0], end, bound)
    if start < 0:
        return []
    stop = start + len(look.form.stops[0])
    kinds[start:stop] = [Verdict.MUST] * (stop - start)
    blanks = len(text[stop:bound]) - len(text[stop:bound].lstrip()) if look.is_one_stop else 0
    kinds[stop : stop + blanks] = [Verdict.MUST_NOT] * blanks
    return [(start, stop)]
