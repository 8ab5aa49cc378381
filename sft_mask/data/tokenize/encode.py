"""The ids of many texts at once, equal to those of each text alone.

A tokenizer cuts a text at its control tokens before anything else, and what lies between two of them is encoded without
a look at the rest. So texts are cut there, and each part is encoded once: system prompts, tool definitions and short
messages return in thousands of rows. A part is cut into words (:mod:`sft_mask.data.tokenize.words`), and each word is
encoded once. Where it is not known how a tokenizer cuts words, ``tokenizers`` encodes the parts in its own threads.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import common_prefix_length
from sft_mask.data.tokenize.words import Words, steps_of, words_of

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_REMEMBERED = 8_000_000
"""Characters of parts whose ids are remembered; then all parts are forgotten."""
_LONGEST = 100_000
"""Characters of the longest part that is remembered."""
_WORDS = 200_000
"""Words whose ids are remembered; then all words are forgotten."""

_WORTH_CUTTING = 100_000
"""Characters that are encoded before texts are cut, for which the vocabulary is read."""
_WORTH_JUDGING = 300_000
_MOST_NEW = 0.4
"""Characters after which texts are no longer cut, if more than this share of them was in words that were new."""

_WHITESPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
"""What a token with ``rstrip`` takes with it; unlike ``\\s`` without four control characters."""
_LOCAL = {"Split", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that treat a text alike wherever it lies."""


class TextEncoder:
    """Encodes texts in batches.

    Args:
        tokenizer: a fast tokenizer of ``transformers``, without methods of its own for encoding.

    Attributes:
        cuts_words: whether texts are cut into words by now.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.cuts_words = False
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        self._known_words: dict[str, bytes] = {}
        self._size = self._seen = self._cut = self._new = 0

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Ids]:
        """``(tokens,)`` int32 ids of each text, equal to ``tokenizer(text)["input_ids"]``."""
        self._seen += sum(map(len, texts))
        if self._seen < _WORTH_CUTTING or self._cuts is None or (add_special_tokens and self._added is None):
            return self._whole(texts, add_special_tokens=add_special_tokens)
        self.cuts_words = self._words is not None
        parts = [self._parts(text) for text in texts]
        if self._words is not None and self._words.first_differs and any(row[0] for row in parts):
            made = [self._alone(text, row) for text, row in zip(texts, parts, strict=True)]
        else:
            made = self._joined(parts)
        if add_special_tokens and self._added is not None:
            first, last = self._added
            made = [np.concatenate([first, ids, last]) for ids in made]
        return made

    def _whole(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Ids]:
        encoded = self._tokenizer(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    def _alone(self, text: str, row: list[str]) -> Ids:
        """The ids of one text, whose first words may be encoded in their own way."""
        return (self._whole([text]) if row[0] or self._words is None else self._joined([row]))[0]

    def _parts(self, text: str) -> list[str]:
        """What lies between control tokens, and these tokens: by turns."""
        row: list[str] = [text]
        for cuts in self._cuts or ():
            parted = ([part] if at % 2 else cuts.split(part) for at, part in enumerate(row))
            row = [part for parts in parted for part in parts]
        return row

    def _joined(self, parts: Sequence[list[str]]) -> list[Ids]:
        self._learn(dict.fromkeys(part for row in parts for part in row[::2] if part and part not in self._known))
        known = self._known
        made: list[Ids] = [np.frombuffer(b"".join([known[part] for part in row if part]), np.int32) for row in parts]
        if self._size > _REMEMBERED:
            self._forget()
        else:
            self._drop_long(parts)
        if len(self._known_words) > _WORDS:
            self._known_words = {}
        return made

    def _learn(self, parts: Iterable[str]) -> None:
        """Encodes parts without control tokens."""
        whole: list[str] = []
        words: dict[str, list[str]] = {}
        for part in parts:
            self._size += len(part)
            cut = self._words(part) if self._words is not None else None
            if cut is None:
                whole.append(part)
            else:
                words[part] = cut
        if whole:
            self._known.update(_encoded(self._backend, whole))
        known, rare = self._known_words, {}
        for part, cut in words.items():
            try:
                self._known[part] = b"".join([known[word] for word in cut])
            except KeyError:
                rare[part] = cut
        unknown = set[str]().union(*rare.values()) - known.keys()
        if unknown and self._words is not None:
            known.update(_encoded(self._words.encoder, list(unknown)))
        self._known.update((part, b"".join([known[word] for word in cut])) for part, cut in rare.items())
        self._judge(sum(map(len, words)), sum(map(len, unknown)))

    def _judge(self, size: int, new: int) -> None:
        """Cuts no more words where too few return: ``size`` characters were cut now, ``new`` of them are new words."""
        self._cut, self._new = self._cut + size, self._new + new
        if self._cut > _WORTH_JUDGING and self._new > _MOST_NEW * self._cut:
            self._words, self._known_words, self.cuts_words = None, {}, False
            if not _is_local(self._backend):
                self._cuts = None

    def _drop_long(self, parts: Iterable[Sequence[str]]) -> None:
        for part in {part for row in parts for part in row[::2] if len(part) > _LONGEST}:
            del self._known[part]
            self._size -= len(part)

    def _forget(self) -> None:
        self._known = dict(self._control)
        self._size = 0

    @cached_property
    def _backend(self) -> Any:
        """The tokenizer of ``tokenizers``, without truncation and padding, as a call of the tokenizer sets it."""
        self._tokenizer("x")
        return self._tokenizer.backend_tokenizer

    @cached_property
    def _added(self) -> tuple[Ids, Ids] | None:
        """The special tokens that are added before and after every text; ``None`` if that is not all."""
        texts = ["a", "b c", ""]
        alone, whole = self._whole(texts), self._whole(texts, add_special_tokens=True)
        for at in range(len(whole[0]) - len(alone[0]) + 1) if len(alone[0]) else ():
            first, last = whole[0][:at], whole[0][at + len(alone[0]) :]
            if all(map(np.array_equal, whole, (np.concatenate([first, ids, last]) for ids in alone))):
                return first, last
        return None

    @cached_property
    def _words(self) -> Words | None:
        return words_of(self._backend)

    @cached_property
    def _control(self) -> dict[str, bytes]:
        """The added tokens at which texts are cut, and the bytes of their ids."""
        is_normalized = bool(steps_of(self._backend.normalizer))
        return {
            token.content: np.int32(token_id).tobytes()
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.content and not (token.normalized and is_normalized)
        }

    @cached_property
    def _cuts(self) -> list[re.Pattern[str]] | None:
        """Patterns of the tokens at which texts are cut: those that are matched before a normalizer runs, then the
        others; ``None`` where parts cannot be encoded alone.
        """
        backend = self._backend
        draws = getattr(backend.model, "dropout", None)
        if backend.encode_special_tokens or draws or not hasattr(backend, "encode_batch_fast"):
            return None
        if self._words is None and not _is_local(backend):
            return None
        added = [token for token in backend.get_added_tokens_decoder().values() if token.content in self._control]
        stripping = [token.content for token in added if token.rstrip]
        others = tuple(token.content for token in added if not token.rstrip)
        if not added or any(token.lstrip or token.single_word for token in added):
            return None
        if any(other.endswith(token) for other in others for token in stripping):
            return None
        if stripping and any(token.content[0].isspace() for token in added):
            return None
        self._forget()
        groups = ([token.content for token in added if token.normalized is late] for late in (False, True))
        return [re.compile(f"({_longest_of(group)}){_whitespace_after(stripping)}") for group in groups if group]


def _whitespace_after(tokens: Sequence[str]) -> str:
    """A pattern of the whitespace that belongs to some tokens, after any token."""
    return f"(?:(?:{'|'.join(f'(?<={re.escape(token)})' for token in tokens)}){_WHITESPACE}+)?" if tokens else ""


def _encoded(tokenizer: Any, texts: list[str]) -> Iterator[tuple[str, bytes]]:
    """The texts, and the bytes of the int32 ids of each."""
    for text, encoding in zip(texts, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
        yield text, array("i", encoding.ids).tobytes()


def _longest_of(texts: Sequence[str]) -> str:
    """A pattern of the longest of some texts; written as a tree, because a tokenizer can have 6,000 added tokens.

    >>> _longest_of(["<|im_end|>", "<|im_start|>", "<s>", "<s>s"])
    '<(?:\\\\|im_(?:end\\\\|>|start\\\\|>)|s>(?:s)?)'
    """
    low, high = min(texts), max(texts)
    shared = low[: common_prefix_length(low, high)]
    groups: dict[str, list[str]] = {}
    for text in texts:
        if len(text) > len(shared):
            groups.setdefault(text[len(shared)], []).append(text[len(shared) :])
    longer = f"(?:{'|'.join(map(_longest_of, groups.values()))})" if groups else ""
    return re.escape(shared) + longer + ("?" if longer and shared in texts else "")


def _is_local(backend: Any) -> bool:
    """Whether the ids of a part between two control tokens depend on nothing else."""
    found = {step["type"] for step in steps_of(backend.pre_tokenizer)}
    return bool(found) and found <= _LOCAL
