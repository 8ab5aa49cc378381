"""Random formats on random tokenizers, and conversations in which people type what the formats write.

The text of a row is put together by hand, so the bytes of each answer and its stop are known; a token is trained if and
only if it holds one of them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from datasets import Dataset
from support.conformance.alignment import NotAlignedError, align, read_vocabulary
from support.fuzzing.outcome import Outcome, Subject
from support.tiny_tokenizers import byte_level, sentencepiece
from tokenizers import AddedToken

Messages = list[dict[str, str]]

CONTROL = ("<|im_start|>", "<|im_end|>", "</s>", "<|pad|>")
STOPS = ("<|im_end|>", "</s>")
LEADS = ("", "", "\n", "\n\n", "### ", "<|im_start|>", "<|im_start|>")
NAMES = (
    ("user", "assistant"),
    ("USER", "ASSISTANT"),
    ("Q(.*)", "A[^b]+"),
    ("^Human$", "^Bot$"),
    ("質問", "回答"),
    ("[INST]", "[/INST]"),
    ("é|è", "é|à"),
    ("\\d+", "\\w*?"),
    ("🙂 you", "🙃 me"),
    ("ab", "abab"),
    ("xx yy", "yy xx"),
)
TAILS = (":\n", ": ", "\n", ":", " ", "\n\n", "", ":\t", "#")
AFTER = ("\n", "\n", "", "\n\n", " ")
WORDS = (
    "red",
    " blue",
    "\n",
    "\n\n",
    " ",
    "{",
    '"',
    "'",
    "7",
    "東京",
    "🙂",
    "<",
    "|",
    "#",
    "é",
    ":",
    "(.*)",
    "\\n",
    "er",
)
EDGES = ("a", "B", "3", "京", "\n", "\nx", " y", "(", "er")


@dataclass(frozen=True)
class Format:
    """What stands around the words of each role."""

    user: tuple[str, str]
    answer: tuple[str, str]
    stop: str

    @property
    def template(self) -> str:
        """The format as a chat template."""
        before, after = self.answer
        return (
            "{% for m in messages %}{% if m['role'] == 'assistant' %}"
            f"{{{{ {before!r} + m['content'] + {self.stop + after!r} }}}}{{% else %}}"
            f"{{{{ {self.user[0]!r} + m['content'] + {self.user[1]!r} }}}}{{% endif %}}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{{{{ {before!r} }}}}{{% endif %}}"
        )

    def written(self, messages: Messages) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and the bytes that the model has to write."""
        text, spans = "", []
        for message in messages:
            is_answer = message["role"] == "assistant"
            before, after = self.answer if is_answer else self.user
            text += before
            start, stop = len(text.encode()), self.stop if is_answer else ""
            text += message["content"] + stop
            spans += [(start, len(text.encode()))] if is_answer else []
            text += after
        return text, spans

    def is_known_by_ids(self, messages: Messages) -> bool:
        """Whether headers and stops stand in the text of a row just where the template wrote them."""
        text, _ = self.written(messages)
        bare = sorted({self.user[0].strip(), self.answer[0].strip(), *STOPS, "<|im_start|>"}, key=len, reverse=True)
        found = re.findall("|".join(re.escape(part) for part in bare if part), text)
        clean, _ = self.written([{**message, "content": "0"} for message in messages])
        return found == re.findall("|".join(re.escape(part) for part in bare if part), clean)


def some_format(rng: random.Random) -> Format:
    lead, tail = rng.choice(LEADS), rng.choice(TAILS)
    names = rng.choice(NAMES)
    user, model = (lead + name + tail for name in (names if rng.random() < 0.8 else names[::-1]))
    stop, after = rng.choice(STOPS), rng.choice(AFTER)
    return Format((user, rng.choice([stop + after, after, "\n\n"])), (model, after), stop)


def some_tokenizer(rng: random.Random, form: Format) -> Any:
    """A tokenizer with merges across every border of the format, with or without blanks glued or swallowed."""
    text, _ = form.written([{"role": role, "content": rng.choice(WORDS)} for role in ("user", "assistant") * 4])
    pieces = [part for part in re.split("|".join(map(re.escape, CONTROL)), text) if part]
    cuts = [rng.choice(pieces) for _ in range(rng.choice((0, 4, 30)))]
    words = [part[at : at + rng.randint(2, 6)] for part in cuts for at in [rng.randrange(len(part))]]
    swallows = rng.random() < 0.2
    specials = [AddedToken(name, special=True, normalized=False, rstrip=swallows) for name in CONTROL]
    kind = rng.choice(["byte-level", "byte-level", "glued", "sentencepiece"])
    if kind == "byte-level":
        return _with_eos(byte_level([word for word in words if len(word) > 1], specials), form)
    ascii_words = [word.replace(" ", "▁") for word in words if word.isprintable() and word.isascii() and len(word) > 1]
    return _with_eos(sentencepiece(ascii_words, specials, legacy=kind == "glued"), form)


def _with_eos(tokenizer: Any, form: Format) -> Any:
    tokenizer.add_special_tokens({"eos_token": form.stop, "pad_token": "<|pad|>"})
    return tokenizer


def some_words(rng: random.Random, typed: Sequence[str]) -> str:
    middle = [rng.choice([*WORDS, *typed]) for _ in range(rng.randint(0, 5))]
    return rng.choice(EDGES) + "".join(middle) + rng.choice(EDGES[:4])


def conversations(rng: random.Random, form: Format, count: int, share: float) -> Iterator[Messages]:
    """Conversations; in a share of them somebody types what the format writes."""
    forms = (
        form.user[0],
        form.answer[0],
        form.answer[0].strip(),
        form.stop,
        form.stop + form.answer[1] + form.answer[0],
    )
    for _ in range(count):
        typed = forms if rng.random() < share else ()
        roles = ("user", "assistant") * rng.randint(1, 3)
        yield [{"role": role, "content": some_words(rng, typed)} for role in roles]


# the cases


def typed_markers(rng: random.Random, subject: Subject) -> Outcome:
    """Rows with and without messages, markers given or detected; none that ids alone cannot decide."""
    form, outcome = some_format(rng), Outcome()
    tokenizer = some_tokenizer(rng, form)
    has_messages = rng.random() < 0.6
    given = (form.user[0], form.answer[0]) if rng.random() < 0.5 else (None, None)
    tokenizer.chat_template = form.template if has_messages or given == (None, None) or rng.random() < 0.5 else None
    rows = list(conversations(rng, form, rng.choice((1, 30, 400)), rng.choice((0.0, 0.05, 0.5))))
    rows = [row for row in rows if has_messages or form.is_known_by_ids(row)]
    try:
        table = [encoded(form, tokenizer, row) for row in rows]
    except NotAlignedError:
        outcome.errors["the oracle does not know"] += 1
        return outcome
    if not table:
        return outcome
    columns: dict[str, Any] = {"input_ids": [ids for ids, _ in table], "n": list(range(len(table)))}
    columns |= {"messages": rows} if has_messages else {}
    strict = rng.random() < 0.5
    try:
        masked, report = subject.mask(
            Dataset.from_dict(columns),
            tokenizer,
            *given,
            on_ambiguous="error" if strict else "drop",
            return_report=True,
        )
    except subject.refusal as error:
        outcome.named(error)
        return outcome
    labels = dict(zip(masked["n"], masked["labels"], strict=True))
    dropped = report.splits["train"].dropped_reasons.get("ambiguous", 0)
    outcome.errors["dropped as ambiguous"] += dropped
    what = f"{form}, {type(tokenizer.backend_tokenizer.decoder).__name__}, given {given}, messages {has_messages}"
    for at, (ids, wanted) in enumerate(table):
        if at in labels:
            outcome.compare(f"{what}, {rows[at]}", ids, wanted, labels[at])
    if len(labels) + dropped != len(rows):
        outcome.wrong.append(f"{what}: {len(rows) - len(labels) - dropped} rows are gone: {report.splits['train']}")
    return outcome


def encoded(form: Format, tokenizer: Any, messages: Messages) -> tuple[list[int], list[bool | None]]:
    """Ids, and for each whether it must be trained; ``None`` for a token that holds no byte of the text."""
    text, spans = form.written(messages)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    held = align(text, ids, read_vocabulary(tokenizer))
    edges = [*spans, (len(text.encode()) + 1, 0)]
    wanted: list[bool | None] = []
    at = 0
    for low, high in held:
        while edges[at][1] <= low and at < len(edges) - 1:
            at += 1
        wanted.append(None if low == high else edges[at][0] < high)
    assert all(a[1] <= b[0] for a, b in pairwise(spans)), "answers do not overlap"
    return ids, wanted
