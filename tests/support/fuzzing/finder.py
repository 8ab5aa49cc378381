"""The search for turns against the slow reference: markers of text and control tokens, torn into tokens at random."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import accumulate
from types import SimpleNamespace

import numpy as np
from support.conformance.alignment import byte_decoder
from support.fuzzing.outcome import Outcome, Subject
from support.reference_spans import reference_turns

from sft_mask.core.markers import Markers
from sft_mask.core.patterns import MarkerTrie, compile_patterns
from sft_mask.core.spans import Turns
from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary

CONTROL = ("<c0>", "<c1>", "<c2>")
CHARACTERS = "ab .*(\n#é東[\\$|?+🙂"
NO_NORMALIZER = SimpleNamespace(backend_tokenizer=SimpleNamespace(normalizer=None))
LETTER = {byte: character for character, byte in byte_decoder().items()}

Chunk = bytes | str
"""A token: bytes of text, or the name of a control token."""


def some_text(rng: random.Random, longest: int) -> str:
    return "".join(rng.choices(CHARACTERS, k=rng.randint(1, longest)))


def marker_pool(rng: random.Random) -> list[str]:
    """Markers, among them beginnings, ends and continuations of each other."""
    pool: list[str] = []
    for _ in range(rng.randint(2, 5)):
        parts = [rng.choice([some_text(rng, 6), rng.choice(CONTROL)]) for _ in range(rng.randint(1, 3))]
        pool.append("".join(parts))
    for _ in range(rng.randint(0, 4)):
        base = rng.choice(pool)
        cut = rng.randint(0, 12)
        pool.append(rng.choice([base[:cut], base[cut:], base + "a", "\n" + base, base * 4, " " + base + " "]) or base)
    return pool


def markers(rng: random.Random) -> Markers:
    pool = marker_pool(rng)
    rng.shuffle(pool)
    model = {*pool[: rng.randint(1, len(pool) - 1)]}
    rest = [text for text in pool if text not in model] or ["a:"]

    def some() -> tuple[str, ...]:
        return tuple(rng.choices(rest, k=rng.randint(1, 3)))

    others = some()
    return Markers(
        response=tuple(rng.choices(sorted(model), k=rng.randint(1, 3))),
        instruction=some(),
        others=others,
        eots=some() if rng.random() < 0.7 else (),
        eot_headers=others[: rng.randint(0, 1)],
        separator=rng.choice(["", "\n", " \n"]),
        open_end=rng.random() < 0.5,
        complete=rng.random() < 0.5,
    )


def torn(text: str, lengths: Sequence[int]) -> list[Chunk]:
    """Text as tokens: control tokens whole, everything between them in pieces of the given lengths."""
    chunks: list[Chunk] = []
    for part in re.split(f"({'|'.join(CONTROL)})", text):
        if part in CONTROL:
            chunks.append(part)
            continue
        raw, low = part.encode(), 0
        while low < len(raw):
            length = lengths[len(chunks) % len(lengths)]
            chunks.append(raw[low : low + length])
            low += length
    return chunks


def documents(rng: random.Random, made: Markers, count: int) -> list[list[Chunk]]:
    every = [str(text) for texts in (made.response, made.headers, made.eots) for text in texts]
    shapes = [[rng.randint(1, 9) for _ in range(rng.randint(1, 6))] for _ in range(8)]
    rows = []
    for _ in range(count):
        bits = [
            rng.choice([rng.choice(every), rng.choice(CONTROL), some_text(rng, 4)]) for _ in range(rng.randint(0, 8))
        ]
        row = torn("".join(bits), rng.choice(shapes))
        rows.append(row[: len(row) - rng.choice((0, 0, 0, 1, 2))] if row else row)
    return rows


def numbered(rng: random.Random, rows: Sequence[Sequence[Chunk]]) -> tuple[Vocabulary, list[list[int]]]:
    """A vocabulary of the tokens that occur, and the rows as ids; some ids are outside of it."""
    names: list[Chunk] = [*CONTROL, *sorted({chunk for row in rows for chunk in row if isinstance(chunk, bytes)})]
    number = {name: index for index, name in enumerate(names)}
    ids = [[number[chunk] for chunk in row] for row in rows]
    for row in ids:
        if rng.random() < 0.1:
            row.insert(rng.randint(0, len(row)), rng.choice([-1, len(names), len(names) + 7]))
    spelled = [name if isinstance(name, str) else "".join(LETTER[byte] for byte in name) for name in names]
    added = {index: AddedTokenInfo(index, name, True, False, False) for index, name in enumerate(CONTROL)}
    return Vocabulary(len(names), spelled, "byte-level", added), ids


def compiled(made: Markers, vocabulary: Vocabulary, subject: Subject, outcome: Outcome) -> MarkerTrie | None:
    try:
        return compile_patterns(made, vocabulary, NO_NORMALIZER)
    except subject.refusal as error:
        outcome.named(error)
        return None


def torn_markers(rng: random.Random, subject: Subject) -> Outcome:
    """Turns of many documents at once, with every field."""
    made, outcome = markers(rng), Outcome()
    vocabulary, rows = numbered(rng, documents(rng, made, rng.choice((1, 20, 800, 2500))))
    pad = rng.choice([None, *range(min(4, vocabulary.size))])
    if pad is not None:
        rows = [[*row, *[pad] * rng.randint(0, 3)] if rng.random() < 0.3 else row for row in rows]
    trie = compiled(made, vocabulary, subject, outcome)
    if trie is None:
        return outcome
    flags = {"complete": made.complete, "open_end": made.open_end}
    offsets = [*accumulate(map(len, rows), initial=0)]
    ids = np.array([token for row in rows for token in row], np.int64)
    found = subject.finder(trie, pad_token_id=pad, **flags).find(ids, np.array(offsets, np.int64))
    given = _by_document(found, offsets)
    for at, row in enumerate(rows):
        wanted = reference_turns(row, trie.patterns, vocabulary, pad=pad, **flags)
        outcome.rows += 1
        outcome.tokens += len(row)
        if given[at] != wanted:
            outcome.wrong.append(f"{made}, pad {pad}: {vocabulary.text(row)!r} has {wanted}, not {given[at]}")
    return outcome


def _by_document(found: Turns, offsets: Sequence[int]) -> list[list[dict[str, object]]]:
    """Turns of each document, in its own tokens."""
    rows: list[list[dict[str, object]]] = [[] for _ in offsets[1:]]
    columns = [getattr(found, name).tolist() for name in Turns.__slots__]
    for values in zip(*columns, strict=True):
        turn = dict(zip(Turns.__slots__, values, strict=True))
        document = turn.pop("document")
        moved = {name: turn[name] - offsets[document] for name in ("start", "end", "header", "eot_start")}
        rows[document].append({**turn, **moved})
    return rows
