"""The ids of many texts at once, equal to those of each text alone.

A tokenizer cuts a text at its control tokens before anything else, and what lies between two of them is encoded without
a look at the rest. So texts are cut there, and each part is encoded once: system prompts, tool definitions and short
messages return in thousands of rows. The library ``tokenizers`` encodes the parts of a batch in its own threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.arrays import common_prefix_length

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ids

_REMEMBERED = 8_000_000
"""Characters of parts whose ids are remembered; then everything is forgotten."""
_LONGEST = 100_000
"""Characters of the longest part that is remembered."""

_LOCAL = {"Sequence", "Split", "ByteLevel", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit"}
"""Pre-tokenizers that treat a text alike wherever it lies."""


class TextEncoder:
    """Encodes texts in batches.

    Args:
        tokenizer: a fast tokenizer of ``transformers``, without methods of its own for encoding.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, bytes] = {}
        self._size = 0

    def __call__(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[Ids]:
        """``(tokens,)`` int32 ids of each text, equal to ``tokenizer(text)["input_ids"]``."""
        if add_special_tokens or self._cuts is None:
            encoded = self._tokenizer(
                list(texts),
                add_special_tokens=add_special_tokens,
                return_attention_mask=False,
                return_token_type_ids=False,
            )
            return [np.array(ids, np.int32) for ids in encoded["input_ids"]]
        parts = [self._cuts.split(text) for text in texts]
        self._learn(dict.fromkeys(part for row in parts for part in row[::2] if part and part not in self._known))
        known = self._known
        made: list[Ids] = [np.frombuffer(b"".join([known[part] for part in row if part]), np.int32) for row in parts]
        if self._size > _REMEMBERED:
            self._forget()
        else:
            self._drop_long(parts)
        return made

    def _learn(self, parts: Iterable[str]) -> None:
        """Encodes parts without control tokens."""
        texts = list(parts)
        if not texts:
            return
        for text, encoding in zip(texts, self._backend.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            self._known[text] = np.array(encoding.ids, np.int32).tobytes()
            self._size += len(text)

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
    def _control(self) -> dict[str, bytes]:
        """The added tokens that are matched before a normalizer runs, and the bytes of their ids."""
        added = self._backend.get_added_tokens_decoder().items()
        return {
            token.content: np.int32(token_id).tobytes()
            for token_id, token in added
            if not token.normalized and token.content
        }

    @cached_property
    def _cuts(self) -> re.Pattern[str] | None:
        """A pattern of the tokens at which texts are cut; ``None`` where parts cannot be encoded alone."""
        backend = self._backend
        if backend.encode_special_tokens or not hasattr(backend, "encode_batch_fast") or not _is_local(backend):
            return None
        added = backend.get_added_tokens_decoder().values()
        first = [token for token in added if not token.normalized]
        if not self._control or any(token.lstrip or token.rstrip or token.single_word for token in first):
            return None
        self._forget()
        return re.compile(f"({_longest_of(list(self._control))})")


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
    if getattr(backend.model, "dropout", None):
        return False
    found: set[str] = set()
    if backend.pre_tokenizer is not None:
        state = json.loads(backend.pre_tokenizer.__getstate__())
        _collect_types(state, found)
    return bool(found) and found <= _LOCAL


def _collect_types(state: object, found: set[str]) -> None:
    """The ``type`` of a component and of those inside of it."""
    if isinstance(state, dict):
        if isinstance(state.get("type"), str):
            found.add(state["type"])
        for part in state.get("pretokenizers", ()):
            _collect_types(part, found)
