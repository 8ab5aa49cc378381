"""Marker strings, and the patterns they are inside a tokenized row.

A marker is a sequence of *atoms*: a control token (matched by id) or one byte of text (matched whatever tokens the
tokenizer happened to cut). Several markers make one :class:`MarkerTrie`; it reads a row token by token.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from sft_mask.errors import MarkerError

if TYPE_CHECKING:
    from sft_mask.tokens import AddedPiece, Vocabulary

MarkerText = str | tuple[int, ...]
"""A marker as a person gives it: text, or a sequence of token ids."""


class Kind(IntEnum):
    """What a marker does where it stands."""

    RESPONSE = 0
    """Opens a turn of the model; what follows is trained."""
    OTHER = 1
    """Opens a turn of anybody else, or a new document; ends an open answer."""
    STOP = 2
    """What the model samples to end its turn."""


@dataclass(frozen=True, slots=True)
class Markers:
    """Where turns begin and end, as text.

    Attributes:
        response: headers after which the model speaks, as the generation prompt leaves them; a longer one wins over its
            own beginning, so that a prefilled tag can stand beside the plain header.
        instruction: headers of the user.
        others: headers of everybody else (system, tool, observation) and tokens that begin a new document.
        stops: what ends an answer and must be sampled by the model: usually one control token.
        stop_headers: headers of other roles whose first token is itself the stop (GLM).
        separator: blank text between an answer that has no stop and the next header; never trained.
        open_end: whether the template leaves the last answer of a conversation without a stop (GLM).
        complete: whether ``others`` and ``stops`` are known to be all that the chat template writes.
        detected: whether these were read from a chat template.
    """

    response: tuple[MarkerText, ...]
    instruction: tuple[MarkerText, ...]
    others: tuple[MarkerText, ...] = ()
    stops: tuple[MarkerText, ...] = ()
    stop_headers: tuple[MarkerText, ...] = ()
    separator: str = ""
    open_end: bool = False
    complete: bool = False
    detected: bool = False

    @property
    def headers(self) -> tuple[MarkerText, ...]:
        """Headers of everybody but the model."""
        return tuple(dict.fromkeys((*self.instruction, *self.others)))


def as_marker_texts(given: object, name: str) -> tuple[MarkerText, ...]:
    """Normalizes what a caller may pass for a marker: one string, several, or token-id sequences.

    >>> as_marker_texts("### Response:", "response_part")
    ('### Response:',)
    >>> as_marker_texts([1, 2, 3], "response_part")
    ((1, 2, 3),)
    >>> as_marker_texts(["USER:", [7, 8]], "instruction_part")
    ('USER:', (7, 8))
    """
    if isinstance(given, str):
        parts: list[MarkerText] = [given]
    elif isinstance(given, Sequence) and given and all(isinstance(item, int) for item in given):
        parts = [tuple(int(item) for item in given)]
    elif isinstance(given, Sequence):
        parts = [item if isinstance(item, str) else tuple(int(token) for token in item) for item in given]
    else:
        raise MarkerError(
            f"{name} is {given!r}, of type {type(given).__name__}. "
            "Give a string, a list of strings, or a list of token ids."
        )
    if not parts or any(len(part) == 0 for part in parts):
        raise MarkerError(
            f"{name} is empty ({given!r}): it would match everywhere. Give the text that the chat template writes "
            "before such a turn, or leave both markers out to have them read from the chat template."
        )
    return tuple(parts)


_BYTE_ATOMS = 256


def _added_boundaries(text: str, vocabulary: Vocabulary) -> list[str | AddedPiece]:
    """Cuts text at special tokens, as the tokenizer does before it looks at anything else; blanks are swallowed."""
    cutting = [piece for piece in vocabulary.added.values() if piece.special or piece.lstrip or piece.rstrip]
    by_content = {piece.content: piece for piece in cutting if piece.content}
    if not by_content:
        return [text]
    alternatives = "|".join(re.escape(content) for content in sorted(by_content, key=len, reverse=True))
    parts: list[str | AddedPiece] = []
    swallow = False
    for chunk in re.split(f"({alternatives})", text):
        piece = by_content.get(chunk)
        if piece is None:
            chunk = chunk.lstrip() if swallow else chunk
            parts.extend([chunk] if chunk else [])
            swallow = swallow and not chunk
            continue
        if piece.lstrip and parts and isinstance(parts[-1], str):
            parts[-1] = parts[-1].rstrip()
        parts.append(piece)
        swallow = piece.rstrip
    return [part for part in parts if part != ""]


def _normalized(text: str, vocabulary: Vocabulary, tokenizer: Any) -> str:
    """Text as the tokenizer's Unicode normalizer leaves it, without the blank that SentencePiece puts in front."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    if normalizer is None or text.isascii():
        return text
    written = str(normalizer.normalize_str("x" + text))
    written = written[written.index("x") + 1 :]
    return written.replace("\u2581", " ") if vocabulary.kind == "sentencepiece" else written


def marker_atoms(marker: MarkerText, vocabulary: Vocabulary, tokenizer: Any) -> tuple[int, ...]:
    """The atoms of a marker: ``0..255`` is a byte of text, ``256 + id`` a token that must stand there as such."""
    if not isinstance(marker, str):
        opaque = vocabulary.kind == "opaque"
        atoms: list[int] = []
        for token_id in marker:
            whole = opaque or vocabulary.is_special(token_id)
            atoms.extend([_BYTE_ATOMS + token_id] if whole else vocabulary.piece(token_id))
        return tuple(atoms)
    if vocabulary.kind == "opaque":
        ids = tokenizer(marker, add_special_tokens=False)["input_ids"]
        return tuple(_BYTE_ATOMS + int(token_id) for token_id in ids)
    atoms = []
    for part in _added_boundaries(marker, vocabulary):
        if isinstance(part, str):
            atoms.extend(_normalized(part, vocabulary, tokenizer).encode())
        elif part.special:
            atoms.append(_BYTE_ATOMS + part.token_id)
        else:
            atoms.extend(vocabulary.piece(part.token_id))
    return tuple(atoms)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One marker, compiled."""

    text: MarkerText
    kind: Kind
    atoms: tuple[int, ...]
    first_token_stops: bool = False


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
        leftover: whether the token holds bytes after that marker.
    """

    node: int
    pattern: int
    leftover: bool


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
        direct = self.nodes[node].edges.get(_BYTE_ATOMS + token_id)
        if direct is not None:
            return Step(direct, self.nodes[direct].pattern, False)
        if self.vocabulary.kind == "opaque" or self.vocabulary.is_special(token_id):
            return Step(-1, -1, False)
        return self._step_bytes(node, self.vocabulary.piece(token_id)[skip:])

    def _step_bytes(self, node: int, piece: bytes) -> Step:
        found, leftover = -1, False
        if not piece:
            return Step(-1, -1, False)
        for position, byte in enumerate(piece):
            following = self.nodes[node].edges.get(byte)
            if following is None:
                return Step(-1, found, leftover)
            node = following
            if self.nodes[node].pattern >= 0:
                found, leftover = self.nodes[node].pattern, position + 1 < len(piece)
        return Step(node if self.nodes[node].edges else -1, found, leftover)

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
    patterns: list[Pattern] = []

    glues = _glues_blank(vocabulary, tokenizer)

    def add(texts: Sequence[MarkerText], kind: Kind, first_token_stops: bool = False) -> None:
        for text in texts:
            atoms = marker_atoms(text, vocabulary, tokenizer)
            if not atoms:
                raise MarkerError(f"The marker {text!r} stands for no token of {vocabulary.name}.")
            patterns.append(Pattern(text, kind, atoms, first_token_stops))
            if glues and (glued := _with_glue(atoms)) != atoms:
                patterns.append(Pattern(text, kind, glued, first_token_stops))

    add(markers.response, Kind.RESPONSE)
    for header in markers.headers:
        add([header], Kind.OTHER, header in markers.stop_headers)
        if markers.separator and isinstance(header, str):
            add([markers.separator + header], Kind.OTHER, False)
    add(markers.stops, Kind.STOP)
    _refuse_shared(patterns)
    return MarkerTrie(patterns, vocabulary)


def _glues_blank(vocabulary: Vocabulary, tokenizer: Any) -> bool:
    """Whether the tokenizer puts a blank in front of text that follows a control token (older SentencePiece)."""
    special = next((text for text in vocabulary.special_contents if text), None)
    if vocabulary.kind != "sentencepiece" or special is None:
        return False
    ids = tokenizer(special + "x", add_special_tokens=False)["input_ids"]
    return b"".join(vocabulary.piece(token_id) for token_id in ids[1:]) == b" x"


def _with_glue(atoms: tuple[int, ...]) -> tuple[int, ...]:
    """The atoms with a blank in front of every text that follows a control token."""
    glued: list[int] = []
    for index, atom in enumerate(atoms):
        if index and atom < _BYTE_ATOMS <= atoms[index - 1]:
            glued.append(ord(" "))
        glued.append(atom)
    return tuple(glued)


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
