"""Which bytes of a text each token holds.

``offset_mapping`` cannot be the oracle's ruler: byte-level post-processors trim spaces off it, split characters
are reported twice or not at all, and a glued SentencePiece space is counted differently by every normalizer.
So the tokens' own bytes are laid along the text, and the sum must be the text exactly. Where it is not,
:class:`NotAlignedError` is raised and the oracle decides nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

WHITESPACE = b" \t\n\r\x0b\x0c"


class NotAlignedError(ValueError):
    """The tokens' bytes do not add up to the text (a normalizer changed it, or an unknown token swallowed some)."""


@dataclass(frozen=True, slots=True)
class Added:
    """An added token: its text, and whether it swallows the whitespace before or after itself."""

    content: bytes
    swallows_before: bool
    swallows_after: bool


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Bytes of every token id of one tokenizer."""

    ordinary: dict[int, bytes]
    added: dict[int, Added]

    def is_added(self, token: int) -> bool:
        return token in self.added


@lru_cache(maxsize=1)
def byte_decoder() -> dict[str, int]:
    """GPT-2's table, inverted: the printable stand-in of each byte (Radford et al. 2019, ``bytes_to_unicode``)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    for offset, byte in enumerate(byte for byte in range(256) if byte not in set(printable)):
        table[chr(256 + offset)] = byte
    return table


def _is_byte_level(backend: dict[str, Any]) -> bool:
    return '"ByteLevel"' in json.dumps([backend["decoder"], backend["pre_tokenizer"]])


def _piece_bytes(piece: str, byte_level: bool) -> bytes:
    if byte_level:
        table = byte_decoder()
        if all(character in table for character in piece):
            return bytes(table[character] for character in piece)
        return piece.encode()
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes([int(piece[3:5], 16)])
    return piece.replace("▁", " ").encode()


@lru_cache(maxsize=1)
def read_vocabulary(tokenizer: Any) -> Vocabulary:
    """Bytes of each token of a fast tokenizer, read from its own serialized form; kept for the last one."""
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    byte_level = _is_byte_level(backend)
    added = {
        entry["id"]: Added(
            entry["content"].encode() if entry["special"] or byte_level else _piece_bytes(entry["content"], False),
            entry["lstrip"],
            entry["rstrip"],
        )
        for entry in backend["added_tokens"]
    }
    vocabulary = backend["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else ((p[0], i) for i, p in enumerate(vocabulary))
    return Vocabulary({token: _piece_bytes(piece, byte_level) for piece, token in pairs if token not in added}, added)


def align(text: str, ids: list[int], vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """Half-open byte intervals of ``text.encode()``, one for each token, in order and without overlap.

    Whitespace that an added token swallowed is held by no token: the model neither reads nor writes it.
    A space that SentencePiece glued in front of a segment is not in the text, so it holds nothing either.
    """
    data = text.encode()
    spans: list[tuple[int, int]] = []
    position = index = 0
    while index < len(ids):
        if (token := vocabulary.added.get(ids[index])) is not None:
            position = _place_added(data, position, token, spans)
            index += 1
            continue
        stop = index
        while stop < len(ids) and ids[stop] not in vocabulary.added:
            stop += 1
        position = _place_segment(data, position, [vocabulary.ordinary[i] for i in ids[index:stop]], spans)
        index = stop
    if data[position:].strip(WHITESPACE):
        raise NotAlignedError(f"the text goes on after the last token: {data[position : position + 40]!r}")
    return spans


def _place_added(data: bytes, position: int, token: Added, spans: list[tuple[int, int]]) -> int:
    if token.swallows_before:
        position = _skip_whitespace(data, position)
    if not data.startswith(token.content, position):
        raise NotAlignedError(
            f"expected {token.content!r} at byte {position}, found {data[position : position + 40]!r}"
        )
    end = position + len(token.content)
    spans.append((position, end))
    return _skip_whitespace(data, end) if token.swallows_after else end


def _place_segment(data: bytes, position: int, pieces: list[bytes], spans: list[tuple[int, int]]) -> int:
    joined = b"".join(pieces)
    if data.startswith(joined, position):
        glued = 0
    elif joined.startswith(b" ") and data.startswith(joined[1:], position):
        glued = 1
    else:
        raise NotAlignedError(f"expected {joined[:40]!r} at byte {position}, found {data[position : position + 40]!r}")
    for piece in pieces:
        width = len(piece)
        if glued:  # pieces are never empty and the glued space is the first byte of the first one
            width, glued = width - 1, 0
        spans.append((position, position + width))
        position += width
    return position


def _skip_whitespace(data: bytes, position: int) -> int:
    while position < len(data) and data[position] in WHITESPACE:
        position += 1
    return position
