"""Conversations for benchmarks, without a download: paragraphs of Python's own manual as the text of both roles.

The manual (``pydoc_data.topics``) comes with every Python: English, code, ``#`` comments. Every fifth paragraph of an
answer has a Markdown heading, as chat models write them, so that a search for ``### Response:`` has near misses.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Messages = list[dict[str, str]]

MARKERS = {
    "special": ("<|im_start|>user\n", "<|im_start|>assistant\n"),
    "text": ("### Instruction:\n", "### Response:\n"),
}
"""The user's header and the assistant's, by style: ChatML's control tokens, or plain text."""
LONG, SHORT = (300, 1500), (60, 300)
"""Least and most tokens of a conversation."""
_DISTINCT = 4000
_CHARACTERS = 4  # per token, in this text


@dataclass(frozen=True, slots=True)
class Corpus:
    """Tokenized conversations; after 4,000 rows they repeat, since masking does not remember a row.

    Attributes:
        ids: ``(tokens,)`` flat.
        offsets: ``(rows + 1,)``.
        messages: of every row.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    messages: Sequence[Messages]

    @property
    def rows(self) -> int:
        return len(self.messages)

    def row(self, number: int) -> NDArray[np.int32]:
        return self.ids[self.offsets[number] : self.offsets[number + 1]]

    def head(self, rows: int) -> Corpus:
        return Corpus(self.ids[: self.offsets[rows]], self.offsets[: rows + 1], self.messages[:rows])


@cache
def paragraphs() -> tuple[str, ...]:
    """Paragraphs of the manual, in its order."""
    from pydoc_data.topics import topics

    found = (part.strip() for text in topics.values() for part in re.split(r"\n\s*\n", text))
    return tuple(part for part in found if 40 < len(part) < 1200)


def corpus(tokens: int, tokenizer: Any, style: str, *, lengths: tuple[int, int] = LONG, unanswered: int = 0) -> Corpus:
    """Conversations of about so many tokens in total, tokenized as a trainer would.

    Args:
        tokens: of all conversations together.
        tokenizer: a fast one; with a chat template for ``"special"``.
        style: a key of ``MARKERS``.
        lengths: least and most tokens of a conversation.
        unanswered: every so many rows are a question without an answer; 0 for none.
    """
    low, high = lengths
    rng = random.Random(0)
    rows = max(1, round(tokens / (low + 0.65 * (high - low))))
    wanted = min(rows, _DISTINCT)
    kept: list[tuple[Messages, list[int]]] = []
    while len(kept) < wanted:
        messages = [_conversation(rng, low, high) for _ in range(min(wanted, 500))]
        ids = _tokenized(messages, tokenizer, style)
        kept += [(said, row) for said, row in zip(messages, ids, strict=True) if low <= len(row) <= high]
    question = [{"role": "user", "content": paragraphs()[0]}]
    distinct = [*kept[:wanted], (question, _tokenized([question], tokenizer, style)[0])]
    which = [wanted if unanswered and at % unanswered == unanswered - 1 else at % wanted for at in range(rows)]
    arrays = [np.asarray(row, np.int32) for _, row in distinct]
    offsets = np.concatenate([[0], np.cumsum([len(arrays[at]) for at in which])])
    return Corpus(np.concatenate([arrays[at] for at in which]), offsets, [distinct[at][0] for at in which])


def _conversation(rng: random.Random, low: int, high: int) -> Messages:
    """Turns until a length is reached that is usually between the bounds."""
    left = rng.uniform(low, high) * _CHARACTERS
    most = min(8, max(1, high // 80))
    messages: Messages = []
    while left > 0:
        asked = rng.choice(paragraphs())
        answer = "\n\n".join(_headed(part, rng) for part in rng.choices(paragraphs(), k=rng.randint(1, most)))
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        left -= len(asked) + len(answer)
    return messages


def _headed(part: str, rng: random.Random) -> str:
    return f"### {part[:20]}\n{part}" if rng.random() < 0.2 else part


def _tokenized(conversations: Sequence[Messages], tokenizer: Any, style: str) -> list[list[int]]:
    texts = [rendered(messages, tokenizer, style) for messages in conversations]
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def rendered(messages: Messages, tokenizer: Any, style: str) -> str:
    """A conversation as text."""
    if style == "special":
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    instruction, response = MARKERS["text"]
    headers = {"user": instruction, "assistant": response}
    return "\n\n".join(headers[turn["role"]] + turn["content"] for turn in messages) + str(tokenizer.eos_token)


def expected_labels(messages: Messages, tokenizer: Any, style: str, ignored: int) -> list[int]:
    """Labels counted from the characters of the answers and of their end-of-turn tokens, without the library.

    A token is trained if it holds any character of an answer, or of the end-of-turn token directly after one.
    """
    text = rendered(messages, tokenizer, style)
    eot, header = str(tokenizer.eos_token), MARKERS[style][1]
    trained, position = [], 0
    for turn in messages:
        position = text.index(turn["content"], position)
        end = position + len(turn["content"])
        if turn["role"] == "assistant":
            assert text[:position].endswith(header), "an answer comes directly after its header"
            trained.append((position, end + len(eot) * text.startswith(eot, end)))
        position = end
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    return [token if any(a < end and b > start for start, end in trained) else ignored for token, (a, b) in pairs]
