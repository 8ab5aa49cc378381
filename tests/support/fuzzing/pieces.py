"""Packed and truncated conversations: whoever cut them, every token still belongs to the message that it came from."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

from datasets import Dataset
from support import tiny
from support.fuzzing.outcome import IGNORED, Outcome, Subject
from trl import pack_dataset

Messages = list[dict[str, str]]
Rows = list[list[int]]

STOP = "<|im_end|>"


@dataclass(frozen=True)
class Form:
    """How a conversation is written.

    Attributes:
        headers: by role.
        after: what follows every stop.
        parts: the markers to give; without them they are read from the chat template.
    """

    headers: dict[str, str]
    after: str
    parts: tuple[str, str] | tuple[None, None]

    def row(self, messages: Messages) -> tuple[list[int], list[int]]:
        """Ids and labels, by the tokenizer's own offsets."""
        text, spans = "", []
        for message in messages:
            text += self.headers[message["role"]]
            start = len(text)
            text += message["content"] + STOP
            spans += [(start, len(text))] if message["role"] == "assistant" else []
            text += self.after
        encoded = tiny.tokenizer()(text, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        labels = [token if any(a < high and b > low for low, high in spans) else IGNORED for token, (a, b) in pairs]
        return list(encoded["input_ids"]), labels


CHATML = Form({role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")}, "\n", (None, None))
PLAIN = Form({"user": "Q: ", "assistant": "A: "}, "", ("Q: ", "A: "))


@cache
def bare_tokenizer() -> Any:
    """The same tokenizer without a chat template."""
    made = tiny.tokenizer()
    return type(made)(tokenizer_object=made.backend_tokenizer, eos_token=STOP, pad_token="<pad>")


@cache
def network() -> Any:
    return tiny.model()


@dataclass(frozen=True)
class Chats:
    """Conversations in one form, with their ids and labels."""

    form: Form
    messages: list[Messages]
    ids: Rows
    labels: Rows

    @property
    def tokenizer(self) -> Any:
        return tiny.tokenizer() if self.form is CHATML else bare_tokenizer()

    def dataset(self, **columns: Any) -> Dataset:
        return Dataset.from_dict({"input_ids": self.ids, **columns})


def some_chats(rng: random.Random, count: int, system: bool = True) -> Chats:
    form = rng.choice([CHATML, CHATML, PLAIN])
    said = tiny.chats(count, rng.randrange(10**6))
    if form is PLAIN or not system:
        said = [[message for message in messages if message["role"] != "system"] for messages in said]
    rows = [form.row(messages) for messages in said]
    return Chats(form, said, [ids for ids, _ in rows], [labels for _, labels in rows])


# comparing


def compare(outcome: Outcome, what: str, wanted: tuple[Rows, Rows], masked: Any) -> None:
    """Rows that are there are exact; those that are not train nothing."""
    ids, labels = wanted
    for at, given in zip(masked["n"], masked["labels"], strict=True):
        outcome.compare(f"{what}, row {at}", ids[at], [label != IGNORED for label in labels[at]], given)
    there = set(masked["n"])
    gone = [at for at, row in enumerate(labels) if at not in there and any(label != IGNORED for label in row)]
    if gone:
        outcome.wrong.append(f"{what}: rows {gone[:20]} are gone")


def numbers(rows: Sequence[Any]) -> list[int]:
    return list(range(len(rows)))


# before a trainer


def documents(rng: random.Random, subject: Subject) -> Outcome:
    """Rows packed with ``seq_lengths``; ``position_ids`` and the rest of the row come through as they are."""
    made, outcome = some_chats(rng, rng.choice((1, 60, 600))), Outcome()
    longest = max(map(len, made.ids))
    pair = Dataset.from_dict({"input_ids": made.ids, "labels": made.labels})
    packed = pack_dataset(pair, longest + rng.choice((0, 8, 500)), strategy="bfd")
    ids, labels, lengths = (list(packed[name]) for name in ("input_ids", "labels", "seq_lengths"))
    positions = [[at for length in row for at in range(length)] for row in lengths]
    columns = {"seq_lengths": lengths, "position_ids": positions, "n": numbers(ids)}
    masked = subject.mask(Dataset.from_dict({"input_ids": ids, **columns}), made.tokenizer, *made.form.parts)
    compare(outcome, "seq_lengths", (ids, labels), masked)
    if [positions[at] for at in masked["n"]] != list(masked["position_ids"]):
        outcome.wrong.append("position_ids were changed")
    return outcome


def truncated(rng: random.Random, subject: Subject) -> Outcome:
    """Rows cut at their end, with and without messages, or at their beginning with them."""
    made, outcome = some_chats(rng, rng.choice((1, 60, 600))), Outcome()
    with_messages = made.form is CHATML and rng.random() < 0.6
    from_end = with_messages and rng.random() < 0.5
    sizes = [rng.randint(0, len(row)) for row in made.ids]

    def cut(row: list[int], size: int) -> list[int]:
        return row[len(row) - size :] if from_end else row[:size]

    # The first rows are whole, so that there is something to learn from.
    ids, labels = (
        [row if at < 3 else cut(row, size) for at, (row, size) in enumerate(zip(rows, sizes, strict=True))]
        for rows in (made.ids, made.labels)
    )
    columns = {"messages": made.messages} if with_messages else {}
    data = Dataset.from_dict({"input_ids": ids, "n": numbers(ids), **columns})
    masked = subject.mask(data, made.tokenizer, *made.form.parts)
    compare(outcome, f"truncated, messages {with_messages}, from the end {from_end}", (ids, labels), masked)
    return outcome


# behind a trainer


def trainer_of(made: Chats, **options: Any) -> Any:
    """A trainer whose rows are numbered."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = tiny.build(folder, made.dataset(), network=network(), **options)
    trainer.processing_class = made.tokenizer
    trainer.train_dataset = trainer.train_dataset.add_column("n", numbers(trainer.train_dataset))
    return trainer


def wrapped(rng: random.Random, subject: Subject) -> Outcome:
    """One long text, cut at every so many tokens; every thousand conversations it begins anew."""
    made, outcome = some_chats(rng, rng.choice((5, 300, 1500))), Outcome()
    length = rng.choice((7, 16, 33, 64, 200, 2000))
    options = {"packing": True, "packing_strategy": "wrapped", "max_length": length}
    trainer = trainer_of(made, **options)
    ids, labels = _packed(made, length, "wrapped")
    assert list(trainer.train_dataset["input_ids"]) == ids, "packing is not what the reference packs"
    subject.train(trainer, *made.form.parts)
    compare(outcome, f"wrapped at {length}", (ids, labels), trainer.train_dataset)
    return outcome


def _packed(made: Chats, length: int, strategy: str) -> tuple[Rows, Rows]:
    pair = Dataset.from_dict({"input_ids": made.ids, "labels": made.labels})
    packed = pack_dataset(pair, length, strategy=strategy)
    return list(packed["input_ids"]), list(packed["labels"])


def split(rng: random.Random, subject: Subject) -> Outcome:
    """Long conversations cut into documents, in any order; system prompts are shorter than a row."""
    length = rng.choice((12, 24, 48, 100, 300))
    made = some_chats(rng, rng.choice((5, 300, 1000)), system=length > 64)
    options = {"packing": True, "packing_strategy": "bfd_split", "max_length": length}
    trainer = trainer_of(made, **options)
    ids, labels = _packed(made, length, "bfd_split")
    assert list(trainer.train_dataset["input_ids"]) == ids, "packing is not what the reference packs"
    return _cut_rows(subject, trainer, made, (ids, labels), f"bfd_split at {length}")


def ends(rng: random.Random, subject: Subject) -> Outcome:
    """Rows of text that kept their end."""
    length = rng.choice((6, 15, 30, 60))
    made = some_chats(rng, rng.choice((5, 300, 1000)))
    trainer = trainer_of(made, max_length=length, truncation_mode="keep_end")
    ids, labels = ([row[-length:] for row in rows] for rows in (made.ids, made.labels))
    assert list(trainer.train_dataset["input_ids"]) == ids, "truncation is not what the reference cuts"
    return _cut_rows(subject, trainer, made, (ids, labels), f"keep_end at {length}")


def _cut_rows(subject: Subject, trainer: Any, made: Chats, wanted: tuple[Rows, Rows], what: str) -> Outcome:
    """Rows that may begin inside an answer: up to its first header every document is masked, and exact after it."""
    outcome = Outcome()
    ids, labels = wanted
    texts = [header.rstrip(" ") for header in made.form.headers.values()]  # the space is a token with what follows
    headers = [tuple(tiny.tokenizer()(header)["input_ids"]) for header in texts]
    known = []
    for row, own, lengths in zip(ids, labels, _documents(trainer.train_dataset), strict=True):
        judged = list(own)
        for low, high in pairwise(accumulate(lengths, initial=0)):
            first = _first_header(row[low:high], headers)
            judged[low : low + first] = [IGNORED] * first
        known.append(judged)
    try:
        subject.train(trainer, *made.form.parts)
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    compare(outcome, what, (ids, known), trainer.train_dataset)
    return outcome


def _documents(dataset: Any) -> list[list[int]]:
    if "seq_lengths" in dataset.column_names:
        return list(dataset["seq_lengths"])
    return [[len(row)] for row in dataset["input_ids"]]


def _first_header(row: Sequence[int], headers: Sequence[tuple[int, ...]]) -> int:
    """Where the first header of a document begins, or its end."""
    starts = (at for at in range(len(row)) if any(tuple(row[at : at + len(header)]) == header for header in headers))
    return next(starts, len(row))
