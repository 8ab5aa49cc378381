"""Markers as patterns of bytes and tokens, and the prefix tree that reads them.

A marker is a sequence of *atoms*: a control token (matched by id) or one byte of text (matched whatever tokens the
tokenizer happened to cut). Several markers make one :class:`MarkerTrie`; it reads a row token by token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
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


class Kind(IntEnum):
    """What a marker does where it stands."""

    RESPONSE = 0
    """Opens a turn of the model; what follows is trained."""
    OTHER = 1
    """Opens a turn of anybody else, or a new document; ends an open answer."""
    EOT = 2
    """What the model samples to end its turn."""


_BYTE_ATOMS = 256
_SURE_BYTES = 4


def token_atom(token_id: int) -> int:
    """The atom that only this token is."""
    return _BYTE_ATOMS + token_id


def _added_boundaries(marker: str, vocabulary: Vocabulary, gluing: Collection[str] = ()) -> list[str | AddedTokenInfo]:
    """Cuts a marker at special tokens, as the tokenizer does before it looks at anything else; blanks are swallowed."""
    added = vocabulary.added.values()
    cutting = [piece for piece in added if piece.special or piece.lstrip or piece.rstrip or piece.content in gluing]
    by_content = {piece.content: piece for piece in cutting if piece.content}
    if not by_content:
        return [marker]
    alternatives = "|".join(re.escape(content) for content in sorted(by_content, key=len, reverse=True))
    parts: list[str | AddedTokenInfo] = []
    swallow = False
    for chunk in re.split(f"({alternatives})", marker):
        piece = by_content.get(chunk)
        if piece is None:
            text = chunk.lstrip() if swallow else chunk
            parts.append(text)
            swallow = swallow and not text
            continue
        if piece.lstrip and parts and isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        parts.append(piece)
        swallow = piece.rstrip
    return [part for part in parts if part != ""]


def _normalized(text: str, vocabulary: Vocabulary, tokenizer: Any) -> str:
    """Text as the tokenizer's normalizer leaves it inside a row, without the blank that it puts in front of a row."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None:
        return text
    written = str(normalizer.normalize_str(f"0{text}0"))  # nothing composes with a digit
    if "0" not in written[:2] or not written.endswith("0"):
        return text
    written = written[written.index("0") + 1 : -1]
    return written.replace(SENTENCEPIECE_SPACE, " ") if vocabulary.kind == "sentencepiece" else written


def marker_atoms(
    marker: MarkerText, vocabulary: Vocabulary, tokenizer: Any, gluing: Collection[str] = ()
) -> tuple[int, ...]:
    """The atoms of a marker: ``0..255`` is a byte of text, ``256 + id`` a token that must stand there as such.

    Text that follows an added token of ``gluing`` has a blank in front of it.

    Raises:
        MarkerError: the marker holds a token id that the vocabulary does not have.
    """
    opaque = vocabulary.kind == "opaque"
    if opaque and isinstance(marker, str):
        marker = tuple(int(token_id) for token_id in tokenizer(marker, add_special_tokens=False)["input_ids"])
    atoms: list[int] = []
    if not isinstance(marker, str):
        for token_id in marker:
            if not 0 <= token_id < vocabulary.size:
                raise MarkerError(
                    f"The marker {marker!r} holds the id {token_id}, but {vocabulary.name} has the ids 0 to "
                    f"{vocabulary.size - 1}. Give ids of this tokenizer, or the marker's text."
                )
            whole = opaque or vocabulary.is_special(token_id)
            atoms.extend([token_atom(token_id)] if whole else vocabulary.token_bytes(token_id))
        return tuple(atoms)
    before: str | AddedTokenInfo = ""
    for part in _added_boundaries(marker, vocabulary, gluing):
        if isinstance(part, str):
            glue = b"" if isinstance(before, str) or before.content not in gluing else b" "
            atoms.extend(glue + _normalized(part, vocabulary, tokenizer).encode())
        elif part.special:
            atoms.append(token_atom(part.token_id))
        else:
            atoms.extend(vocabulary.token_bytes(part.token_id))
        before = part
    return tuple(atoms)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One marker, compiled."""

    text: MarkerText
    kind: Kind
    atoms: tuple[int, ...]
    first_token_ends_turn: bool = False


@dataclass(slots=True)
class _Node:
    edges: dict[int, int] = field(default_factory=dict)
    pattern: int = -1


@dataclass(frozen=True, slots=True)
class Step:
    """What reading one token from a node gives.

    Attributes:
        node: node after the whole token, ``-1`` where no marker goes on.
        pattern: longest marker completed inside this token, ``-1`` for none.
        used: bytes of the token up to the end of that marker, ``0`` where the token ends with it.
    """

    node: int
    pattern: int
    used: int


class MarkerTrie:
    """Every pattern in one prefix tree over atoms."""

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
        """Reads one token from ``node``, leaving out its first ``skip`` bytes."""
        direct = self.nodes[node].edges.get(token_atom(token_id))
        if direct is not None:
            return Step(direct if self.nodes[direct].edges else -1, self.nodes[direct].pattern, 0)
        if self.vocabulary.kind == "opaque" or self.vocabulary.is_special(token_id):
            return Step(-1, -1, 0)
        return self._step_bytes(node, self.vocabulary.token_bytes(token_id), skip)

    def _step_bytes(self, node: int, piece: bytes, skip: int) -> Step:
        pattern, used = -1, 0
        if not piece:
            return Step(-1, -1, 0)
        for position in range(skip, len(piece)):
            following = self.nodes[node].edges.get(piece[position])
            if following is None:
                return Step(-1, pattern, used)
            node = following
            if self.nodes[node].pattern >= 0:
                pattern, used = self.nodes[node].pattern, (position + 1) % len(piece)
        return Step(node if self.nodes[node].edges else -1, pattern, used)

    @cached_property
    def cut_headers(self) -> Ints:
        """``(nodes,)`` the header that a row cut off at each node was about to write, ``-1`` for none.

        Any beginning with a control token counts, and text of which half stands there, four bytes or more: a lone ``#``
        is rather the answer's own.
        """
        return self._begun_headers(surely=True)

    @cached_property
    def begun_headers(self) -> Ints:
        """As :attr:`cut_headers`, for every beginning: behind a stop a single ``#`` counts too."""
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
        """Token ids that can begin a marker as such."""
        return frozenset(atom - _BYTE_ATOMS for atom in self.nodes[0].edges if atom >= _BYTE_ATOMS)


def compile_patterns(markers: Markers, vocabulary: Vocabulary, tokenizer: Any) -> MarkerTrie:
    """Compiles markers for one vocabulary.

    Raises:
        MarkerError: one marker serves both roles, or stands for no token at all.
    """
    gluing = _gluing((*markers.response, *markers.headers, *markers.eots), vocabulary, tokenizer)
    swallows = any(piece.special and piece.rstrip for piece in vocabulary.added.values())

    def patterns_of(texts: Sequence[MarkerText], kind: Kind) -> list[Pattern]:
        found: list[Pattern] = []
        for text in texts:
            atoms = marker_atoms(text, vocabulary, tokenizer)
            if not atoms:
                raise MarkerError(f"The marker {text!r} stands for no token of {vocabulary.name}.")
            glued = marker_atoms(text, vocabulary, tokenizer, gluing) if gluing else atoms
            ways = (atoms, glued, _without_swallowed(atoms) if swallows else atoms)
            found.extend(Pattern(text, kind, way) for way in dict.fromkeys(ways))
        return found

    stops = patterns_of(markers.eots, Kind.EOT)
    stop_tokens = {pattern.atoms[0] for pattern in stops if len(pattern.atoms) == 1}
    patterns = patterns_of(_with_separator(markers.response, markers), Kind.RESPONSE)
    for header in markers.headers:
        for pattern in patterns_of(_with_separator((header,), markers), Kind.OTHER):
            stopping = pattern.text in markers.eot_headers or pattern.atoms[0] in stop_tokens
            stopping = stopping and _begins_with_token(pattern, vocabulary)  # half a header in plain text stops nothing
            patterns.append(replace(pattern, first_token_ends_turn=stopping))
    patterns.extend(stops)
    _refuse_shared(patterns)
    return MarkerTrie(patterns, vocabulary)


def _begins_with_token(pattern: Pattern, vocabulary: Vocabulary) -> bool:
    """Whether a marker begins with an added token, which no tokenizer cuts: a control token, or one that is text."""
    if pattern.atoms[0] >= _BYTE_ATOMS or not isinstance(pattern.text, str):
        return pattern.atoms[0] >= _BYTE_ATOMS
    return any(pattern.text.startswith(piece.content) for piece in vocabulary.added.values() if piece.content.strip())


def _with_separator(headers: Sequence[MarkerText], markers: Markers) -> list[MarkerText]:
    """Headers as they stand, and behind the blank text that ends an answer without a stop."""
    return list(dict.fromkeys((*headers, *separated(headers, markers.separator))))


def _gluing(markers: Sequence[MarkerText], vocabulary: Vocabulary, tokenizer: Any) -> frozenset[str]:
    """Added tokens of the markers after which the tokenizer puts a blank in front of text (older SentencePiece)."""
    if vocabulary.kind != "sentencepiece":
        return frozenset()
    texts = [marker for marker in markers if isinstance(marker, str)]
    contents = {piece.content for piece in vocabulary.added.values() if piece.content.strip()}
    used = [content for content in contents if any(content in text for text in texts)]
    return frozenset(content for content in used if _glues_blank(content, vocabulary, tokenizer))


def _glues_blank(content: str, vocabulary: Vocabulary, tokenizer: Any) -> bool:
    ids = tokenizer(content + "x", add_special_tokens=False)["input_ids"]
    return b"".join(vocabulary.token_bytes(token_id) for token_id in ids).removeprefix(b" ") == f"{content} x".encode()


def _without_swallowed(atoms: tuple[int, ...]) -> tuple[int, ...]:
    """The atoms without blanks before a first control token: in a row, a control token before them may eat them."""
    blanks = next((index for index, atom in enumerate(atoms) if atom >= _BYTE_ATOMS), 0)
    return atoms[blanks:] if not bytes(atoms[:blanks]).strip() else atoms


def _refuse_shared(patterns: Sequence[Pattern]) -> None:
    response = {pattern.atoms: pattern for pattern in patterns if pattern.kind is Kind.RESPONSE}
    for pattern in patterns:
        twin = response.get(pattern.atoms)
        if twin is not None and pattern.kind is not Kind.RESPONSE:
            raise MarkerError(
                f"The marker {pattern.text!r} is the same as the response marker {twin.text!r}: nothing would tell the "
                "user's words from the model's. Give the text that stands before the user's turns as instruction_part "
                "and the text that stands before the model's as response_part."
            )
