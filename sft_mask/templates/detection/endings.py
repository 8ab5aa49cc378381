"""What ends an answer, learnt from rows: for markers whose chat template does not say it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from sft_mask.core.arrays import Ids, offsets_of
from sft_mask.core.markers import Markers, MarkerText
from sft_mask.core.patterns import Kind, Pattern, compile_patterns
from sft_mask.core.spans import SpanFinder
from sft_mask.templates.chat_template import common_suffix
from sft_mask.templates.detection.detect import unique

if TYPE_CHECKING:
    from sft_mask.core.vocabulary import Vocabulary


_LONGEST_GAP = 8
"""Tokens between the end of a turn and the next header; templates write one newline, rarely two tokens."""
_ONE_IN = 20
"""A control token ends turns if one in so many of the answers that end with a control token end with it."""


def learn_endings(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: object) -> Markers:
    """The markers, with end-of-turn tokens and a separator read from the ends of the answers in some rows.

    A control token there is an end-of-turn token; where answers end without one, the whitespace that all of them have
    before the next header is the format's. The tokenizer's EOS always counts as an end-of-turn token.
    """
    finder = SpanFinder(compile_patterns(markers, vocabulary, tokenizer))
    ids = np.concatenate([np.zeros(0, np.int64), *rows])
    turns = finder.find(ids, offsets_of([*map(len, rows)]))
    runs: list[list[int]] = []
    spaces: list[str] = []
    for start, end, is_cut in zip(turns.start.tolist(), turns.end.tolist(), turns.cut.tolist(), strict=True):
        run, space = _ending(ids[start:end].tolist(), vocabulary)
        if run:
            runs.append(run)
        elif not is_cut:
            spaces.append(space)
    befores = (_control_before(ids, at, vocabulary) for at in turns.header.tolist())
    closes_others = {token for token in befores if token is not None}
    counts = Counter(_ends_turn(run, closes_others, runs) for run in runs)
    eos = getattr(tokenizer, "eos_token_id", None)
    bare = _with_bare_headers(markers, counts.keys(), eos, vocabulary)
    if bare != markers:
        return learn_endings(bare, rows, vocabulary, tokenizer)
    headers = [pattern for pattern in finder.trie.patterns if pattern.kind is not Kind.EOT]
    openers = {_first_token(header) for header in headers}
    eots = [token for token, count in counts.most_common() if count * _ONE_IN >= counts.total()]
    eots = [token for token in dict.fromkeys([*eots, *([] if eos is None else [int(eos)])]) if token not in openers]
    others = _opening_tokens(headers, getattr(tokenizer, "bos_token_id", None), eots, vocabulary)
    return replace(
        markers,
        eots=unique((*markers.eots, *((token,) for token in eots))),
        others=unique((*markers.others, *((token,) for token in others))),
        separator=common_suffix(spaces),
    )


def with_eos_at_row_ends(markers: Markers, rows: Sequence[Ids], vocabulary: Vocabulary, tokenizer: object) -> Markers:
    """Markers of a template that leaves the last answer open, with the EOS as an end-of-turn token if it ends rows.

    A row of text has one that the trainer appended. Rows that end in several of them are padded.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    texts = [text for text in (*markers.response, *markers.headers) if isinstance(text, str)]
    if eos is None or not markers.open_end or any(text.startswith(vocabulary.text([eos])) for text in texts):
        return markers
    ended = any(len(row) > 1 and row[-1] == eos and row[-2] != eos for row in rows)
    return replace(markers, eots=unique((*markers.eots, (int(eos),)))) if ended else markers


def after_eot(header: MarkerText, eots: Collection[int], vocabulary: Vocabulary) -> MarkerText:
    """A header without the end-of-turn token of the turn before, which a caller may have copied along."""
    if not isinstance(header, str):
        kept = (at for at, token in enumerate(header) if token not in eots and vocabulary.text([token]).strip())
        return header[next(kept, 0) :] if header[0] in eots else header
    rest = header.lstrip()
    for content in (vocabulary.text([token]) for token in eots):
        rest = rest.removeprefix(content).lstrip()
    return rest if rest and rest != header.lstrip() else header


def _ending(answer: list[int], vocabulary: Vocabulary) -> tuple[list[int], str]:
    """The control tokens that end an answer, and the whitespace at its end where there are none."""
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
    """The control token before a header, with only whitespace between them."""
    for token_id in ids[max(at - _LONGEST_GAP, 0) : at][::-1].tolist():
        if vocabulary.is_special(token_id):
            return int(token_id)
        if vocabulary.text([token_id]).strip():
            return None
    return None


def _ends_turn(run: Sequence[int], closes_others: Collection[int], runs: Sequence[Sequence[int]]) -> int:
    """Which of the control tokens at the end of an answer ends the turn.

    The first that also closes the words of other roles, or else the first that all answers have (``<|eot_id|>`` of
    ``<|eot_id|><|end_of_text|>``); otherwise the last, since those before it may belong to a call or to reasoning.
    """
    of_all = set(run).intersection(*runs)
    return next((token for token in run if token in closes_others), next((t for t in run if t in of_all), run[-1]))


def _with_bare_headers(markers: Markers, closing: Collection[int], eos: int | None, vocabulary: Vocabulary) -> Markers:
    """Markers whose headers do not begin with what ends an answer.

    That is the EOS, or a control token before another one, if it ends answers or a line break follows it.
    """
    ends = [] if eos is None else [eos]
    contents = vocabulary.special_contents

    def bare(header: MarkerText) -> MarkerText:
        text = header if isinstance(header, str) else vocabulary.text(header)
        first = next((token for content, token in contents.items() if text.startswith(content)), None)
        if first is None or first in ends:
            return after_eot(header, ends, vocabulary)
        rest = text.removeprefix(vocabulary.text([first]))
        opens_another = any(content and rest.lstrip().startswith(content) for content in contents)
        closes = opens_another and (first in closing or rest[:1].isspace())
        return after_eot(header, [first], vocabulary) if closes else header

    response, instruction = (tuple(map(bare, texts)) for texts in (markers.response, markers.instruction))
    return replace(markers, response=response, instruction=instruction)


def _first_token(pattern: Pattern) -> int:
    """The id of a pattern's first atom; negative for a byte."""
    return pattern.atoms[0] - 256


def _opening_tokens(
    headers: Sequence[Pattern], bos: int | None, eots: Collection[int], vocabulary: Vocabulary
) -> list[int]:
    """Control tokens that begin a turn or a document by themselves: the shared opener of all headers, and BOS."""
    response = {_first_token(header) for header in headers if header.kind is Kind.RESPONSE}
    others = {_first_token(header) for header in headers if header.kind is Kind.OTHER}
    found = {token for token in response & others if token in vocabulary.added}
    if bos is not None and bos not in eots:
        found.add(int(bos))
    return sorted(found - {_first_token(header) for header in headers if len(header.atoms) == 1})
