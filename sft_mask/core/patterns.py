"""Markers as patterns of bytes and tokens, and the prefix tree that reads them.

A marker is a sequence of *atoms*: a control token (matched by id) or one byte of text (matched however the tokenizer
happened to cut it). All markers make one :class:`MarkerTrie`, which reads a row token by token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sft_mask.core.markers import separated
from sft_mask.core.vocabulary import SENTENCEPIECE_SPACE
from sft_mask.errors import MarkerError

if TYPE_CHECKING:
    from sft_mask.core.arrays import Ints
    from sft_mask.core.markers import Markers, MarkerText
    from sft_mask.core.vocabulary import AddedTokenInfo, Vocabulary

_BYTE_ATOMS = 256
_SURE_BYTES = 4


class Kind(IntEnum):
    """What a marker does."""

    RESPONSE = 0
    """Opens a turn of the assistant; what follows is trained."""
    OTHER = 1
    """Opens a turn of another role, or a new document; ends an open answer."""
    EOT = 2
    """What the model samples to end its turn."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """One marker, compiled.

    Attributes:
        text: the marker.
        kind: what it does.
        atoms: ``0..255`` is a byte of text, ``256 + id`` a control token.
        first_token_ends_turn: whether a header's first token is also what ends the answer before it.
    """

    text: MarkerText
    kind: Kind
    atoms: tuple[int, ...]
    first_token_ends_turn: bool = False


def token_atom(token_id: int) -> int:
    """The atom that matches only this token."""
    return _BYTE_ATOMS + token_id


# markers to patterns


def compile_patterns(markers: Markers, vocabulary: Vocabulary, tokenizer: object) -> MarkerTrie:
    """The markers as patterns of one vocabulary.

    Raises:
        MarkerError: a marker has two meanings, or no token at all.
    """
    spelling = _Spelling(markers, vocabulary, tokenizer)
    eots = spelling.patterns(markers.eots, Kind.EOT)
    eot_tokens = {pattern.atoms[0] for pattern in eots if len(pattern.atoms) == 1}
    patterns = spelling.patterns(_with_separator(markers.response, markers.separator), Kind.RESPONSE)
    for pattern in spelling.patterns(_with_separator(markers.headers, markers.separator), Kind.OTHER):
        ends_turn = pattern.text in markers.eot_headers or pattern.atoms[0] in eot_tokens
        # The first token of a header in plain text is not the same in every row, so it ends nothing.
        patterns.append(replace(pattern, first_token_ends_turn=ends_turn and _begins_with_token(pattern, vocabulary)))
    patterns.extend(eots)
    _refuse_shared(patterns)
    return MarkerTrie(patterns, vocabulary)


def _with_separator(headers: Sequence[MarkerText], separator: str) -> list[MarkerText]:
    """Headers, each also after the whitespace that ends an answer without an end-of-turn token."""
    return list(dict.fromkeys((*headers, *separated(headers, separator))))


def _begins_with_token(pattern: Pattern, vocabulary: Vocabulary) -> bool:
    """Whether a marker begins with an added token, special or not, which a tokenizer never splits."""
    if pattern.atoms[0] >= _BYTE_ATOMS:
        return True
    contents = tuple(token.content for token in vocabulary.added.values() if token.content.strip())
    return isinstance(pattern.text, str) and pattern.text.startswith(contents)


def _refuse_shared(patterns: Sequence[Pattern]) -> None:
    response = {pattern.atoms: pattern for pattern in patterns if pattern.kind is Kind.RESPONSE}
    for pattern in patterns:
        twin = response.get(pattern.atoms)
        if twin is not None and pattern.kind is not Kind.RESPONSE:
            raise MarkerError(
                f"The marker {pattern.text!r} is the same as the response marker {twin.text!r}, so it cannot separate "
                "the user's words from the assistant's. Give the text before the user's turns as instruction_part and "
                "the text before the assistant's as response_part."
            )


class _Spelling:
    """How a tokenizer may write markers inside a row: more than one way where it adds or swallows spaces."""

    def __init__(self, markers: Markers, vocabulary: Vocabulary, tokenizer: Any) -> None:
        self._vocabulary, self._tokenizer = vocabulary, tokenizer
        self._glues = self._tokens_that_glue((*markers.response, *markers.headers, *markers.eots))
        self._swallows = any(token.rstrip for token in vocabulary.added.values())

    def patterns(self, texts: Iterable[MarkerText], kind: Kind) -> list[Pattern]:
        """The patterns of some markers of one kind."""
        return [Pattern(text, kind, atoms) for text in texts for atoms in self._spellings(text)]

    def _spellings(self, text: MarkerText) -> list[tuple[int, ...]]:
        atoms = marker_atoms(text, self._vocabulary, self._tokenizer)
        if not atoms:
            raise MarkerError(f"The marker {text!r} has no token in {self._vocabulary.name}.")
        spellings = [atoms]
        if self._glues:
            spellings.append(marker_atoms(text, self._vocabulary, self._tokenizer, self._glues))
        if self._swallows:
            spellings.append(_without_swallowed(atoms))
        return list(dict.fromkeys(spellings))

    def _tokens_that_glue(self, markers: Sequence[MarkerText]) -> frozenset[str]:
        """Added tokens of the markers after which the tokenizer writes a space before text (older SentencePiece)."""
        if self._vocabulary.kind != "sentencepiece":
            return frozenset()
        texts = [marker for marker in markers if isinstance(marker, str)]
        contents = {token.content for token in self._vocabulary.added.values() if token.content.strip()}
        used = [content for content in contents if any(content in text for text in texts)]
        return frozenset(content for content in used if self._writes_space_after(content))

    def _writes_space_after(self, content: str) -> bool:
        ids = self._tokenizer(content + "x", add_special_tokens=False)["input_ids"]
        return self._vocabulary.bytes_of(ids) == f"{content} x".encode()


def _without_swallowed(atoms: tuple[int, ...]) -> tuple[int, ...]:
    """The atoms without whitespace before a first control token: another one before it may swallow that in a row."""
    first = next((index for index, atom in enumerate(atoms) if atom >= _BYTE_ATOMS), 0)
    return atoms[first:] if not bytes(atoms[:first]).strip() else atoms


def marker_atoms(
    marker: MarkerText, vocabulary: Vocabulary, tokenizer: Any, gluing: Collection[str] = ()
) -> tuple[int, ...]:
    """The atoms of a marker; text that follows an added token of ``gluing`` gets a space in front of it.

    ::

        "<|im_start|>user\\n"   ->  256 + 1, 117, 115, 101, 114, 10      (id 1 is <|im_start|>; u s e r \\n)

    Raises:
        MarkerError: the marker holds a token id that the vocabulary does not have.
    """
    if isinstance(marker, str) and vocabulary.kind == "opaque":
        marker = tuple(int(token_id) for token_id in tokenizer(marker, add_special_tokens=False)["input_ids"])
    if not isinstance(marker, str):
        return tuple(atom for token_id in marker for atom in _id_atoms(token_id, marker, vocabulary))
    atoms: list[int] = []
    glue = ""
    for part in _split_at_added(marker, vocabulary, gluing):
        if isinstance(part, str):
            atoms.extend((glue + _normalized(part, vocabulary, tokenizer)).encode())
            continue
        atoms.extend([token_atom(part.token_id)] if part.special else vocabulary.token_bytes(part.token_id))
        glue = " " if part.content in gluing else ""
    return tuple(atoms)


def _id_atoms(token_id: int, marker: MarkerText, vocabulary: Vocabulary) -> Iterable[int]:
    if not 0 <= token_id < vocabulary.size:
        raise MarkerError(
            f"The marker {marker!r} holds the id {token_id}, but {vocabulary.name} has the ids 0 to "
            f"{vocabulary.size - 1}. Give ids of this tokenizer, or the marker's text."
        )
    if vocabulary.kind == "opaque" or vocabulary.is_special(token_id):
        return (token_atom(token_id),)
    return vocabulary.token_bytes(token_id)


def _split_at_added(marker: str, vocabulary: Vocabulary, gluing: Collection[str]) -> list[str | AddedTokenInfo]:
    """A marker split at added tokens, as the tokenizer does first; whitespace that they swallow is left out."""
    splits = (
        token
        for token in vocabulary.added.values()
        if token.special or token.lstrip or token.rstrip or token.content in gluing
    )
    by_content = {token.content: token for token in splits if token.content}
    if not by_content:
        return [marker]
    # In this order a text comes before each shorter one that it begins with.
    alternatives = "|".join(map(re.escape, sorted(by_content, reverse=True)))
    parts: list[str | AddedTokenInfo] = []
    swallow = False
    for chunk in re.split(f"({alternatives})", marker):
        token = by_content.get(chunk)
        if token is None:
            parts.append(chunk.lstrip() if swallow else chunk)
            continue
        if token.lstrip and parts and isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        parts.append(token)
        swallow = token.rstrip
    return [part for part in parts if part != ""]


def _normalized(text: str, vocabulary: Vocabulary, tokenizer: Any) -> str:
    """Text as the tokenizer's normalizer leaves it inside a row, without the space that it puts before a row."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return text
    # Nothing composes with a digit, and a tokenizer that changes this one spells no text exactly.
    written = str(normalizer.normalize_str(f"1{text}1"))
    written = written[written.index("1") + 1 : written.rindex("1")]
    return written.replace(SENTENCEPIECE_SPACE, " ") if vocabulary.kind == "sentencepiece" else written


# reading rows


@dataclass(slots=True)
class _Node:
    edges: dict[int, int] = field(default_factory=dict)
    pattern: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """The outcome of reading one token from a node.

    Attributes:
        node: the node after the whole token, ``-1`` if no marker continues.
        pattern: the longest marker completed inside this token, ``-1`` for none.
        used: bytes of the token up to the end of that marker, ``0`` if the token ends with it.
    """

    node: int
    pattern: int
    used: int


class MarkerTrie:
    """All patterns in one prefix tree over atoms; node 0 is its root."""

    def __init__(self, patterns: Sequence[Pattern], vocabulary: Vocabulary) -> None:
        self.patterns = tuple(patterns)
        self.vocabulary = vocabulary
        self.nodes = [_Node()]
        for index, pattern in enumerate(self.patterns):
            self._insert(index, pattern)

    def _insert(self, index: int, pattern: Pattern) -> None:
        node = 0
        for atom in pattern.atoms:
            following = self.nodes[node].edges.get(atom)
            if following is None:
                following = len(self.nodes)
                self.nodes.append(_Node())
                self.nodes[node].edges[atom] = following
            node = following
        if self.nodes[node].pattern < 0:
            self.nodes[node].pattern = index

    def step(self, node: int, token_id: int, skip: int = 0) -> Step:
        """Reads one token from ``node``, without its first ``skip`` bytes."""
        direct = self.nodes[node].edges.get(token_atom(token_id))
        if direct is not None:
            return Step(direct if self.nodes[direct].edges else -1, self.nodes[direct].pattern, 0)
        if self.vocabulary.is_special(token_id):
            return Step(-1, -1, 0)
        return self._step_bytes(node, self.vocabulary.token_bytes(token_id), skip)

    def _step_bytes(self, node: int, text: bytes, skip: int) -> Step:
        pattern, used = -1, 0
        if not text:
            return Step(-1, -1, 0)
        for position in range(skip, len(text)):
            following = self.nodes[node].edges.get(text[position])
            if following is None:
                return Step(-1, pattern, used)
            node = following
            if self.nodes[node].pattern >= 0:
                pattern, used = self.nodes[node].pattern, (position + 1) % len(text)
        return Step(node if self.nodes[node].edges else -1, pattern, used)

    @cached_property
    def cut_headers(self) -> Ints:
        """``(nodes,)`` the header that a row cut off at this node had begun, ``-1`` for none.

        A beginning counts if it has a control token, or if it is half of the header and at least four bytes: a single
        ``#`` is more likely part of the answer.
        """
        return self._begun_headers(surely=True)

    @cached_property
    def begun_headers(self) -> Ints:
        """Like :attr:`cut_headers`, for any beginning: after an end-of-turn token a single ``#`` counts too."""
        return self._begun_headers(surely=False)

    def _begun_headers(self, *, surely: bool) -> Ints:
        cut = np.full(len(self.nodes), -1, np.int64)
        headers = [index for index, pattern in enumerate(self.patterns) if pattern.kind is not Kind.EOT]
        for index in sorted(headers, key=lambda index: self.patterns[index].first_token_ends_turn):
            atoms, node = self.patterns[index].atoms, 0
            for read, atom in enumerate(atoms[:-1], start=1):
                node = self.nodes[node].edges[atom]
                if not surely or atoms[0] >= _BYTE_ATOMS or (read >= _SURE_BYTES and 2 * read >= len(atoms)):
                    cut[node] = index
        return cut

    @property
    def first_bytes(self) -> frozenset[int]:
        """Bytes that can begin a marker."""
        return frozenset(atom for atom in self.nodes[0].edges if atom < _BYTE_ATOMS)

    @property
    def first_ids(self) -> frozenset[int]:
        """Control tokens that can begin a marker."""
        return frozenset(atom - _BYTE_ATOMS for atom in self.nodes[0].edges if atom >= _BYTE_ATOMS)
