"""The words of a text: pieces whose ids depend on nothing else, so that each is encoded once in a whole dataset.

Most tokenizers cut a text into words by patterns before their model sees any (:class:`PatternWords`). SentencePiece's
do not, but no token of theirs reaches from one word into the next (:class:`SentencePieceWords`).
"""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from sft_mask.core.vocabulary import SENTENCEPIECE_SPACE as _SPACE
from sft_mask.data.tokenize.patterns import DIGITS, bracketed, classes_of, members_of, translated

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of the pre-tokenizer ``ByteLevel``."""
_BLOCK = 256
_NEVER_LEARNT = {0x0E, 0x0F, 0x10, 0x17, *range(0x2E, 0xA0), *range(0xAC, 0xFB), *range(0x200, 0x324)}
"""Blocks of Thai, Khmer, Chinese, Japanese and Korean, in which hardly any piece between two spaces returns; of private
characters; and of surrogates, which the tokenizer refuses.
"""
_WORTH_LEARNING = 50_000
"""Characters of texts that were not cut because of a block of characters, before that block is learnt."""
_MOST_EXCEPTIONS = 8


class Words(Protocol):
    """Cuts texts into words.

    Attributes:
        encoder: a tokenizer of ``tokenizers`` that encodes words.
        first_differs: whether the first words of a text are encoded differently from those after a control token.
    """

    @property
    def encoder(self) -> Any: ...

    @property
    def first_differs(self) -> bool: ...

    def __call__(self, text: str) -> list[str] | None:
        """The words of a text without control tokens; ``None`` if it cannot be cut."""


def words_of(backend: Any) -> Words | None:
    """Cuts texts without added tokens as a tokenizer does; ``None`` if it is not known how that one does.

    Args:
        backend: a ``tokenizers.Tokenizer`` whose model has no dropout.
    """
    steps, normalizers = steps_of(backend.pre_tokenizer), steps_of(backend.normalizer)
    if normalizers and any(token.normalized for token in backend.get_added_tokens_decoder().values()):
        return None
    if steps and steps[-1]["type"] == "ByteLevel":
        return _pattern_words(backend, steps, normalizers)
    return _sentencepiece_words(backend, steps, normalizers)


def steps_of(component: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer of ``tokenizers``, as they are written in its file."""
    return [] if component is None else _flat(json.loads(component.__getstate__()))


def _flat(step: dict[str, Any]) -> list[dict[str, Any]]:
    if step["type"] != "Sequence":
        return [step]
    parts = step.get("pretokenizers") or step.get("normalizers") or ()
    return [one for part in parts for one in _flat(part)]


# words by patterns


def _pattern_words(
    backend: Any, steps: Sequence[dict[str, Any]], normalizers: Sequence[dict[str, Any]]
) -> Words | None:
    from tokenizers import Tokenizer, pre_tokenizers

    patterns = [_pattern(step) for step in steps]
    known = [pattern for pattern in patterns if pattern]
    is_bytes_once = [step["type"] for step in steps].count("ByteLevel") == 1
    if None in patterns or not known or not is_bytes_once or any(step["type"] != "NFC" for step in normalizers):
        return None
    encoder: Any = Tokenizer(backend.model)
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = PatternWords(encoder, backend.pre_tokenizer, backend.normalizer if normalizers else None, known)
    return words if words.learn({0}) else None


def _pattern(step: dict[str, Any]) -> str | None:
    """What a step cuts out of a text, ``""`` for a step that cuts nothing; ``None`` for one that is not known."""
    kind = step["type"]
    if kind == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
        ((how, pattern),) = step["pattern"].items()
        return str(pattern) if how == "Regex" else re.escape(pattern)
    if kind == "Digits":
        return DIGITS if step["individual_digits"] else DIGITS + "+"
    if kind == "ByteLevel" and not step["add_prefix_space"]:
        return _GPT2 if step["use_regex"] else ""
    return None


@cache
def _sample() -> str:
    """Characters that patterns treat differently, in many orders."""
    return "".join(random.Random(0).choices(" \n\r\t'aAsStrevmldL019.,/_!#", k=4000))


def _around(character: str) -> str:
    """A character next to those that patterns treat differently."""
    c = character
    return f"a{c}A{c}{c} {c}1{c}a {c}{c}.{c}\n{c} \n{c}'{c}e'r{c}{c}1 {c}' {c}\n\n"


@dataclass
class PatternWords:
    """Words by the patterns of a tokenizer.

    Characters are learnt by blocks of 256, each when enough texts have it. What class they are in is asked of
    ``tokenizers``, and each is tried in a sample text that ``tokenizers`` cuts too. If both do not cut it alike, no
    text is cut any more.

    Attributes:
        encoder: encodes words.
        pre_tokenizer: cuts texts in the same way.
        normalizer: to NFC, before texts are cut; ``None`` for none.
        patterns: cut texts, one after the other.
        first_differs: whether the first words of a text are encoded differently.
    """

    encoder: Any
    pre_tokenizer: Any
    normalizer: Any
    patterns: Sequence[str]
    first_differs: bool = False
    _blocks: set[int] = field(default_factory=set)
    _members: dict[str, list[str]] = field(default_factory=dict)
    _missed: Counter[int] = field(default_factory=Counter)
    _cuts: Sequence[Callable[[str], list[str]]] | None = ()
    _unknown: re.Pattern[str] = re.compile("")

    def __call__(self, text: str) -> list[str] | None:
        """The words of a text; ``None`` if it cannot be cut."""
        if not text.isascii():
            if not self._knows(text):
                return None
            if self.normalizer is not None and not unicodedata.is_normalized("NFC", text):
                text = self.normalizer.normalize_str(text)
                if not self._knows(text):
                    return None
        return self._cut(text)

    def _cut(self, text: str) -> list[str] | None:
        if self._cuts is None:
            return None
        words = [text]
        for cut in self._cuts:
            words = [word for piece in words for word in cut(piece)]
        return None if "" in words else words  # after an empty match, Oniguruma goes on elsewhere than Python

    def _knows(self, text: str) -> bool:
        """Whether all characters of a text are known, or are learnt now because enough texts have them."""
        found = self._unknown.search(text)
        if found is None:
            return True
        if ord(found.group()) // _BLOCK in _NEVER_LEARNT:
            return False
        blocks = {ord(character) // _BLOCK for character in set(text)} - self._blocks
        self._missed.update(dict.fromkeys(blocks, len(text) // max(1, len(blocks))))
        if not blocks or blocks & _NEVER_LEARNT or min(self._missed[block] for block in blocks) < _WORTH_LEARNING:
            return False
        return self.learn(blocks)

    def learn(self, blocks: Collection[int]) -> bool:
        """Learns the characters of some blocks; whether texts can be cut."""
        if self._cuts is None:
            return False
        characters = _characters(blocks)
        for name in set[str]().union(*map(classes_of, self.patterns)):
            self._members.setdefault(name, []).extend(members_of(name, characters))
        self._blocks.update(blocks)
        self._unknown = re.compile(f"[^{bracketed(_characters(self._blocks))}]")
        members = {name: bracketed(found) for name, found in self._members.items()}
        patterns = [translated(pattern, members) for pattern in self.patterns]
        cuts = [None if pattern is None else _cut_by(pattern) for pattern in patterns]
        self._cuts = [cut for cut in cuts if cut is not None]
        if None in cuts or not all(map(self._cuts_alike, ("".join(map(_around, characters)), _sample()))):
            self._cuts = None
        return self._cuts is not None

    def _cuts_alike(self, text: str) -> bool:
        theirs = [text[first:last] for _, (first, last) in self.pre_tokenizer.pre_tokenize_str(text)]
        return self._cut(text) == theirs


def _characters(blocks: Iterable[int]) -> list[str]:
    """The characters of some blocks: those that Unicode has given a meaning, which then stays the same."""
    every = [chr(code) for block in blocks for code in range(block * _BLOCK, (block + 1) * _BLOCK)]
    return [character for character in every if unicodedata.category(character) != "Cn"]


def _cut_by(pattern: str) -> Callable[[str], list[str]] | None:
    """Cuts a text at what a pattern matches; what lies between two matches is a piece too.

    ``None`` if Python does not read the pattern; there is an empty piece for an empty match.
    """
    try:
        matches = re.compile(pattern)
        if len("".join(matches.findall(_sample()))) == len(_sample()):  # it matches everything, as most do
            return re.compile(rf"{pattern}|(?:(?!{pattern})[\s\S])+").findall
        split = re.compile(f"({pattern})").split
    except re.error:
        return None

    def cut(text: str) -> list[str]:
        pieces = split(text)
        return [""] if "" in pieces[1::2] else [piece for piece in pieces if piece]

    return cut


# words of SentencePiece


def _sentencepiece_words(
    backend: Any, steps: Sequence[dict[str, Any]], normalizers: Sequence[dict[str, Any]]
) -> Words | None:
    from tokenizers import Tokenizer

    last = _last_change(steps)
    changes = [*map(_change, normalizers), *(() if last is None else last)]
    vocabulary = backend.get_vocab(with_added_tokens=False)
    if last is None or None in changes or not _is_wordwise(backend.model, vocabulary):
        return None
    cut = _between_words(vocabulary)
    if cut is None:
        return None
    known = [change for change in changes if change is not None]
    first_differs = any(step.get("prepend_scheme") == "first" for step in steps)
    return SentencePieceWords(Tokenizer(backend.model), known, cut.findall, first_differs)


_Change = Callable[[str], str | None]
"""Changes a text before it is cut; ``None`` if it must not be."""


def _change(step: dict[str, Any]) -> _Change | None:
    """What a normalizer does; ``None`` if it is not known."""
    if step["type"] == "Prepend":
        return lambda text: text and step["prepend"] + text
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return lambda text: text.replace(step["pattern"]["String"], step["content"])
    return None


def _last_change(steps: Sequence[dict[str, Any]]) -> Sequence[_Change] | None:
    """What a pre-tokenizer does that cuts nothing; ``None`` if it is not known, or might."""
    if not steps:
        return []
    step, *more = steps
    if more:
        return None
    if step["type"] == "Split" and "String" in step["pattern"] and not step["invert"]:
        rewritten = step["pattern"]["String"]  # by the normalizer, so that it is in no text
        return [lambda text: None if rewritten in text else text]
    if step["type"] != "Metaspace" or step["split"] or step["replacement"] != _SPACE:
        return None
    return [_with_spaces, _after_a_space] if step["prepend_scheme"] == "always" else [_with_spaces]


def _with_spaces(text: str) -> str:
    return text.replace(" ", _SPACE)


def _after_a_space(text: str) -> str:
    return text if text.startswith(_SPACE) or not text else _SPACE + text


def _is_wordwise(model: Any, vocabulary: Mapping[str, int]) -> bool:
    """Whether a model's tokens of a text are merges of its characters, none of which is dropped or joined to others."""
    from tokenizers.models import BPE

    if not isinstance(model, BPE) or model.ignore_merges:
        return False
    all_bytes = model.byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    affixes = model.continuing_subword_prefix or model.end_of_word_suffix
    return not affixes and bool(all_bytes or (model.unk_token is not None and not model.fuse_unk))


def _between_words(vocabulary: Collection[str]) -> re.Pattern[str] | None:
    r"""A pattern of words: no token of the vocabulary has characters of two of them.

    A word begins with the space before it, unless a token has a space after the character that is before this one.
    Newlines are words of their own, if no token has them beside anything else.

    >>> _between_words(["\u2581the", "\n\n", "\u2581\u2581"]).findall("\u2581the\u2581\u2581cat\n\nis")
    ['▁the', '▁▁cat', '\n\n', 'is']
    >>> _between_words(["\u2581the", ">\u2581</"]).findall("\u2581the\u2581<td>\u2581</td>x\u2581a")
    ['▁the', '▁<td>▁</td>x', '▁a']
    """
    tokens = "\0".join(vocabulary)
    if tokens.count("\0") >= len(vocabulary) or re.search(r"[^\0]<0x[0-9A-F]{2}>|<0x[0-9A-F]{2}>[^\0]", tokens):
        return None
    before = sorted(set(re.findall(f"([^{_SPACE}\0]){_SPACE}", tokens)))
    if len(before) > _MOST_EXCEPTIONS:
        return None
    line = "" if re.search("\n[^\n\0]|[^\n\0]\n", tokens) else "\n"
    rest = f"[^{_SPACE}{line}]"
    joined = f"(?:(?<=[{re.escape(''.join(before))}]){_SPACE}+{rest}*)*" if before else ""
    return re.compile(f"{_SPACE}*{rest}+{joined}|{_SPACE}+" + ("|\n+" if line else ""))


@dataclass(frozen=True)
class SentencePieceWords:
    """Words of a tokenizer that writes a space as ``▁`` and has no pattern for words.

    Attributes:
        encoder: encodes words.
        changes: what is done to a text before it is cut.
        cut: cuts it.
        first_differs: whether the first words of a text are encoded differently.
    """

    encoder: Any
    changes: Sequence[_Change]
    cut: Callable[[str], list[str]]
    first_differs: bool = False

    def __call__(self, text: str) -> list[str] | None:
        """The words of a text; ``None`` if it cannot be cut."""
        changed: str | None = text
        for change in self.changes:
            changed = None if changed is None else change(changed)
        return None if changed is None else self.cut(changed)
