"""From what the caller gave, what the chat template says and what the rows show, to the markers that are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import Ids, offsets_of
from sft_mask.core.markers import Markers, MarkerText, as_marker_texts
from sft_mask.core.patterns import Kind, Pattern, compile_patterns
from sft_mask.core.spans import SpanFinder, Turns
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.templates.chat_template import common_suffix
from sft_mask.templates.detect import proven_markers

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate


_SHOWN = 400
_LONGEST_GAP = 8
"""Tokens between the end of a turn and the next header; templates write one newline, rarely two tokens."""


@dataclass(frozen=True)
class Resolved:
    """Markers ready to use.

    Attributes:
        markers: their texts.
        finder: the compiled search.
        from_template: whether the headers are the chat template's own, so that messages can be laid along them.
    """

    markers: Markers
    finder: SpanFinder
    from_template: bool


def _given(instruction: object, response: object) -> tuple[tuple[MarkerText, ...], tuple[MarkerText, ...]] | None:
    if instruction is None and response is None:
        return None
    if instruction is None or response is None:
        missing, there = ("instruction_part", response) if instruction is None else ("response_part", instruction)
        raise MarkerError(
            f"Only one marker was given ({there!r}); {missing} is missing. Both are needed to know where an answer "
            "ends: give both, or neither to have them read from the chat template."
        )
    users, models = as_marker_texts(instruction, "instruction_part"), as_marker_texts(response, "response_part")
    shared = set(users) & set(models)
    if shared:
        raise MarkerError(
            f"The marker {sorted(map(repr, shared))[0]} was given for both roles: nothing would tell the user's words "
            "from the model's. Give the text before the user's turns as instruction_part and the text before the "
            "model's as response_part."
        )
    return users, models


def _agrees(given: MarkerText, known: Iterable[MarkerText]) -> bool:
    """Whether a given header is the template's, but for blanks at its edges or a cut end."""
    if not isinstance(given, str):
        return False
    texts = [text.strip() for text in known if isinstance(text, str)]
    bare = given.strip()
    return bool(bare) and any(text == bare or text.startswith(bare) or text.endswith(bare) for text in texts)


def _as_text(given: tuple[MarkerText, ...], detected: Markers | None, vocabulary: Vocabulary) -> tuple[MarkerText, ...]:
    """Headers given as ids, as the text that the chat template has for them: then messages can be laid along them."""
    if detected is None:
        return given
    known = (*detected.response, *detected.instruction)
    texts = [text if isinstance(text, str) else vocabulary.text(list(text)) for text in given]
    return tuple(text if _agrees(text, known) else marker for text, marker in zip(texts, given, strict=True))


def combine(given: tuple[tuple[MarkerText, ...], tuple[MarkerText, ...]], detected: Markers | None) -> Markers:
    """Given markers, completed by the chat template where they are the template's own.

    A header that the caller cut short (``"<|im_start|>assistant"`` without its newline) is completed: what the
    generation prompt writes is never trained.
    """
    users, models = given
    alone = Markers(response=models, instruction=users)
    if detected is None:
        return alone
    if not all(_agrees(text, detected.response) for text in models):
        return alone
    if not any(_agrees(text, detected.instruction) for text in users):
        return replace(detected, instruction=_merged(users, detected.instruction), detected=False)
    return replace(detected, detected=False)


def _refuse_contradiction(models: Sequence[MarkerText], detected: Markers | None) -> None:
    """Refuses a response marker that is, under the chat template, somebody else's header or a stop."""
    if detected is None:
        return
    for text in models:
        for name, known in (("the user's header", detected.instruction), ("a stop", detected.eots)):
            if not _agrees(text, detected.response) and _agrees(text, known):
                raise MarkerError(
                    f"The response marker {text!r} is {name} under the chat template, so the user's words would be "
                    f"trained. The model's turns begin with {detected.response[0]!r}, the user's with "
                    f"{detected.instruction[0]!r}: give these, or leave both out."
                )


def _refuse_absent_instruction(
    given: tuple[tuple[MarkerText, ...], tuple[MarkerText, ...]],
    rows: Sequence[Ids],
    vocabulary: Vocabulary,
    tokenizer: Any,
) -> None:
    """Refuses an instruction marker that opens nothing: an answer would run on into the user's words."""
    if not rows:
        return
    users, _ = given
    finder = SpanFinder(compile_patterns(Markers(response=users, instruction=()), vocabulary, tokenizer))
    if not any(len(_turns_of(finder, row)) for row in rows):
        shown = vocabulary.text(rows[0][:120].tolist())[:_SHOWN]
        raise MarkerError(
            f"The instruction marker {', '.join(map(repr, users))} opens a turn in none of the rows looked at, so an "
            f"answer would run on into the user's words. The first row begins\n    {shown!r}\nwith ids "
            f"{rows[0][:24].tolist()}. Give the text that stands before the user's words there as instruction_part."
        )


def _merged(first: Sequence[MarkerText], second: Sequence[MarkerText]) -> tuple[MarkerText, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def resolve(
    vocabulary: Vocabulary,
    tokenizer: Any,
    template: ChatTemplate | None,
    *,
    instruction: object = None,
    response: object = None,
    rows: Sequence[Ids] = (),
    max_length: int | None = None,
) -> Resolved:
    """The markers to use.

    Args:
        vocabulary: of the tokenizer.
        tokenizer: the tokenizer itself.
        template: its chat template, if any.
        instruction: markers before the user's turns, or ``None``.
        response: markers before the model's turns, or ``None``.
        rows: some rows of ids; what ends an answer is learnt from them where the template does not say it.
        max_length: where the rows were truncated, for the error that says so.

    Raises:
        MarkerError: one marker only, an empty one, one for both roles, or markers that occur in no row.
        DetectionError: no marker was given and the template does not show them.
    """
    given = _given(instruction, response)
    detected: Markers | None
    if given is None:
        detected = proven_markers(template, vocabulary, tokenizer)
        choices = [detected]
    else:
        detected = _detected_or_none(template, vocabulary, tokenizer)
        if detected is not None:
            stops = _stop_tokens(detected, vocabulary)
            users, models = (_without_stop(texts, stops, vocabulary) for texts in given)
            given = (users, models)
        given = tuple(_as_text(side, detected, vocabulary) for side in given)  # type: ignore[assignment]
        _refuse_contradiction(given[1], detected)
        _refuse_absent_instruction(given, rows, vocabulary, tokenizer)
        # The second choice is for rows that were not rendered by the chat template that the markers resemble.
        choices = list(dict.fromkeys([combine(given, detected), combine(given, None)]))
    for markers in choices:
        from_template = detected is not None and markers.response == detected.response
        resolved = _compiled(markers, from_template, rows, vocabulary, tokenizer)
        if not rows or any(len(_turns_of(resolved.finder, row)) for row in rows):
            return resolved
    raise _never_found(resolved.markers, rows, vocabulary, max_length)


def _stop_tokens(markers: Markers, vocabulary: Vocabulary) -> list[int]:
    """Control tokens of the stops that open no turn."""
    texts = [text for text in markers.eots if isinstance(text, str)]
    headers = [text for text in (*markers.response, *markers.headers) if isinstance(text, str)]
    contents = [text for text in vocabulary.special_contents if any(text in stop for stop in texts)]
    return [
        vocabulary.special_contents[text]
        for text in contents
        if text and not any(header.startswith(text) for header in headers)
    ]


def _without_stop(
    headers: Sequence[MarkerText], stops: Collection[int], vocabulary: Vocabulary
) -> tuple[MarkerText, ...]:
    """Headers without the stop of the turn before, which a caller may have copied along: it is the model's to say."""
    return tuple(dict.fromkeys(_after_stop(header, stops, vocabulary) for header in headers))


def _after_stop(header: MarkerText, stops: Collection[int], vocabulary: Vocabulary) -> MarkerText:
    if not isinstance(header, str):
        blank = next(
            (at for at, token in enumerate(header) if token not in stops and vocabulary.text([token]).strip()), 0
        )
        return header[blank:] if header[0] in stops else header
    rest = header.lstrip()
    for content in (vocabulary.text([token]) for token in stops):
        rest = rest.removeprefix(content).lstrip()
    return rest if rest and rest != header.lstrip() else header


def _compiled(
    markers: Markers, from_template: bool, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: Any
) -> Resolved:
    settle = _seen_at_row_ends if from_template else learn_closings
    markers = settle(markers, rows, vocabulary, tokenizer)
    finder = SpanFinder(
        compile_patterns(markers, vocabulary, tokenizer),
        complete=markers.complete,
        open_end=markers.open_end or not markers.eots,
        separator=markers.separator,
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
    )
    return Resolved(markers, finder, from_template)


def _detected_or_none(template: ChatTemplate | None, vocabulary: Vocabulary, tokenizer: Any) -> Markers | None:
    try:
        return proven_markers(template, vocabulary, tokenizer)
    except DetectionError:
        return None


def _turns_of(finder: SpanFinder, row: Ids) -> Turns:
    return finder.find(row, np.array([0, len(row)], np.int64))


def learn_closings(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: Any) -> Markers:
    """Stops and separators, read from what stands before the next header and at the end of rows.

    A control token there is a stop; where answers end without one, the blank text that all of them have before the next
    header is the template's. The tokenizer's eos is a stop wherever it stands.
    """
    finder = SpanFinder(compile_patterns(markers, vocabulary, tokenizer))
    ids = np.concatenate([np.zeros(0, np.int64), *rows])
    turns = finder.find(ids, offsets_of([*map(len, rows)]))
    runs: list[list[int]] = []
    blanks: list[str] = []
    for start, end, is_cut in zip(turns.start.tolist(), turns.end.tolist(), turns.cut.tolist(), strict=True):
        run, blank = _closing(ids[start:end].tolist(), vocabulary)
        if run:
            runs.append(run)
        elif not is_cut:
            blanks.append(blank)
    closes_others = {
        token for at in turns.header.tolist() if (token := _control_before(ids, at, vocabulary)) is not None
    }
    stops = Counter(_ends_turn(run, closes_others, runs) for run in runs)
    eos = getattr(tokenizer, "eos_token_id", None)
    bare = _with_bare_headers(markers, {token for token, _ in stops.most_common()}, eos, vocabulary)
    if bare != markers:
        return learn_closings(bare, rows, vocabulary, tokenizer)
    headers = [pattern for pattern in finder.trie.patterns if pattern.kind is not Kind.EOT]
    known = {pattern.atoms[0] - 256 for pattern in headers}  # what opens a turn is no stop; bytes come out negative
    closing = [token for token, count in stops.most_common() if count * 20 >= stops.total() and token not in known]
    if eos is not None and eos not in closing and eos not in known:
        closing.append(int(eos))
    separator = common_suffix(blanks)
    openers = _openers(headers, getattr(tokenizer, "bos_token_id", None), set(closing), vocabulary)
    return replace(
        markers,
        eots=_merged(markers.eots, tuple((token,) for token in closing)),
        others=_merged(markers.others, openers),
        separator=separator,
    )


def _with_bare_headers(markers: Markers, closing: Collection[int], eos: int | None, vocabulary: Vocabulary) -> Markers:
    """Markers whose headers do not begin with what ends an answer.

    That is the eos, or a control token in front of another one, if it ends answers or a line break stands between.
    """
    ends = [] if eos is None else [eos]

    def bare(header: MarkerText) -> MarkerText:
        text = header if isinstance(header, str) else vocabulary.text(header)
        first = next(
            (token for content, token in vocabulary.special_contents.items() if text.startswith(content)), None
        )
        if first is None or first in ends:
            return _after_stop(header, ends, vocabulary)
        rest = text.removeprefix(vocabulary.text([first]))
        opens_another = any(content and rest.lstrip().startswith(content) for content in vocabulary.special_contents)
        stops = opens_another and (first in closing or rest[:1].isspace())
        return _after_stop(header, [first], vocabulary) if stops else header

    response, instruction = (tuple(map(bare, texts)) for texts in (markers.response, markers.instruction))
    return replace(markers, response=response, instruction=instruction)


def _openers(
    headers: Sequence[Pattern], bos: int | None, stops: set[int], vocabulary: Vocabulary
) -> tuple[MarkerText, ...]:
    """Control tokens that begin a turn or a document by themselves: the shared opener of all headers, and bos."""
    leads = {pattern.atoms[0] - 256 for pattern in headers if pattern.kind is Kind.RESPONSE}
    others = {pattern.atoms[0] - 256 for pattern in headers if pattern.kind is Kind.OTHER}
    found = {token for token in leads & others if token in vocabulary.added}
    if bos is not None and bos not in stops:
        found.add(int(bos))
    alone = {pattern.atoms[0] - 256 for pattern in headers if len(pattern.atoms) == 1}
    return tuple((token,) for token in sorted(found - alone))


def _closing(answer: list[int], vocabulary: Vocabulary) -> tuple[list[int], str]:
    """The control tokens that end an answer, and the blank text at its end where there are none."""
    run: list[int] = []
    tail = ""
    for token_id in reversed(answer):
        if vocabulary.is_special(token_id):
            run.insert(0, token_id)
            continue
        text = vocabulary.text([token_id])
        tail = text + tail
        if text.strip():
            break
    return run, "" if run else tail[len(tail.rstrip()) :]


def _control_before(ids: Ids, at: int, vocabulary: Vocabulary) -> int | None:
    """The control token before a header, whitespace passed over."""
    for token_id in ids[max(at - _LONGEST_GAP, 0) : at][::-1].tolist():
        if vocabulary.is_special(token_id):
            return int(token_id)
        if vocabulary.text([token_id]).strip():
            return None
    return None


def _ends_turn(run: Sequence[int], closes_others: Collection[int], runs: Sequence[Sequence[int]]) -> int:
    """Which of the control tokens at the end of an answer ends the turn.

    The first that closes the words of others too, or else that all answers have (``<|eot_id|>`` of
    ``<|eot_id|><|end_of_text|>``); otherwise the last, since what is before it may belong to a call or a thought.
    """
    of_all = set(run).intersection(*runs)
    return next((token for token in run if token in closes_others), next((t for t in run if t in of_all), run[-1]))


def _seen_at_row_ends(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: Any) -> Markers:
    """Markers of a template that leaves the last answer open, with the EOS as a stop where it ends rows.

    A row of text has one that the trainer appended. Rows that end in several of them are padded.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    texts = [text for text in (*markers.response, *markers.headers) if isinstance(text, str)]
    if eos is None or not markers.open_end or any(text.startswith(vocabulary.text([eos])) for text in texts):
        return markers
    ended = any(len(row) > 1 and row[-1] == eos and row[-2] != eos for row in rows)
    return replace(markers, eots=_merged(markers.eots, ((int(eos),),))) if ended else markers


def _never_found(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, max_length: int | None) -> MarkerError:
    texts = ", ".join(repr(text) for text in markers.response)
    row = rows[0]
    shown = vocabulary.text(row[:120].tolist())[:_SHOWN]
    full = sum(len(each) >= max_length for each in rows) if max_length else 0
    hint = ""
    if full:
        hint = (
            f" {full} of {len(rows)} rows looked at are {max_length} tokens long, the trainer's max_length: truncation "
            "may have cut the answers off. Raise max_length, or use truncation_mode='keep_end'."
        )
    for text in markers.response:
        bare = text.strip() if isinstance(text, str) else ""
        if isinstance(text, str) and bare != text and bare in vocabulary.text(row.tolist()):
            hint = f" {bare!r}, without the blanks around it, does occur: give that."
    way_out = (
        "The markers were read from the chat template, so the rows are in another format: give its template as "
        "chat_template=, or the texts that stand before the user's and the model's words there as instruction_part and "
        "response_part."
        if markers.detected
        else "Give the text that stands before the model's words there as response_part, or leave both markers out to "
        "have them read from the chat template."
    )
    return MarkerError(
        f"The response marker {texts} opens an answer in none of the rows looked at.{hint} The first row begins\n"
        f"    {shown!r}\nwith ids {row[:24].tolist()}. {way_out}"
    )
