"""The markers to use, from what the caller gave, what the chat template says and what the rows show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.markers import Markers, MarkerText, as_marker_texts
from sft_mask.core.patterns import compile_patterns
from sft_mask.core.spans import SpanFinder
from sft_mask.errors import DetectionError, MarkerError
from sft_mask.templates.chat_template import EMPTY_BLOCK
from sft_mask.templates.detection.detect import proven_markers, unique
from sft_mask.templates.detection.endings import after_eot, learn_endings, with_eos_at_row_ends

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids
    from sft_mask.core.vocabulary import Vocabulary
    from sft_mask.templates.chat_template import ChatTemplate


_SHOWN = 400


@dataclass(frozen=True)
class Resolved:
    """Markers ready to use.

    Attributes:
        markers: their texts.
        finder: the compiled search.
        from_template: whether the headers are the chat template's own, so that it renders the rows' messages.
    """

    markers: Markers
    finder: SpanFinder
    from_template: bool


@dataclass(frozen=True, slots=True)
class Given:
    """Headers that the caller gave."""

    instruction: tuple[MarkerText, ...]
    response: tuple[MarkerText, ...]


def resolve(
    vocabulary: Vocabulary,
    tokenizer: object,
    template: ChatTemplate | None,
    *,
    instruction: object = None,
    response: object = None,
    rows: Sequence[Ids] = (),
    max_length: int | None = None,
    train_empty_reasoning: bool = False,
) -> Resolved:
    """The markers to use.

    Args:
        vocabulary: of the tokenizer.
        tokenizer: the tokenizer itself.
        template: its chat template, if any.
        instruction: markers before the user's turns, or ``None``.
        response: markers before the assistant's turns, or ``None``.
        rows: some rows of ids; what ends an answer is learnt from them where the template does not say it.
        max_length: where the rows were truncated, for the error that says so.
        train_empty_reasoning: whether an empty reasoning block is trained although a generation prompt holds it.

    Raises:
        MarkerError: one marker only, an empty one, one for both roles, or markers that occur in no row.
        DetectionError: no marker was given and the template does not show them.
    """
    given = _given(instruction, response)
    detected: Markers | None
    if given is None:
        detected = proven_markers(template, vocabulary, tokenizer)
        detected = _without_empty_blocks(detected) if train_empty_reasoning else detected
        choices = [detected]
    else:
        detected = _detected_or_none(template, vocabulary, tokenizer)
        detected = _without_empty_blocks(detected) if train_empty_reasoning and detected is not None else detected
        if detected is not None:
            given = _as_written(given, detected, vocabulary)
            _refuse_contradiction(given, detected)
        _refuse_absent_instruction(given, rows, vocabulary, tokenizer, max_length)
        # The second choice is for rows that were not rendered by the chat template that the markers resemble.
        choices = list(dict.fromkeys([combine(given, detected), combine(given, None)]))
    for markers in choices:
        from_template = detected is not None and markers.response == detected.response
        resolved = _compiled(markers, from_template, rows, vocabulary, tokenizer)
        if not rows or _opens_any(resolved.finder, rows):
            return resolved
    raise _never_found(resolved.markers, rows, vocabulary, max_length)


def _compiled(
    markers: Markers, from_template: bool, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: object
) -> Resolved:
    learn = with_eos_at_row_ends if from_template else learn_endings
    markers = learn(markers, rows, vocabulary, tokenizer)
    finder = SpanFinder(
        compile_patterns(markers, vocabulary, tokenizer),
        complete=markers.complete,
        open_end=markers.open_end or not markers.eots,
        separator=markers.separator,
        pad_token_id=getattr(tokenizer, "pad_token_id", None),
    )
    return Resolved(markers, finder, from_template)


def _detected_or_none(template: ChatTemplate | None, vocabulary: Vocabulary, tokenizer: object) -> Markers | None:
    try:
        return proven_markers(template, vocabulary, tokenizer)
    except DetectionError:
        return None


def _without_empty_blocks(markers: Markers) -> Markers:
    """The markers, without response headers that end in an empty reasoning block."""
    first, *more = markers.response
    kept = [text for text in more if not (isinstance(text, str) and EMPTY_BLOCK.search(text))]
    return replace(markers, response=(first, *kept))


def _opens_any(finder: SpanFinder, rows: Sequence[Ids]) -> bool:
    """Whether a response header opens a turn in any row."""
    return any(len(finder.find(row, np.array([0, len(row)], np.int64))) for row in rows)


# given markers


def _given(instruction: object, response: object) -> Given | None:
    """Both markers, or ``None`` where neither was given."""
    if instruction is None and response is None:
        return None
    if instruction is None or response is None:
        missing, there = ("instruction_part", response) if instruction is None else ("response_part", instruction)
        raise MarkerError(
            f"Only one marker was given ({there!r}); {missing} is missing. Both are needed to know where an answer "
            "ends: give both, or neither to have them read from the chat template."
        )
    given = Given(as_marker_texts(instruction, "instruction_part"), as_marker_texts(response, "response_part"))
    shared = set(given.instruction) & set(given.response)
    if shared:
        raise MarkerError(
            f"The marker {sorted(map(repr, shared))[0]} was given for both roles: nothing would tell the user's words "
            "from the assistant's. Give the text before the user's turns as instruction_part and the text before the "
            "assistant's as response_part."
        )
    return given


def _as_written(given: Given, detected: Markers, vocabulary: Vocabulary) -> Given:
    """Given headers as the chat template writes them: without a copied end-of-turn token, and as text instead of ids.

    Only such headers let the template render the rows' messages.
    """
    eots = _eot_tokens(detected, vocabulary)
    known = (*detected.response, *detected.instruction)

    def written(header: MarkerText) -> MarkerText:
        bare = after_eot(header, eots, vocabulary)
        text = bare if isinstance(bare, str) else vocabulary.text(list(bare))
        return text if _agrees(text, known) else bare

    return Given(unique(map(written, given.instruction)), unique(map(written, given.response)))


def _eot_tokens(markers: Markers, vocabulary: Vocabulary) -> list[int]:
    """Control tokens of the end-of-turn texts that open no turn."""
    eots = [text for text in markers.eots if isinstance(text, str)]
    headers = [text for text in (*markers.response, *markers.headers) if isinstance(text, str)]
    return [
        token
        for text, token in vocabulary.special_contents.items()
        if text and any(text in eot for eot in eots) and not any(header.startswith(text) for header in headers)
    ]


def _agrees(given: MarkerText, known: Iterable[MarkerText]) -> bool:
    """Whether a given header is the template's, apart from whitespace around it or a missing beginning or end."""
    if not isinstance(given, str):
        return False
    texts = [text.strip() for text in known if isinstance(text, str)]
    bare = given.strip()
    return bool(bare) and any(text.startswith(bare) or text.endswith(bare) for text in texts)


def combine(given: Given, detected: Markers | None) -> Markers:
    """Given markers, completed by the chat template where they are the template's own.

    A header that the caller cut short (``"<|im_start|>assistant"`` without its newline) is completed: what the
    generation prompt writes is never trained.
    """
    if detected is None or not all(_agrees(text, detected.response) for text in given.response):
        return Markers(response=given.response, instruction=given.instruction)
    if not any(_agrees(text, detected.instruction) for text in given.instruction):
        return replace(detected, instruction=unique((*given.instruction, *detected.instruction)), detected=False)
    return replace(detected, detected=False)


# refusals


def _refuse_contradiction(given: Given, detected: Markers) -> None:
    """Refuses a response marker that is the user's header or an end-of-turn token under the chat template."""
    for text in given.response:
        for name, known in (("the user's header", detected.instruction), ("an end-of-turn token", detected.eots)):
            if not _agrees(text, detected.response) and _agrees(text, known):
                raise MarkerError(
                    f"The response marker {text!r} is {name} under the chat template, so the user's words would be "
                    f"trained. The assistant's turns begin with {detected.response[0]!r}, the user's with "
                    f"{detected.instruction[0]!r}: give these, or leave both out."
                )


def _refuse_absent_instruction(
    given: Given, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: object, max_length: int | None
) -> None:
    """Refuses an instruction marker that opens nothing: an answer would include the user's words after it."""
    if not rows:
        return
    alone = Markers(response=given.instruction, instruction=())
    if not _opens_any(SpanFinder(compile_patterns(alone, vocabulary, tokenizer)), rows):
        if max_length and all(len(each) >= max_length for each in rows):
            raise MarkerError(
                f"No user's turn begins in any of the rows looked at (its header would be {given.instruction[0]!r}). "
                f"All {len(rows)} are {max_length} tokens long, the trainer's max_length: truncation may have cut off "
                "all that follows a long beginning. Raise max_length, or use truncation_mode='keep_end'. "
                f"{_first_row(rows, vocabulary)}."
            )
        raise MarkerError(
            f"The instruction marker {', '.join(map(repr, given.instruction))} opens a turn in none of the rows looked "
            f"at, so an answer would run on into the user's words. {_first_row(rows, vocabulary)}. Give the text "
            "before the user's words there as instruction_part."
        )


def _first_row(rows: Sequence[Ids], vocabulary: Vocabulary) -> str:
    shown = vocabulary.text(rows[0][:120].tolist())[:_SHOWN]
    return f"The first row begins\n    {shown!r}\nwith ids {rows[0][:24].tolist()}"


def _never_found(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, max_length: int | None) -> MarkerError:
    full = sum(len(each) >= max_length for each in rows) if max_length else 0
    hint = ""
    if full:
        hint = (
            f" {full} of {len(rows)} rows looked at are {max_length} tokens long, the trainer's max_length: truncation "
            "may have cut the answers off. Raise max_length, or use truncation_mode='keep_end'."
        )
    if full == len(rows):
        return MarkerError(
            f"No answer begins in any of the rows looked at (its header would be {markers.response[0]!r}).{hint} "
            f"{_first_row(rows, vocabulary)}."
        )
    for text in markers.response:
        bare = text.strip() if isinstance(text, str) else ""
        if isinstance(text, str) and bare != text and bare in vocabulary.text(rows[0].tolist()):
            hint = f" {bare!r}, without the whitespace around it, does occur: give that."
    way_out = (
        "The markers were read from the chat template, so the rows are in another format: give its template as "
        "chat_template=, or the texts before the user's and the assistant's words there as instruction_part and "
        "response_part."
        if markers.detected
        else "Give the text before the assistant's words there as response_part, or leave both markers out to have "
        "them read from the chat template."
    )
    return MarkerError(
        f"The response marker {', '.join(map(repr, markers.response))} opens an answer in none of the rows looked at."
        f"{hint} {_first_row(rows, vocabulary)}. {way_out}"
    )
