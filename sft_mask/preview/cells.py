"""From ids to the text a person can read: which tokens hold which characters, with everything unsafe made visible."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sft_mask.core.arrays import common_prefix_length
from sft_mask.core.vocabulary import Vocabulary, read_vocabulary

_UNSEEN = (
    *range(0x80, 0xA0),  # C1 controls: 0x9B alone starts a terminal sequence
    *(0x061C, 0x200B, 0x2028, 0x2029, 0x2060, 0xFEFF),  # no width, or a line break that is none
    *range(0x202A, 0x202F),  # these and the next reorder the line they stand in
    *range(0x2066, 0x206A),
    *range(0xE0000, 0xE0080),  # tags: a text that nobody sees
)
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(0x20)},  # Unicode's control pictures: ESC is ␛, NUL is ␀
    **{code: f"⟨U+{code:04X}⟩" for code in _UNSEEN},
    ord("\t"): "⇥\t",
    ord("\n"): "↵\n",
    0x7F: "␡",
}


def visible(text: str) -> str:
    r"""Text in which every control character is a sign; newline and tab stand behind theirs.

    >>> visible("a\nb\x1b[31m")
    'a↵\nb␛[31m'
    >>> visible("\u202eevil")
    '⟨U+202E⟩evil'
    """
    return text.translate(_SIGNS)


@dataclass(frozen=True, slots=True)
class Cell:
    """The fewest tokens ``[start, stop)`` that hold whole characters: mostly one token, two to four inside of 🙂."""

    start: int
    stop: int
    text: str
    """Decoded, as it is; bytes that are no UTF-8 are U+FFFD."""
    special: bool = False
    """A control token, not the same text typed by somebody."""


def read_cells(tokenizer: Any, ids: Sequence[int]) -> tuple[tuple[bytes, ...], tuple[Cell, ...]]:
    """The bytes of each token, and the cells they form.

    Exact where the tokenizer's ids are known as bytes. Where they are not (WordPiece, word level), a token's bytes are
    what it adds to the decoded text of the tokens before it.
    """
    vocabulary = vocabulary_of(tokenizer)
    if vocabulary.kind == "opaque":
        pieces = tuple(text.encode() for text in _decoded_pieces(tokenizer, ids))
    else:
        pieces = tuple(vocabulary.token_bytes(token) for token in ids)
    return pieces, tuple(cells_of(pieces, [vocabulary.is_special(token) for token in ids]))


_VOCABULARIES: WeakKeyDictionary[Any, tuple[int, Vocabulary]] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, read once as long as no token is added to it."""
    size, vocabulary = _VOCABULARIES.get(tokenizer, (-1, None))
    if vocabulary is None or size != len(tokenizer):
        vocabulary = read_vocabulary(tokenizer)
        _VOCABULARIES[tokenizer] = (len(tokenizer), vocabulary)
    return vocabulary


def cells_of(pieces: Sequence[bytes], special: Sequence[bool]) -> Iterator[Cell]:
    """Cells in order; every token lies in exactly one.

    >>> [cell.text for cell in cells_of([b"a", b"\\xe6", b"\\x9d\\xb1", b"\\xe6", b"<s>"], [False] * 4 + [True])]
    ['a', '東', '\\ufffd', '<s>']
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start, text = 0, ""  # tokens from start on hold a character that is not complete yet; text is what came before it
    for at, piece in enumerate(pieces):
        if at > start and not _continues(piece):
            yield Cell(start, at, text + decoder.decode(b"", final=True))
            start, text = at, ""
        text += decoder.decode(piece)
        if not decoder.getstate()[0]:
            yield Cell(start, at + 1, text, special[at])
            start, text = at + 1, ""
    if start < len(pieces):
        yield Cell(start, len(pieces), text + decoder.decode(b"", final=True))


def _continues(piece: bytes) -> bool:
    """Whether the piece begins inside of a character."""
    return piece[:1] >= b"\x80" and piece[:1] < b"\xc0"


def _decoded_pieces(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    def decode(stop: int) -> str:
        return str(tokenizer.decode(ids[:stop], skip_special_tokens=False, clean_up_tokenization_spaces=False))

    whole, at = decode(len(ids)), 0
    for stop in range(1, len(ids) + 1):
        end = max(at, common_prefix_length(decode(stop), whole)) if stop < len(ids) else len(whole)
        yield whole[at:end]
        at = end
