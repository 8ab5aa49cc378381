"""Markers that are token ids, or texts of them, and rows that are rich in their pieces."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset
from support.fuzzing.outcome import Outcome, Subject
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

Marker = tuple[int, ...]

PLAIN = 8
"""Words that stand in no marker."""


@dataclass(frozen=True)
class Setting:
    """A vocabulary, its markers, and what ends an answer.

    Attributes:
        tokenizer: each id is one word or one control token.
        pieces: ids that markers are made of.
        plain: ids that stand in none.
        model: markers before the model's words.
        user: markers before the user's.
        stop: the eos, if there is one.
        control: control tokens.
    """

    tokenizer: Any
    pieces: Sequence[int]
    plain: Sequence[int]
    model: Sequence[Marker]
    user: Sequence[Marker]
    stop: int | None
    control: Collection[int]

    @property
    def others(self) -> list[Marker]:
        """What ends an answer although it is nobody's header: a control token that headers of both sides begin with."""
        shared = {marker[0] for marker in self.model} & {marker[0] for marker in self.user} & set(self.control)
        alone = {marker[0] for marker in (*self.model, *self.user) if len(marker) == 1}
        return [*self.user, *((token,) for token in sorted(shared - alone))]


# the reference


def found_in(row: Sequence[int], model: Collection[Marker], others: Collection[Marker]) -> list[tuple[int, int, bool]]:
    """Headers as ``(start, stop, is the model's)``: from the left, the longest first; then a cut one."""
    by_first: dict[int, list[Marker]] = {}
    for marker in sorted({*model, *others}, key=len, reverse=True):
        by_first.setdefault(marker[0], []).append(marker)
    longest = max(map(len, (*model, *others)))
    found, at = [], 0
    while at < len(row):
        near = by_first.get(row[at], ())
        here = next((marker for marker in near if tuple(row[at : at + len(marker)]) == marker), None)
        if here is not None:
            stop = len(row) if here in model and is_begun(row, at, near) else at + len(here)
            found.append((at, stop, here in model))
        at = found[-1][1] if here is not None else at + 1
    for at in range(max(found[-1][1] if found else 0, len(row) - longest), len(row)):
        if is_begun(row, at, by_first.get(row[at], ())):
            return [*found, (at, len(row), False)]
    return found


def is_begun(row: Sequence[int], at: int, markers: Collection[Marker]) -> bool:
    """Whether a row ends inside a marker that begins at a place."""
    left = len(row) - at
    return any(len(marker) > left and tuple(row[at:]) == marker[:left] for marker in markers)


def trained_by_ids(row: Sequence[int], setting: Setting) -> list[bool]:
    """Which tokens of a row are the model's."""
    trained = [False] * len(row)
    headers = [*found_in(row, setting.model, setting.others), (len(row), len(row), False)]
    for (_, start, is_model), (bound, _, _) in pairwise(headers):
        if not is_model:
            continue
        stops = [at for at in range(start, bound) if row[at] == setting.stop]
        before_control = [at for at in stops if at + 1 < len(row) and row[at + 1] in setting.control]
        stop = [*before_control, *stops[-1:], bound - 1][0] + 1
        trained[start:stop] = [True] * (stop - start)
    return trained


# vocabularies and markers


def words_tokenizer(count: int, eos: bool) -> Any:
    """A tokenizer whose ids are words: ``w0``, ``w1``, ...; the last id is the eos, if there is one."""
    backend = Tokenizer(models.WordLevel({f"w{index}": index for index in range(count)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>" if eos else None)


def control_tokenizer(count: int, eos: bool) -> Any:
    """A tokenizer whose first ids are plain words and the rest control tokens: ``<0>``, ``<1>``, ..."""
    tokenizer = words_tokenizer(PLAIN, eos=False)
    names = [f"<{index}>" for index in range(count)]
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<e>" if eos else None)


def markers(rng: random.Random, pieces: Sequence[int], count: int, longest: int) -> list[Marker]:
    """Markers, among them beginnings, ends, continuations and repetitions of each other."""
    made: list[Marker] = [tuple(rng.choices(pieces, k=rng.randint(1, longest)))]
    while len(made) < count:
        base = rng.choice(made)
        cut = rng.randint(0, len(base))
        fresh = tuple(rng.choices(pieces, k=rng.choice((1, 1, 2, 3, 50) if longest >= 50 else (1, 2, 3))))
        made.append(rng.choice([fresh, base[:cut], base[cut:], base + fresh, fresh + base, base[:cut] + fresh]))
        made = [marker for marker in dict.fromkeys(made) if marker]
    return made


def setting(rng: random.Random, control: bool) -> Setting:
    eos = rng.random() < 0.6
    count = rng.choice((2, 3, 5, 12, 60))
    made = markers(rng, range(PLAIN, PLAIN + count), rng.randint(2, 7), rng.choice((1, 2, 4, 50)))
    rng.shuffle(made)
    cut = rng.randint(1, len(made) - 1)
    tokenizer = control_tokenizer(count, eos) if control else words_tokenizer(PLAIN + count, eos)
    stop = tokenizer.eos_token_id
    pieces, plain = range(PLAIN, PLAIN + count), range(PLAIN)
    specials = {*(pieces if control else ()), *([stop] if eos else ())}
    return Setting(tokenizer, pieces, plain, made[:cut], made[cut:], stop, specials)


def as_given(rng: random.Random, made: Sequence[Marker], tokenizer: Any) -> list[Any]:
    """Markers as a caller may give them: ids, or their text."""
    gap = "" if tokenizer.convert_ids_to_tokens(PLAIN) == "<0>" else " "
    texts = [gap.join(tokenizer.convert_ids_to_tokens(list(marker))) for marker in made]
    given: list[Any] = [text if rng.random() < 0.4 else list(marker) for text, marker in zip(texts, made, strict=True)]
    return given[0] if len(given) == 1 and rng.random() < 0.5 else given


def conversation_row(rng: random.Random, made: Setting) -> list[int]:
    """A row as somebody means it: both sides speak, with words that stand in no marker."""
    row: list[int] = []
    for header in (*made.user, *made.model):
        row += [*header, *rng.choices(made.plain, k=rng.randint(1, 3))]
        row += [made.stop] if made.stop is not None and header in made.model else []
    return row


def random_rows(rng: random.Random, made: Setting, count: int) -> Iterator[list[int]]:
    """Rows of pieces of markers, whole markers and words; some are empty, or one token."""
    every = [*made.model, *made.user]
    words = [*made.plain, *made.pieces, *([made.stop] * 3 if made.stop is not None else [])]
    for _ in range(count):
        row: list[int] = []
        for _ in range(rng.choice((0, 1, 2, 4, 8, 8, 12))):
            marker = rng.choice(every)
            cut = rng.randint(0, len(marker))
            bits: list[Sequence[int]] = [marker, marker, marker[:cut], marker[cut:], rng.choices(words, k=2)]
            row += rng.choice(bits)
        yield row[: rng.randint(0, len(row))] if rng.random() < 0.2 else row


def long_row(rng: random.Random, made: Setting, size: int) -> list[int]:
    row: list[int] = []
    bits = list(random_rows(rng, made, 200))
    while len(row) < size and any(bits):
        row += rng.choice(bits)
    return row[:size]


# the cases


def control_ids(rng: random.Random, subject: Subject) -> Outcome:
    """Markers of control tokens, through the function for batches; its first batch says what ends an answer."""
    made = setting(rng, control=True)
    parts = [as_given(rng, side, made.tokenizer) for side in (made.user, made.model)]
    outcome = Outcome()
    rows = _rows(rng, made)
    try:
        label = subject.train(
            tokenizer=made.tokenizer, instruction_part=parts[0], response_part=parts[1], return_function=True
        )
        label({"input_ids": [conversation_row(rng, made) for _ in range(3)]})
        labels = label({"input_ids": rows})["labels"]
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    for row, given in zip(rows, labels, strict=True):
        outcome.compare(f"{made.user} → {made.model}, stop {made.stop}", row, trained_by_ids(row, made), given)
    return outcome


def word_ids(rng: random.Random, subject: Subject) -> Outcome:
    """Markers of words in a vocabulary without bytes, through ``mask_dataset``."""
    made = setting(rng, control=False)
    parts = [as_given(rng, side, made.tokenizer) for side in (made.user, made.model)]
    rows = [conversation_row(rng, made), *_rows(rng, made)]
    outcome = Outcome()
    try:
        masked = subject.mask(
            Dataset.from_dict({"input_ids": rows, "n": list(range(len(rows)))}), made.tokenizer, *parts
        )
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    labels = dict(zip(masked["n"], masked["labels"], strict=True))
    for at, row in enumerate(rows):
        given = labels.get(at, [-100] * len(row))  # rows that train nothing are dropped
        outcome.compare(f"{made.user} → {made.model}, stop {made.stop}", row, trained_by_ids(row, made), given)
    return outcome


def _rows(rng: random.Random, made: Setting) -> list[list[int]]:
    rows = list(random_rows(rng, made, rng.choice((1, 50, 5000, 5000))))
    if rng.random() < 0.02:
        rows.insert(rng.randint(0, len(rows)), long_row(rng, made, 1_000_000))
    return rows
